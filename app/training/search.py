"""A search over the fields of a recipe: where values are drawn from, and what trials have shown.

Stdlib only, as the recipe is: the sampler and the pruner know no service.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import combinations, product
from typing import Any, Literal, get_args, get_origin, get_type_hints

from app.errors import InvalidInputError
from app.training.augment import AugmentSpec
from app.training.recipe import TrainingRecipe

#: What a trial is judged by: of the validation split, in the epoch whose weights it keeps.
TrialMetric = Literal["accuracy", "loss"]
Pruner = Literal["median", "none"]
TrialState = Literal["running", "waiting", "complete", "pruned", "failed", "stopped"]

MAX_FIELDS = 16
MAX_CHOICES = 64
MAX_TRIALS = 500
#: Of all trials together: each choice and each look at a trial reads what every epoch showed.
MAX_EPOCHS = 100_000

#: Of a recipe, what no search varies: what the network is, what it learns from, and its limits.
_FIXED = frozenset({"arch", "arch_options", "input_px", "start", "augment", "seed", "max_seconds"})
_AUGMENT = "augment."


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    #: Drawn evenly over the logarithm.
    log: bool = False
    is_integer: bool = False

    @property
    def ends(self) -> list[Any]:
        """The values that a recipe refuses first."""
        return [self.low, self.high]

    @property
    def samples(self) -> list[Any]:
        """The ends, and a value near the lower one: 0 may be allowed, and what follows it not."""
        near = self.low + 1 if self.is_integer else self.low + (self.high - self.low) / 1000
        return [self.low, near, self.high]


@dataclass(frozen=True, slots=True)
class Choices:
    """A few values without an order."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> list[Any]:
        """The values that a recipe refuses first: words, and the least and most of numbers."""
        numbers = [value for value in self.values if _is_number(value)]
        words = [value for value in self.values if not _is_number(value)]
        return words + (list(dict.fromkeys((min(numbers), max(numbers)))) if numbers else [])

    @property
    def samples(self) -> list[Any]:
        """All of them."""
        return list(self.values)


Space = Mapping[str, Range | Choices]


@dataclass(frozen=True, slots=True)
class Search:
    """What a search tries, for how long, and how it chooses; the options of its job."""

    space: Space
    trials: int
    metric: TrialMetric = "accuracy"
    pruner: Pruner = "median"
    #: Trials drawn at random before the sampler learns from them; so many must be complete before
    #: one is pruned.
    random_trials: int = 5
    #: No trial is pruned before it has so many epochs.
    pruner_warmup_epochs: int = 1
    #: No trial begins so long after the first; those under way end with what they have.
    max_seconds: float | None = None
    seed: int = 0

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Search:
        """The search of a job's options, or of a request; other names in it are left alone.

        Raises:
            InvalidInputError: ``search_invalid``, with a pointer to each fault of the space.
        """
        known = {each.name: body[each.name] for each in fields(cls) if each.name in body}
        return cls(**known | {"space": read_space(body["space"])})


@dataclass(frozen=True, slots=True)
class TrialEpoch:
    """What an epoch of a trial showed on the validation split; None where it is not finite."""

    epoch: int
    accuracy: float | None
    loss: float | None


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe that was tried, or is being tried."""

    number: int
    state: TrialState
    #: Field → value, such as ``{"learning_rate": 0.01, "augment.flip": True}``.
    parameters: Mapping[str, Any]
    epochs: Sequence[TrialEpoch] = ()
    #: Of the epoch whose weights it keeps; None until it is complete.
    accuracy: float | None = None
    loss: float | None = None
    #: Why it failed: code and detail.
    error: Mapping[str, Any] | None = None
    started_at: datetime | None = field(default=None, compare=False)
    ended_at: datetime | None = field(default=None, compare=False)


def vary(recipe: TrainingRecipe, parameters: Mapping[str, Any]) -> TrainingRecipe:
    """The recipe with some fields replaced; ``augment.NAME`` is a field of its augmentation.

    Raises:
        InvalidInputError: ``recipe_invalid``: the values do not go together.
    """
    body = recipe.as_dict()
    for name, value in parameters.items():
        if name.startswith(_AUGMENT):
            body["augment"][name.removeprefix(_AUGMENT)] = value
        else:
            body[name] = value
    try:
        return TrainingRecipe.from_dict(body)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(str(error), code="recipe_invalid") from None


def read_space(body: Mapping[str, Any]) -> Space:
    """The space as a client writes it: ``{low, high, log}`` or ``{choices}`` for each field.

    Raises:
        InvalidInputError: ``search_invalid``.
    """
    if not 1 <= len(body) <= MAX_FIELDS:
        raise _invalid([("", f"name 1 to {MAX_FIELDS} fields of the recipe")])
    space: dict[str, Range | Choices] = {}
    faults: list[tuple[str, str]] = []
    for name, given in body.items():
        try:
            space[name] = _read_field(name, given)
        except (TypeError, ValueError, KeyError) as error:
            faults.append((name, str(error)))
    if faults:
        raise _invalid(faults)
    return space


def write_space(space: Space) -> dict[str, Any]:
    """Plain JSON values; :func:`read_space` reads them back."""
    return {
        name: {"choices": list(values.values)}
        if isinstance(values, Choices)
        else {"low": values.low, "high": values.high, "log": values.log}
        for name, values in space.items()
    }


def check_search(search: Search, recipe: TrainingRecipe) -> None:
    """Let a search pass whose trials may all be trained by, and are not too many epochs.

    Raises:
        InvalidInputError: ``search_invalid``.
    """
    check_space(search.space, recipe)
    epochs = search.space.get("epochs")
    most = max(epochs.ends) if epochs is not None else recipe.epochs
    if search.trials * most > MAX_EPOCHS:
        detail = (
            f"{search.trials} trials of up to {most} epochs are {search.trials * most:,}, at most "
            f"{MAX_EPOCHS:,} are allowed; ask for fewer of either"
        )
        raise InvalidInputError(
            f"the search is not valid: {detail}",
            code="search_invalid",
            errors=[{"pointer": "/options/trials", "detail": detail}],
        )


def check_space(space: Space, recipe: TrainingRecipe) -> None:
    """Let a space pass whose values all make a recipe that may be trained by.

    Each choice is tried, and each range at its ends and near the lower one; beside each other
    field only the ends are.

    Raises:
        InvalidInputError: ``search_invalid``.
    """
    faults = [
        (name, detail)
        for name, values in space.items()
        for value in values.samples
        if (detail := _refused(recipe, {name: value}))
    ]
    if not faults:
        faults = list(_conflicts(space, recipe))
    if faults:
        raise _invalid(list(dict(faults).items()))


def searchable_fields() -> dict[str, Any]:
    """Each field that a space may name, with its type."""
    hints = get_type_hints(TrainingRecipe)
    found = {each.name: hints[each.name] for each in fields(TrainingRecipe)}
    augment = get_type_hints(AugmentSpec)
    found |= {f"{_AUGMENT}{each.name}": augment[each.name] for each in fields(AugmentSpec)}
    return {name: kind for name, kind in found.items() if name not in _FIXED}


def _conflicts(space: Space, recipe: TrainingRecipe) -> Iterator[tuple[str, str]]:
    for (one, ours), (other, theirs) in combinations(space.items(), 2):
        for value, beside in product(ours.ends, theirs.ends):
            detail = _refused(recipe, {one: value, other: beside})
            if detail:
                yield other, f"{detail}; so it is with {one} {value!r} and {other} {beside!r}"
                break


def _refused(recipe: TrainingRecipe, parameters: Mapping[str, Any]) -> str | None:
    try:
        vary(recipe, parameters)
    except InvalidInputError as error:
        return error.detail
    return None


def _read_field(name: str, given: Mapping[str, Any]) -> Range | Choices:
    kind = searchable_fields().get(name)
    if kind is None:
        known = ", ".join(sorted(searchable_fields()))
        raise ValueError(f"{name[:60]!r} is no field that a search varies; those are {known}")
    if "choices" in given:
        return Choices(_read_choices(kind, given["choices"]))
    if kind not in (int, float):
        raise ValueError("is no number; list its values as choices")
    low, high, log = given["low"], given["high"], bool(given.get("log", False))
    for value in (low, high):
        _require_kind(kind, value)
    # Between neighbouring floats the sampler has no room to compute in.
    if low >= high or math.isclose(low, high):
        raise ValueError(f"low {low!r} must be below high {high!r}")
    if log and low <= 0:
        raise ValueError(f"low {low!r} must be above 0 to be drawn over the logarithm")
    return Range(kind(low), kind(high), log, is_integer=kind is int)


def _read_choices(kind: Any, values: Sequence[Any]) -> tuple[Any, ...]:
    if not 1 <= len(values) <= MAX_CHOICES:
        raise ValueError(f"list 1 to {MAX_CHOICES} choices, not {len(values)}")
    for value in values:
        _require_kind(kind, value)
    read = tuple(float(value) if kind is float else value for value in values)
    if len(set(read)) < len(read):
        raise ValueError("a choice stands twice")
    return read


def _require_kind(kind: Any, value: Any) -> None:
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{value!r} is none of {', '.join(get_args(kind))}")
    elif kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{value!r} is neither true nor false")
    elif not _is_number(value) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    elif kind is int and not isinstance(value, int):
        raise ValueError(f"{value!r} is no whole number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _invalid(faults: Sequence[tuple[str, str]]) -> InvalidInputError:
    name, detail = faults[0]
    return InvalidInputError(
        f"the space is not valid: {f'{name[:60]}: ' if name else ''}{detail}",
        code="search_invalid",
        errors=[
            {"pointer": f"/options/space/{name[:60]}".rstrip("/"), "detail": detail}
            for name, detail in faults
        ],
    )
