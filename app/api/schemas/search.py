"""What a search varies, and how, as it is asked for; its trials as they are shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import Discriminator, Field, StringConstraints, Tag

from app.api.schemas.base import Answer, JobError, PageAnswer, Parameters, Request
from app.api.schemas.finetune import Alias, RecipeOptions
from app.training.search import (
    MAX_CHOICES,
    MAX_EPOCHS,
    MAX_FIELDS,
    MAX_TRIALS,
    Pruner,
    Search,
    TrialMetric,
    TrialState,
)

_DEFAULT = Search(space={}, trials=1)
_FIELD_NAME = r"^[a-z0-9_.]{1,64}$"
_FieldName = Annotated[str, StringConstraints(pattern=_FIELD_NAME, max_length=64)]
_Number = (
    Annotated[int, Field(ge=-(2**31), le=2**31)] | Annotated[float, Field(allow_inf_nan=False)]
)
_Choice = (
    bool | _Number | Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,64}$", max_length=64)]
)


class RangeOptions(Request):
    """Numbers from `low` to `high`, both included; whole ones where the field is whole."""

    low: _Number
    high: _Number
    log: bool = Field(False, description="Draw evenly over the logarithm.")


class ChoiceOptions(Request):
    """A few values without an order."""

    choices: list[_Choice] = Field(min_length=1, max_length=MAX_CHOICES)


def _kind(body: Any) -> str | None:
    if not isinstance(body, dict):
        # Asked again as it is written; what is no object has no kind.
        return type(body).__name__ if isinstance(body, Request) else None
    return "ChoiceOptions" if "choices" in body else "RangeOptions"


_Values = Annotated[
    Annotated[RangeOptions, Tag("RangeOptions")] | Annotated[ChoiceOptions, Tag("ChoiceOptions")],
    Discriminator(
        _kind,
        custom_error_type="values_ambiguous",
        custom_error_message="needs low and high, or choices",
    ),
]


class SearchOptions(Request):
    """Which recipes are tried, and how they are chosen."""

    recipe: RecipeOptions = Field(
        RecipeOptions(), description="What all trials have in common, as for `finetune`."
    )
    space: dict[_FieldName, _Values] = Field(
        min_length=1,
        max_length=MAX_FIELDS,
        description="Field of the recipe, such as `learning_rate` or `augment.flip`, to where its "
        "values are drawn from.",
        # Their pattern alone would allow other names beside those that match.
        json_schema_extra={"propertyNames": {"pattern": _FIELD_NAME}},
    )
    trials: int = Field(
        20,
        ge=1,
        le=MAX_TRIALS,
        description=f"Recipes to try; with their epochs {MAX_EPOCHS:,} at most.",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 24 * 3600,
        description="Counted from the first trial's begin: then no other begins, and those under "
        "way end with the best epoch they have.",
    )
    metric: TrialMetric = Field(
        _DEFAULT.metric,
        description="What trials are judged by: of the validation split, in the epoch whose "
        "weights are kept.",
    )
    pruner: Pruner = Field(
        _DEFAULT.pruner,
        description="`median` ends a trial that does worse than half of the complete ones did "
        "after as many epochs.",
    )
    pruner_warmup_epochs: int = Field(
        _DEFAULT.pruner_warmup_epochs,
        ge=1,
        le=10_000,
        description="No trial is pruned before it has so many epochs.",
    )
    random_trials: int = Field(
        _DEFAULT.random_trials,
        ge=1,
        le=MAX_TRIALS,
        description="Trials drawn at random before others learn from them; so many must be "
        "complete before one is pruned.",
    )
    seed: int = Field(_DEFAULT.seed, ge=0, le=2**63 - 1, description="Of the choice of recipes.")
    alias: Alias = "production"

    def search(self) -> Search:
        """The search that is asked for.

        Raises:
            InvalidInputError: ``search_invalid``.
        """
        return Search.from_dict(self.model_dump(exclude={"recipe", "alias"}))


class TrialsQuery(Parameters):
    """A page of trials."""

    after: Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")] | None = Field(
        None, description="The `last_id` of the page before."
    )
    limit: int = Field(100, ge=1, le=1000, description="At most so many entries.")


class TrialEpochAnswer(Answer):
    """What one epoch of a trial showed on the validation split."""

    epoch: int
    accuracy: float | None = Field(description="Null where it was not finite.")
    loss: float | None = Field(description="Null where it was not finite.")


class TrialAnswer(Answer):
    """One recipe that was tried."""

    number: int = Field(description="From 0, in the order in which they were queued.")
    state: TrialState = Field(
        description="`waiting` goes on when a worker takes it again; `pruned` was ended early, "
        "`stopped` with its job."
    )
    parameters: dict[str, Any] = Field(description="What it tries: fields of the recipe.")
    epochs: list[TrialEpochAnswer]
    accuracy: float | None = Field(description="Of the epoch whose weights it keeps.")
    loss: float | None = Field(description="Of the epoch whose weights it keeps.")
    error: JobError | None = Field(description="Why it failed.")
    started_at: datetime
    ended_at: datetime | None


class TrialPage(PageAnswer):
    """A page of the trials that were begun, by number."""

    data: list[TrialAnswer]
