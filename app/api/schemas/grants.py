"""Grants, shared models and query budgets as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.base import Answer, Name, PageAnswer, Parameters, Request

RightWord = Literal["run", "evaluate", "export"]
AnswersWord = Literal["full", "rounded", "top1"]
ItemsPerDay = Annotated[int, Field(ge=1, le=2**63 - 1)]


class GrantPath(Parameters):
    """Whose rights on which model."""

    name: Name = Field(description="The model's name.")
    tenant: Name = Field(description="The name of the tenant that may use it.")


class GiveGrant(Request):
    """What another tenant may do with all versions of the model, now and to come."""

    rights: Annotated[list[RightWord], Field(min_length=1, max_length=3)] = Field(
        description="`run`: recognise any images; `evaluate`: only labelled ones of a dataset; "
        "`export`: take the weights away."
    )
    answers: AnswersWord = Field(
        "rounded",
        description="`full` scores, scores `rounded` to hundredths, or the best class alone with "
        "its score in tenths (`top1`). Exact scores are what copies of a model are learned from.",
    )
    max_items_per_day: ItemsPerDay | None = Field(
        None, description="Images that it answers the tenant in a day (UTC); null: any number."
    )


class GrantAnswer(Answer):
    """What another tenant may do with a model."""

    id: str
    model: str
    tenant: str
    rights: list[RightWord]
    answers: AnswersWord
    max_items_per_day: int | None
    items_today: int = Field(description="Images of jobs that it planned today (UTC).")
    created_at: datetime
    updated_at: datetime


class GrantPage(PageAnswer):
    """A page of the grants on a model, newest first."""

    data: list[GrantAnswer]


class SharedModelAnswer(Answer):
    """A model of another tenant that this one may use."""

    id: str = Field(description="The grant's.")
    model: str = Field(description="`owner/name`, as jobs name it.")
    rights: list[RightWord]
    answers: AnswersWord
    max_items_per_day: int | None
    items_today: int
    aliases: dict[str, int] = Field(description="Alias → version number.")
    version_numbers: list[int] = Field(description="Versions that take jobs, highest first.")
    created_at: datetime


class SharedModelPage(PageAnswer):
    """A page of models that others share with this tenant, newest first."""

    data: list[SharedModelAnswer]


class ExportQuery(Parameters):
    """Whose model."""

    owner: Name | None = Field(
        None, description="The tenant that shares the model; left out, it is an own one."
    )


class WeightsFile(Answer):
    """The file that the weights are downloaded as."""

    filename: str
    size_bytes: int
    sha256: str


class SpecAnswer(Answer):
    """A version apart from its weights: all that it takes to use them elsewhere."""

    model: str = Field(description="`name`, or `owner/name`.")
    number: int
    arch: str = Field(description="`small_cnn`, or the name of a torchvision builder.")
    arch_options: dict[str, Any]
    classes: list[str] = Field(description="In the order of the network's outputs.")
    preprocess: dict[str, Any] = Field(description="How an image becomes the network's input.")
    weights: WeightsFile


class SetBudget(Request):
    """How much a key may have answered."""

    max_items_per_day: ItemsPerDay | None = Field(
        description="Images in a day (UTC), by any model; null: any number."
    )


class BudgetAnswer(Answer):
    """How much the keys of a line may have answered, and had planned today."""

    max_items_per_day: int | None
    items_today: int = Field(description="Counted only while there is a budget.")
