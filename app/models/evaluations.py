"""How good versions were, set by set: what gates compare and the catalogue shows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from app.datasets.tables import Dataset, DatasetVersion, Split
from app.ids import EVALUATION, new_id
from app.models.tables import Evaluation


@dataclass(frozen=True, slots=True)
class NamedEvaluation:
    """An evaluation as people read it."""

    id: str
    #: ``digits@3``: the dataset version.
    dataset: str
    #: None where it was the whole version.
    split: str | None
    items: int
    metrics: dict[str, float]
    job_id: str
    created_at: datetime


def record_evaluation(
    session: Session,
    tenant_id: str,
    *,
    version_id: str,
    dataset_version_id: str,
    split: Split | None,
    job_id: str,
    items: int,
    scores: Mapping[str, Any],
) -> None:
    """Keep the numbers of ``scores`` that are finite and stand at its top; rows are only added."""
    session.add(
        Evaluation(
            id=new_id(EVALUATION),
            tenant_id=tenant_id,
            model_version_id=version_id,
            dataset_version_id=dataset_version_id,
            split=split,
            job_id=job_id,
            items=items,
            metrics={
                name: float(value)
                for name, value in scores.items()
                if isinstance(value, (int, float)) and math.isfinite(value)
            },
        )
    )
    session.flush()


def list_evaluations(
    session: Session,
    tenant_id: str,
    version_id: str,
    *,
    after: str | None = None,
    limit: int = 100,
) -> tuple[list[NamedEvaluation], bool]:
    """A page of a version's evaluations, newest first, and whether more follow."""
    statement = (
        select(Evaluation, Dataset.name, DatasetVersion.number)
        .join(DatasetVersion, DatasetVersion.id == Evaluation.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(Evaluation.tenant_id == tenant_id, Evaluation.model_version_id == version_id)
    )
    if after is not None:
        statement = statement.where(Evaluation.id < after)
    rows = session.execute(statement.order_by(Evaluation.id.desc()).limit(limit + 1)).all()
    return [_named(*row) for row in rows[:limit]], len(rows) > limit


def latest_evaluation(
    session: Session, tenant_id: str, version_id: str, metric: str, dataset_id: str | None
) -> NamedEvaluation | None:
    """The newest evaluation of a version that has the metric, on this dataset or on any."""
    statement = (
        select(Evaluation, Dataset.name, DatasetVersion.number)
        .join(DatasetVersion, DatasetVersion.id == Evaluation.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(
            Evaluation.tenant_id == tenant_id,
            Evaluation.model_version_id == version_id,
            Evaluation.metrics.has_key(metric),
        )
    )
    if dataset_id is not None:
        statement = statement.where(Dataset.id == dataset_id)
    row = session.execute(statement.order_by(Evaluation.id.desc()).limit(1)).one_or_none()
    return None if row is None else _named(*row)


def latest_common(
    session: Session,
    tenant_id: str,
    *,
    candidate_id: str,
    incumbent_id: str,
    metric: str,
    dataset_id: str | None,
) -> tuple[NamedEvaluation, NamedEvaluation] | None:
    """The newest evaluations of two versions on one split of one dataset version, or None.

    Of several of the incumbent, one on no more of the images comes first, the fullest of them:
    images without an answer are in no score.
    """
    ours, theirs = aliased(Evaluation), aliased(Evaluation)
    statement = (
        select(ours, theirs, Dataset.name, DatasetVersion.number)
        .join(
            theirs,
            (theirs.dataset_version_id == ours.dataset_version_id)
            & theirs.split.is_not_distinct_from(ours.split),
        )
        .join(DatasetVersion, DatasetVersion.id == ours.dataset_version_id)
        .join(Dataset, Dataset.id == DatasetVersion.dataset_id)
        .where(
            ours.tenant_id == tenant_id,
            theirs.tenant_id == tenant_id,
            ours.model_version_id == candidate_id,
            theirs.model_version_id == incumbent_id,
            ours.metrics.has_key(metric),
            theirs.metrics.has_key(metric),
        )
    )
    if dataset_id is not None:
        statement = statement.where(Dataset.id == dataset_id)
    row = session.execute(
        statement.order_by(
            ours.id.desc(),
            (theirs.items <= ours.items).desc(),
            theirs.items.desc(),
            theirs.id.desc(),
        ).limit(1)
    ).one_or_none()
    if row is None:
        return None
    ours_row, theirs_row, name, number = row
    return _named(ours_row, name, number), _named(theirs_row, name, number)


def _named(row: Evaluation, name: str, number: int) -> NamedEvaluation:
    return NamedEvaluation(
        id=row.id,
        dataset=f"{name}@{number}",
        split=row.split,
        items=row.items,
        metrics=dict(row.metrics),
        job_id=row.job_id,
        created_at=row.created_at,
    )
