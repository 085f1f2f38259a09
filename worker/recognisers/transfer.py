"""A network that begins with what another version has learnt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from app.errors import InvalidInputError
from app.models.architectures import Family, find_architecture
from worker.recognisers.layers import class_parameters
from worker.recognisers.weights import compare_weights, open_weights

#: Learned positions of patches: ours, and those of torchvision's ViT.
_POSITIONS = ("positions", "encoder.pos_embedding")


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a network took over: names of tensors, and those that stay as they were drawn."""

    taken: tuple[str, ...]
    drawn: tuple[str, ...]

    def as_dict(self) -> dict[str, int | list[str]]:
        """Plain JSON values: how many tensors were taken, and which were not."""
        return {"tensors_taken": len(self.taken), "tensors_drawn": list(self.drawn)}


def load_body(
    module: nn.Module, weights_path: Path, arch: str, *, same_classes: bool = False
) -> Transfer:
    """Put the weights of another version of the same architecture into a network.

    What tells classes apart stays as it was drawn unless ``same_classes``: an equal number of
    classes does not make them the same. Auxiliary heads may be missing in the file, or be more
    than the network has. Positions of patches are stretched where the images have another size.

    Raises:
        InvalidInputError: ``weights_mismatch`` (the network is as it was), ``start_impossible``
            for a baseline, which begins with nothing, or those of :func:`open_weights`.
    """
    if find_architecture(arch).family == Family.BASELINE:
        raise InvalidInputError(
            f"{arch} is fitted anew each time; it starts from no other version",
            code="start_impossible",
        )
    replaced = set() if same_classes else class_parameters(module, arch)
    expected = module.state_dict()
    with open_weights(weights_path) as file:
        stored: set[str] = set(file.keys())
        left_out = _auxiliary(stored) - expected.keys()
        missing = _auxiliary(set(expected)) - stored
        stretched = _other_grid(file, expected)
        compare_weights(file, module, ignored=replaced | left_out | missing | stretched)
        state: dict[str, Tensor] = {
            name: file.get_tensor(name)
            for name in expected
            if name in stored and name not in replaced
        }
    with torch.no_grad():
        for name in stretched:
            state[name] = _stretch(state[name].float(), expected[name].shape[1])
        for name, tensor in state.items():
            # Copied into: weights stored in half precision are learnt in float32.
            expected[name].copy_(tensor)
    return Transfer(tuple(state), tuple(name for name in expected if name not in state))


def _other_grid(file: Any, expected: Mapping[str, Tensor]) -> set[str]:
    """Names of the positions that the file has for images of another size."""
    found = set()
    for name in _POSITIONS:
        if name not in expected or name not in file.keys():  # noqa: SIM118  it is no mapping
            continue
        _, theirs, width = file.get_slice(name).get_shape()
        _, ours, our_width = expected[name].shape
        alike = width == our_width and _class_tokens(theirs) == _class_tokens(ours)
        if alike and theirs != ours:
            found.add(name)
    return found


def _class_tokens(count: int) -> int:
    """How many of the tokens are no patch of a square image."""
    return count - isqrt(count) ** 2


def _stretch(positions: Tensor, count: int) -> Tensor:
    """Positions [1, n, width] of a square of patches as [1, count, width]; a class token's stays.

    Dosovitskiy et al., 2020, arXiv 2010.11929, section 3.2.
    """
    extra = _class_tokens(count)
    side = isqrt(positions.shape[1])
    square = positions[:, extra:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    stretched = functional.interpolate(
        square, size=(isqrt(count), isqrt(count)), mode="bicubic", antialias=True
    )
    return torch.cat([positions[:, :extra], stretched.flatten(2).transpose(1, 2)], dim=1)


def _auxiliary(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(("aux1.", "aux2.", "AuxLogits."))}
