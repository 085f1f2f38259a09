"""The header of a safetensors file, read by us before any library trusts it.

Layout: eight bytes with the header's length, little-endian; the header, JSON, a tensor's name to
its dtype, shape and place; then the numbers, without a gap, to the end of the file.
"""

from __future__ import annotations

import io
import json
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from app.errors import InvalidInputError

#: Forty thousand tensors; the largest of torchvision's networks has 1,500.
MAX_HEADER_BYTES = 4 * 1024 * 1024
_MAX_NAME_CHARS = 256
_MAX_TENSOR_BYTES = 1 << 48
_LENGTH_BYTES = 8
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
# fmt: off
_ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "I16": 2, "F16": 2,
    "BF16": 2, "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}
# fmt: on
#: What people send instead, by its first bytes.
_OTHERS = {
    b"PK\x03\x04": "a zip, as torch.save and TorchScript write it",
    b"GGUF": "GGUF",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "NumPy",
    b"\x1f\x8b": "compressed with gzip",
    b"\x08": "ONNX",
    b"\x0a": "a protocol buffer, as TensorFlow writes it",
    b"\x80": "a pickle",
}


def check_header(path: Path) -> None:
    """Compare a file's header with itself and with the file's size; no tensor is read.

    Memory: some times the header, which has 4 MiB at most.

    Raises:
        InvalidInputError: ``weights_unsupported`` for another format,
            ``weights_header_too_large``, ``weights_header_invalid``, or ``weights_damaged`` for
            a file that is cut short or goes on behind its last tensor.
    """
    with path.open("rb") as file:
        check_header_of(file)


def check_header_of(file: BinaryIO) -> None:
    """As :func:`check_header`, of an open file that seeks, wherever it lies.

    Raises:
        InvalidInputError: as :func:`check_header`.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = file.read(_LENGTH_BYTES + 1)
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if head[_LENGTH_BYTES:] != b"{":
        _refuse_other(head)
    if length > MAX_HEADER_BYTES:
        raise InvalidInputError(
            f"the weights' header claims {length} bytes, at most {MAX_HEADER_BYTES} are allowed",
            code="weights_header_too_large",
        )
    raw = b"{" + file.read(max(0, length - 1))
    if len(raw) < length:
        _damaged(f"the header has {length} bytes, and the file ends after {size}")
    data_bytes = size - _LENGTH_BYTES - length
    places = sorted(_place(name, entry) for name, entry in _parse(raw[:length]).items())
    position = 0
    for start, end, name in places:
        if start != position:
            _invalid(f"{name} begins at byte {start} of the numbers, where {position} must follow")
        position = end
    if position > data_bytes:
        _damaged(f"the tensors have {position} bytes, and {data_bytes} are there: it was cut short")
    if position < data_bytes:
        _damaged(f"{data_bytes - position} bytes lie behind the last tensor")


def _parse(raw: bytes) -> dict[str, Any]:
    """The tensors of the header by name."""
    try:
        body = _DECODER.decode(raw.decode())
    except RecursionError:
        _invalid("it is nested too deep")
    except ValueError as error:
        _invalid(f"it is no JSON ({error})"[:300])
    metadata = body.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        _invalid(f"{_METADATA} maps no texts to texts")
    tensors: dict[str, Any] = body
    return tensors


def _place(name: str, entry: Any) -> tuple[int, int, str]:
    """Where a tensor's numbers begin and end."""
    if len(name) > _MAX_NAME_CHARS or not name.isprintable():
        _invalid(f"{name[:50]!r}… is no name of a tensor")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        _invalid(f"{name} has not just dtype, shape and data_offsets")
    item_bytes = _ITEM_BYTES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if item_bytes is None:
        _invalid(f"{name} has the unknown dtype {str(entry['dtype'])[:50]!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape):
        _invalid(f"{name} has a shape that is no list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _invalid(f"{name} has data_offsets that are no place")
    if len(shape) > 16 or (needed := prod(shape) * item_bytes) > _MAX_TENSOR_BYTES:
        _invalid(f"{name} has a shape larger than any tensor")
    if offsets[1] - offsets[0] != needed:
        _invalid(
            f"{name} has {offsets[1] - offsets[0]} bytes, and its shape and dtype need {needed}"
        )
    return offsets[0], offsets[1], name


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(one) is int and 0 <= one <= _MAX_TENSOR_BYTES for one in value
    )


def _refuse_other(head: bytes) -> NoReturn:
    """Raise for a file that does not begin as safetensors do."""
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise InvalidInputError(
                f"the weights are {name}; send safetensors, nothing else is opened",
                code="weights_unsupported",
            )
    if len(head) <= _LENGTH_BYTES:
        _damaged(f"it has only {len(head)} bytes")
    _invalid("it does not begin as JSON")


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) < len(pairs):
        raise ValueError("a name stands there twice")
    return body


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant)


def _invalid(detail: str) -> NoReturn:
    raise InvalidInputError(
        f"the weights' header cannot be: {detail}", code="weights_header_invalid"
    )


def _damaged(detail: str) -> NoReturn:
    raise InvalidInputError(
        f"this is not a whole safetensors file: {detail}", code="weights_damaged"
    )
