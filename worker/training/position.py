"""Where a checkpoint says that its training stood, read from a header that may say anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.training.state import TrainingState

#: Parts that a batch is ever computed in.
MAX_PARTS = 65_536
_COUNTS = ("epoch", "epoch_steps", "batch_size", "parts")
_LENGTHS = ("seconds", "past_seconds")


@dataclass(frozen=True, slots=True)
class Position:
    """The numbers of a checkpoint's header; see the fields of :class:`TrainingState`."""

    epoch: int
    epoch_steps: int
    batch_size: int
    parts: int
    seconds: float
    past_seconds: float
    #: Epoch, loss and accuracy.
    best: tuple[int, float, float] | None


def read_position(header: Mapping[str, Any], state: TrainingState) -> Position | None:
    """The position, if it is one of this run; otherwise None."""
    if not all(_is_count(header.get(name)) for name in _COUNTS):
        return None
    if not all(_is_length(header.get(name)) for name in _LENGTHS):
        return None
    best = _read_best(header.get("best"))
    numbers: dict[str, Any] = {name: header[name] for name in _COUNTS + _LENGTHS}
    position = Position(**numbers, best=best)
    if (best is None and header.get("best") is not None) or not _fits(position, state):
        return None
    return position


def _fits(position: Position, state: TrainingState) -> bool:
    recipe, best = state.recipe, position.best
    # An automatic batch size is that of the machine where the training began.
    size_fits = position.batch_size == state.batch_size or recipe.train_batch_size == 0
    if not (size_fits and position.batch_size >= 1 and 1 <= position.parts <= MAX_PARTS):
        return False
    steps = math.ceil(state.images / (position.batch_size * recipe.accumulate_batches))
    return (
        position.epoch <= recipe.epochs
        and position.epoch_steps < (steps if position.epoch < recipe.epochs else 1)
        and (best is None or 1 <= best[0] <= position.epoch)
    )


def _read_best(best: Any) -> tuple[int, float, float] | None:
    if not isinstance(best, dict):
        return None
    epoch: Any = best.get("epoch")
    loss, accuracy = best.get("loss"), best.get("accuracy")
    if _is_count(epoch) and isinstance(loss, float) and isinstance(accuracy, float):
        return epoch, loss, accuracy
    return None


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and 0 <= value < math.inf
