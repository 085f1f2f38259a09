"""Weights files made to harm are refused by their header, before a tensor costs memory."""

from __future__ import annotations

import io
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from app.errors import InvalidInputError
from tests.security.confined import run_confined
from tests.security.intake import check_weights_header
from tests.unit.pictures import small_spec
from worker.recognisers.cnn import SmallCnn
from worker.recognisers.header import MAX_HEADER_BYTES
from worker.recognisers.load import load_recogniser
from worker.recognisers.weights import check_weights, save_weights

Header = dict[str, Any]


def packed(header: bytes | Header, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of this header; ``length`` is what it claims."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(start: int = 0, end: int = 8, shape: object = (2,), dtype: object = "F32") -> Header:
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": [start, end],
    }


def pickled() -> bytes:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("a pickle was opened",))

    return pickle.dumps({"w": Evil()})


def torch_zip() -> bytes:
    out = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, out)
    return out.getvalue()


FORMATS: dict[str, Callable[[], bytes]] = {
    "pickle": pickled,
    "torch zip": torch_zip,
    "ONNX": lambda: b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(100),
    "GGUF": lambda: b"GGUF\x03\x00\x00\x00" + bytes(100),
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(100),
    "NumPy": lambda: b"\x93NUMPY\x01\x00v\x00{'descr'" + bytes(100),
}
INVALID: dict[str, bytes] = {
    "not JSON": packed(b"{nonsense}"),
    "a list": packed(b"[1, 2]"),
    "not UTF-8": packed(b'{"\xff\xfe": 1}'),
    "NaN": packed(b'{"w": NaN}'),
    "deep": packed(b'{"w":' * 100_000 + b"1" + b"}" * 100_000),
    "a name twice": packed(
        b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        bytes(4),
    ),
    "offsets overlap": packed({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
    "same place": packed({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)),
    "gap": packed({"a": tensor(0, 8), "b": tensor(12, 20)}, bytes(20)),
    "begins late": packed({"a": tensor(8, 16)}, bytes(16)),
    "backwards": packed({"a": tensor(8, 0)}, bytes(8)),
    "negative offset": packed({"a": tensor(-8, 0)}, bytes(8)),
    "offset with a fraction": packed({"a": tensor(0, 8.0)}, bytes(8)),  # type: ignore[arg-type]
    "three offsets": packed({"a": tensor() | {"data_offsets": [0, 4, 8]}}, bytes(8)),
    "negative shape": packed({"a": tensor(shape=(-2, -1))}, bytes(8)),
    "shape overflows": packed({"a": tensor(0, 0, shape=(2**32, 2**32))}),
    "shape of many ones": packed({"a": tensor(0, 4, shape=(1,) * 100_000)}, bytes(4)),
    "number of 5000 digits": packed(b'{"a": ' + b"9" * 5000 + b"}"),
    "shape of truth": packed({"a": tensor(0, 4, shape=(True,))}, bytes(4)),
    "shape is text": packed({"a": tensor(shape="22")}, bytes(8)),
    "bytes and shape differ": packed({"a": tensor(0, 12)}, bytes(12)),
    "unknown dtype": packed({"a": tensor(dtype="F128")}, bytes(8)),
    "dtype is a list": packed({"a": tensor(dtype=["F32"])}, bytes(8)),
    "further field": packed({"a": tensor() | {"strides": [1]}}, bytes(8)),
    "entry is a number": packed({"a": 7}),
    "metadata of numbers": packed({"__metadata__": {"a": 7}}),
    "long name": packed({"n" * 100_000: tensor()}, bytes(8)),
    "name of controls": packed({"a\x1b[2J": tensor()}, bytes(8)),
}
TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "2^63": lambda: packed(b"{}", length=2**63),
    "2^64-1": lambda: packed(b"{}", length=2**64 - 1),
    "100 MB": lambda: packed(b"{" + b" " * 100_000_000 + b"}"),
    "huge metadata": lambda: packed({"__metadata__": {"a": "x" * MAX_HEADER_BYTES}}),
}
DAMAGED: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\x02\x00\x00\x00\x00\x00\x00",
    "header cut": packed(b'{"a": ', length=500),
    "offsets beyond the file": packed({"a": tensor(0, 2**40, shape=(2**38,))}, bytes(100)),
    "numbers cut": packed({"a": tensor()}, bytes(7)),
    "trailing bytes": packed({"a": tensor()}, bytes(9)),
}
CASES = (
    [(name, "weights_unsupported", make) for name, make in FORMATS.items()]
    + [(name, "weights_header_invalid", lambda data=data: data) for name, data in INVALID.items()]
    + [(name, "weights_header_too_large", make) for name, make in TOO_LARGE.items()]
    + [(name, "weights_damaged", lambda data=data: data) for name, data in DAMAGED.items()]
)


@pytest.mark.parametrize(("name", "code", "make"), CASES, ids=[name for name, _, _ in CASES])
def test_a_hostile_header_is_refused_with_its_code(
    name: str, code: str, make: Callable[[], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "weights"
    path.write_bytes(make())
    assert run_confined(check_weights_header, str(path)).result == code
    with pytest.raises(InvalidInputError) as caught:
        check_weights(path, small_spec())
    assert caught.value.code == code
    assert len(caught.value.detail) < 1000
    path.unlink()


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return dict(SmallCnn(3).state_dict())


def code_of(state: dict[str, torch.Tensor], path: Path) -> str:
    path.write_bytes(save({name: value.contiguous() for name, value in state.items()}))
    with pytest.raises(InvalidInputError) as caught:
        check_weights(path, small_spec())
    return caught.value.code


def test_tensors_that_do_not_fit_are_a_mismatch(
    state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    path, name = tmp_path / "weights", "classifier.5.bias"
    without = {key: value for key, value in state.items() if key != name}
    for other in (
        without,
        state | {"extra": torch.zeros(1)},
        without | {"classifier.5.Bias": state[name]},
        state | {name: torch.zeros(4)},
        state | {name: torch.zeros(3, dtype=torch.float64)},
        state | {name: torch.zeros(3, dtype=torch.int64)},
        state | {name: torch.zeros(3, 1)},
    ):
        assert code_of(other, path) == "weights_mismatch"


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_that_is_not_finite_is_found(
    state: dict[str, torch.Tensor], tmp_path: Path, bad: float, dtype: torch.dtype
) -> None:
    name = "features.0.weight"
    worse = state[name].to(dtype)
    worse.view(-1)[-1] = bad
    assert code_of(state | {name: worse}, tmp_path / "weights") == "weights_not_finite"


def test_a_flipped_byte_is_found_at_every_load(tmp_path: Path) -> None:
    import hashlib

    path = tmp_path / "weights"
    save_weights(SmallCnn(3), path)
    good = path.read_bytes()
    sha256 = hashlib.sha256(good).hexdigest()
    load_recogniser(small_spec(), path, "cpu", sha256=sha256)
    for place in (8, len(good) // 2, len(good) - 1):
        changed = bytearray(good)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InvalidInputError) as caught:
            load_recogniser(small_spec(), path, "cpu", sha256=sha256)
        assert caught.value.code == "weights_changed"
