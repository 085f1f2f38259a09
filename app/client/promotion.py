"""Finds and submits the evaluations that a promotion lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.client.datasets import Datasets
from app.client.errors import ApiError
from app.client.jobs import Jobs
from app.client.transport import Transport
from app.client.values import Alias, Evaluation, Job

if TYPE_CHECKING:
    from app.client.catalogue import Catalogue

#: Splits to measure on, the best first; a dataset version with neither is measured whole.
_SPLITS = ("test", "validation")


def submit_missing(
    catalogue: Catalogue,
    transport: Transport,
    model: str,
    number: int,
    *,
    alias: str,
    rule: Mapping[str, Any],
) -> list[Job]:
    """The jobs that evaluate the version, or the one in place, on images that it was not.

    Both are measured on the newest version of the gate's dataset, or of the ``rule``'s where
    the gate names none, and on its test split if it has one. Without a name it is the images of
    the newest evaluation of the version, or else of the one in place.

    Raises:
        ApiError: ``evaluation_missing``: nothing says on which images.
    """
    place = _place(catalogue, model, alias)
    gate = (place.gate if place is not None else None) or {}
    # The gate counts alone where there is one, but it may take any dataset.
    metric, named = gate.get("metric", rule["metric"]), gate.get("dataset") or rule["dataset"]
    numbers = [number]
    if place is not None and place.version != number:
        numbers.append(place.version)
    # Newest first.
    known = {each: list(catalogue.evaluations(model, each)) for each in numbers}
    where = _newest(Datasets(transport), named) if named else _last(list(known.values()))
    if where is None:
        raise ApiError(
            f"{model}@{number} was evaluated on nothing yet: name a dataset to evaluate it on",
            code="evaluation_missing",
            status=409,
        )
    source = {name: value for name, value in zip(("dataset", "split"), where, strict=True) if value}
    return [
        Jobs(transport).submit_evaluate(source, f"{model}@{each}")
        for each in numbers
        if not any(
            (found.dataset, found.split) == where and metric in found.metrics
            for found in known[each]
        )
    ]


def _place(catalogue: Catalogue, model: str, alias: str) -> Alias | None:
    try:
        return catalogue.alias(model, alias)
    except ApiError as error:
        if error.code != "model_not_found":
            raise
    return None


def _newest(datasets: Datasets, name: str) -> tuple[str, str | None] | None:
    version = max(datasets.versions(name), key=lambda each: each.number, default=None)
    if version is None:
        return None
    split = next((split for split in _SPLITS if version.counts.get(split)), None)
    return f"{name}@{version.number}", split


def _last(known: Sequence[Sequence[Evaluation]]) -> tuple[str, str | None] | None:
    newest = next((found[0] for found in known if found), None)
    return None if newest is None else (newest.dataset, newest.split)
