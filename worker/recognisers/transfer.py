"""A network that begins with what another version has learnt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from app.errors import InvalidInputError
from app.models.architectures import Family, find_architecture
from worker.recognisers.layers import class_parameters
from worker.recognisers.weights import compare_weights, open_weights


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
    than the network has.

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
        compare_weights(file, module, ignored=replaced | left_out | missing)
        state: dict[str, Tensor] = {
            name: file.get_tensor(name)
            for name in expected
            if name in stored and name not in replaced
        }
    with torch.no_grad():
        for name, tensor in state.items():
            # Copied into: weights stored in half precision are learnt in float32.
            expected[name].copy_(tensor)
    return Transfer(tuple(state), tuple(name for name in expected if name not in state))


def _auxiliary(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(("aux1.", "aux2.", "AuxLogits."))}
