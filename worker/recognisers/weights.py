"""Weights as safetensors: checked against an architecture before memory is spent on them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from worker.recognisers.header import check_header
from worker.recognisers.registry import build_empty_module

#: Faults that one error lists; the total counts them all.
_LISTED_FAULTS = 100
_STORED_AS = {
    torch.float32: ("F32", "F16", "BF16"),
    torch.int64: ("I64",),
    torch.bool: ("BOOL",),
}
#: BatchNorm's step counter is used by no forward pass, and converters leave it out.
_OPTIONAL_ENDING = ".num_batches_tracked"


@dataclass(frozen=True, slots=True)
class WeightsReport:
    """What a weights file holds: parameters counted, bytes once loaded, stored dtypes."""

    parameters: int
    bytes: int
    dtypes: tuple[str, ...]


def check_weights(path: Path, spec: ModelSpec) -> WeightsReport:
    """Compare a weights file with its architecture, then look at every number.

    Names, shapes and dtypes are read from the file's header, before any tensor is loaded.

    Raises:
        InvalidInputError: ``weights_mismatch``, ``weights_not_finite``, those of
            :func:`check_header`, or ``preprocess_invalid`` where the architecture cannot take
            such images.
    """
    module = build_empty_module(spec)
    _require_answers(module, spec)
    with open_weights(path) as file:
        dtypes = compare_weights(file, module)
        _require_finite(file)
    state = module.state_dict()
    return WeightsReport(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        dtypes=tuple(sorted(dtypes)),
    )


def save_weights(weights: nn.Module | Mapping[str, Tensor], path: Path) -> None:
    """Write weights as safetensors; the file may be one in memory, without a name."""
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    # Cloned, as safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    content = save(tensors, metadata={"format": "pt"})
    del tensors
    path.write_bytes(content)


@contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """A safetensors file opened for reading its header and tensors.

    Raises:
        InvalidInputError: as :func:`check_header`.
    """
    check_header(path)
    try:
        file = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, RuntimeError) as error:
        raise InvalidInputError(
            f"this is not a whole safetensors file: {error}", code="weights_damaged"
        ) from error
    with file:
        yield file


def compare_weights(
    file: Any, module: nn.Module, *, ignored: Collection[str] = frozenset()
) -> set[str]:
    """Compare a weights file's header with a network; the dtypes it stores.

    Tensors whose names are ``ignored`` may be there or not, and in any shape.

    Raises:
        InvalidInputError: ``weights_mismatch``, with a fault for each name.
    """
    expected = {n: tensor for n, tensor in module.state_dict().items() if n not in ignored}
    stored = set(file.keys()) - set(ignored)
    faults: list[dict[str, Any]] = []
    dtypes: set[str] = set()
    for name, tensor in expected.items():
        if name not in stored:
            if not name.endswith(_OPTIONAL_ENDING):
                faults.append(_fault(name, f"is missing; {_shape(tensor.shape)} is expected"))
            continue
        entry = file.get_slice(name)
        dtypes.add(entry.get_dtype())
        if list(entry.get_shape()) != list(tensor.shape):
            faults.append(
                _fault(
                    name,
                    f"has shape {_shape(entry.get_shape())}; {_shape(tensor.shape)} is expected",
                )
            )
        elif entry.get_dtype() not in _STORED_AS.get(tensor.dtype, ()):
            wanted = " or ".join(_STORED_AS.get(tensor.dtype, (str(tensor.dtype),)))
            faults.append(_fault(name, f"is {entry.get_dtype()}; {wanted} is expected"))
    for name in sorted(stored - set(expected)):
        faults.append(_fault(name, "is not a part of this architecture"))
    _raise_faults("the weights do not fit the architecture", "weights_mismatch", faults)
    return dtypes


def _require_finite(file: Any) -> None:
    faults = [
        _fault(name, "holds numbers that are not finite")
        for name in sorted(file.keys())
        if not file.get_tensor(name).isfinite().all()
    ]
    _raise_faults("the weights hold NaN or infinity", "weights_not_finite", faults)


def _require_answers(module: nn.Module, spec: ModelSpec) -> None:
    """Run the network without numbers, to see that it takes such images at all."""
    height, width, channels = spec.preprocess.output_shape
    module.to("meta").eval()
    try:
        with torch.inference_mode():
            answer = module(torch.empty(1, channels, height, width, device="meta"))
    except RuntimeError as error:
        raise InvalidInputError(
            f"{spec.arch} cannot take images of {width}×{height} pixels: {error}",
            code="preprocess_invalid",
        ) from error
    if tuple(answer.shape) != (1, len(spec.classes)):
        raise InvalidInputError(
            f"{spec.arch} gives {_shape(answer.shape)} numbers for an image, not one for each "
            f"of {len(spec.classes)} classes",
            code="preprocess_invalid",
        )


def _raise_faults(what: str, code: str, faults: list[dict[str, Any]]) -> None:
    if not faults:
        return
    first = faults[0]
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    raise InvalidInputError(
        f"{what}: {first['pointer']} {first['detail']}{more}",
        code=code,
        errors=faults[:_LISTED_FAULTS],
        total=len(faults),
    )


def _fault(name: str, detail: str) -> dict[str, Any]:
    return {"pointer": name, "detail": detail}


def _shape(shape: Any) -> str:
    return "×".join(str(size) for size in shape) or "a single number"
