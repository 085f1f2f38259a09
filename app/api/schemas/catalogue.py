"""Gates, promotions and evaluations as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from app.api.schemas.base import Answer, Name, Number, PageAnswer, Request
from app.models.states import GateMetric

_METRIC = "What is compared; precision, recall and F1 are means over the classes."
_MARGIN = (
    "By how much at least the metric must be above that of the version in place; below 0, by how "
    "much it may be worse."
)
_MINIMUM = "What the metric must be at least, whatever is in place."
_DATASET = "Only evaluations on versions of this dataset count; null: on any."


class SetGate(Request):
    """What a version must show before the alias may point at it."""

    metric: GateMetric = Field(description=_METRIC)
    margin: float = Field(0.0, ge=-1, le=1, description=_MARGIN)
    minimum: float | None = Field(None, ge=0, le=1, description=_MINIMUM)
    dataset: Name | None = Field(None, description=_DATASET)


class GateAnswer(Answer):
    """A gate before an alias."""

    metric: GateMetric = Field(description=_METRIC)
    margin: float = Field(description=_MARGIN)
    minimum: float | None = Field(description=_MINIMUM)
    dataset: str | None = Field(description=_DATASET)


class PromoteVersion(Request):
    """Which version shall take the alias."""

    version: Number
    gate: SetGate | None = Field(
        None, description="What it must show where no gate stands before the alias."
    )


class VerdictAnswer(Answer):
    """What a gate found."""

    passed: bool
    code: str | None = Field(description="Why not, as a word; null where it passed.")
    reason: str
    metric: GateMetric
    margin: float
    minimum: float | None
    candidate: float | None = Field(description="The metric of the version that would come.")
    incumbent: float | None = Field(description="The metric of the version in place.")
    measured_on: str | None = Field(description="The images that both answered.")


class AliasAnswer(Answer):
    """Where an alias points, and what stands before it."""

    model: str
    alias: str
    version: int = Field(description="The version's number.")
    version_id: str
    gate: GateAnswer | None
    verdict: VerdictAnswer | None = Field(
        description="What the gate found when the alias was last moved, if it was asked."
    )
    updated_at: datetime


class AliasMoveAnswer(Answer):
    """One move of an alias."""

    id: str
    alias: str
    kind: Literal["moved", "promoted", "rolled_back"]
    from_version: int | None = Field(description="Null for the first move.")
    to_version: int
    verdict: dict[str, Any] | None = Field(description="What the gate found, where one was asked.")
    created_at: datetime


class AliasMovePage(PageAnswer):
    """A page of an alias's moves, newest first."""

    data: list[AliasMoveAnswer]


class EvaluationAnswer(Answer):
    """How good a version was on the images of one split."""

    id: str
    dataset: str = Field(description="`name@number` of the dataset version.")
    split: Literal["train", "validation", "test"] | None = Field(
        description="Null where it was the whole version."
    )
    items: int = Field(description="Images that were answered.")
    metrics: dict[str, float]
    job_id: str
    created_at: datetime


class EvaluationPage(PageAnswer):
    """A page of a version's evaluations, newest first."""

    data: list[EvaluationAnswer]
