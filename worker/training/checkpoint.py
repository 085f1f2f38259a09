"""Checkpoints: a training at one moment as a file, from which it goes on to the same numbers.

One safetensors file with a JSON header, never pickle. It holds the network, its moving average,
what the optimizer remembers, the weights of the best epoch, the states of the random generators,
the position, and the sums of the running epoch. The learning rate follows from the position.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from app.errors import DarkroomError
from worker.training.optim import (
    expected_tensors,
    learning_parameters,
    optimizer_tensors,
    restore_optimizer,
)
from worker.training.position import Position, read_position
from worker.training.state import Best, TrainingState

#: Grows when the content of the file changes; a checkpoint of another format is refused.
_FORMAT = 2
_HEADER = "checkpoint"
_CUDA = "random.cuda"


class CheckpointRefusedError(DarkroomError):
    """The file is no whole checkpoint of this run; an older one, or none, must do."""

    code = "checkpoint_refused"


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Write the state to a file, which may be one in memory; at least one step is over.

    Raises:
        OSError: there is no room for it.
    """
    best = state.best
    header = {
        "format": _FORMAT,
        "run": state.run,
        "epoch": state.epoch,
        "epoch_steps": state.epoch_steps,
        "batch_size": state.batch_size,
        "parts": state.parts,
        "seconds": state.seconds,
        "past_seconds": state.past_seconds,
        "best": best and {"epoch": best.epoch, "loss": best.loss, "accuracy": best.accuracy},
    }
    tensors = _tensors(state) | {
        f"optimizer.{name}": value
        for name, value in optimizer_tensors(state.optimizer, _names(state.module)).items()
    }
    if best is not None:
        tensors |= {f"best.{name}": value for name, value in best.weights.items()}
    # Cloned, as safetensors refuses tensors that share memory.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    content = save(tensors, metadata={_HEADER: json.dumps(header)})
    del tensors
    path.write_bytes(content)


def restore_checkpoint(state: TrainingState, path: Path) -> None:
    """Put a training that has just begun where the file says it stood.

    Torch's own generators are set too. On another device than the one it was written on,
    training goes on from the same weights, but not to the same bits.

    Raises:
        CheckpointRefusedError: it is damaged or of another run; the state is as it was.
    """
    header, tensors = _read(path)
    _require_run(header, state)
    position = read_position(header, state)
    if position is None:
        raise CheckpointRefusedError(f"the checkpoint stands at no place of this run: {header}")
    cuda = tensors.pop(_CUDA, None)
    _compare(_expected(state, position), tensors)
    for name in ("random.order", "random.augment", "random.cpu"):
        _try_generator(tensors[name])
    # From here on nothing is refused.
    if cuda is not None and torch.device(state.device).type == "cuda":
        torch.cuda.set_rng_state(cuda, state.device)
    torch.set_rng_state(tensors["random.cpu"])
    state.order.set_state(tensors["random.order"])
    state.augmenting.set_state(tensors["random.augment"])
    state.drawn_from = tensors["random.order"]
    state.module.load_state_dict(_part(tensors, "module."))
    if state.ema is not None:
        state.ema.module.load_state_dict(_part(tensors, "ema."))
    restore_optimizer(state.optimizer, _names(state.module), _part(tensors, "optimizer."))
    state.loss_sum = tensors["sum.loss"].to(state.device)
    state.correct = tensors["sum.correct"].to(state.device)
    state.epoch, state.epoch_steps = position.epoch, position.epoch_steps
    state.batch_size, state.parts = position.batch_size, position.parts
    if position.best is not None:
        state.best = Best(*position.best, weights=_part(tensors, "best."))
    state.past_seconds = position.past_seconds
    state.go_on(position.seconds)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """What every checkpoint holds, whatever has been learnt by now."""
    tensors = {f"module.{name}": tensor for name, tensor in state.module.state_dict().items()}
    if state.ema is not None:
        averages = state.ema.module.state_dict()
        tensors |= {f"ema.{name}": tensor for name, tensor in averages.items()}
    tensors |= {
        "random.order": state.drawn_from,
        "random.augment": state.augmenting.get_state(),
        "random.cpu": torch.get_rng_state(),
        "sum.loss": state.loss_sum,
        "sum.correct": state.correct,
    }
    if torch.device(state.device).type == "cuda":
        tensors[_CUDA] = torch.cuda.get_rng_state(state.device)
    return tensors


def _expected(state: TrainingState, position: Position) -> dict[str, Tensor]:
    """Tensors of the names, shapes and dtypes that a checkpoint of this run has on any device."""
    expected = _tensors(state)
    expected.pop(_CUDA, None)
    if position.best is not None:
        weights = state.module.state_dict()
        expected |= {f"best.{name}": tensor for name, tensor in weights.items()}
    # Parameters that have rested till now are remembered by no optimizer.
    last = position.epoch if position.epoch_steps else position.epoch - 1
    learnt = learning_parameters(state.module, state.recipe, epoch=last)
    for name, parameter in state.module.named_parameters():
        if name in learnt:
            remembered = expected_tensors(state.recipe, name, parameter)
            expected |= {f"optimizer.{key}": value for key, value in remembered.items()}
    return expected


def _names(module: nn.Module) -> dict[Tensor, str]:
    return {parameter: name for name, parameter in module.named_parameters()}


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            # Cloned: the tensors are views of a file that is about to be deleted.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointRefusedError(f"the file is no whole checkpoint: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointRefusedError("the file is no checkpoint: its header is no object")
    return header, tensors


def _require_run(header: dict[str, Any], state: TrainingState) -> None:
    if header.get("format") != _FORMAT:
        raise CheckpointRefusedError(
            f"the checkpoint has format {header.get('format')!r}, not {_FORMAT}: another release "
            "wrote it"
        )
    if header.get("run") != state.run:
        raise CheckpointRefusedError(
            "the checkpoint is of another run: its network, recipe or images are not these"
        )


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    if expected.keys() != found.keys():
        names = sorted(expected.keys() ^ found.keys())
        raise CheckpointRefusedError(
            f"the checkpoint lacks tensors or has others: {', '.join(names[:5])}"
        )
    for name, tensor in expected.items():
        other = found[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            raise CheckpointRefusedError(
                f"{name} is {other.dtype} {list(other.shape)} in the checkpoint, not "
                f"{tensor.dtype} {list(tensor.shape)}"
            )


def _try_generator(state: Tensor) -> None:
    try:
        torch.Generator().set_state(state)
    except RuntimeError as error:
        raise CheckpointRefusedError(f"a random generator refuses its state: {error}") from error
