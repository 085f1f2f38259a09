"""Evaluations: recognising labelled items, and measuring how right the answers are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy.orm import Session

from app.datasets.resolve import resolve_dataset
from app.errors import InvalidInputError
from app.jobs.add import add_job
from app.jobs.claim import Lease
from app.jobs.limits import NO_LIMITS, Limits
from app.jobs.query_budget import check_budget
from app.jobs.source import check_source
from app.jobs.states import ChunkTask, JobKind
from app.jobs.tables import Job
from app.locations import Locations
from app.models.resolve import get_version
from app.models.shared import Chosen, choose_version, shared_version

#: Scores of one chunk, which lie in memory before they are stored: 64 MiB.
_CHUNK_SCORES = 2**24


def submit_evaluate(
    session: Session,
    tenant_id: str,
    *,
    source: Mapping[str, Any],
    model: str,
    options: Mapping[str, Any],
    own_bucket: str,
    locations: Locations,
    priority: int = 0,
    limits: Limits = NO_LIMITS,
    metadata: Mapping[str, Any] | None = None,
    key_id: str | None = None,
) -> Job:
    """Submit the evaluation of one model version on the labelled items of ``source``.

    ``options`` are those of the kind, complete: ``top_k``, ``bootstrap_samples``, ``hardest``,
    ``seed``, ``keep_temperature``. The version is resolved now, and its items count against query
    budgets, as in a predict job.

    Raises:
        ForbiddenError: ``location_not_allowed``.
        InvalidInputError: ``input_unlabelled``, ``classes_differ``: nothing could be measured.
        TooManyError: ``query_budget_spent``.
    """
    labelled = source.get("dataset") is not None
    version = choose_version(session, tenant_id, model, labelled=labelled)
    kept, dataset_version_id = check_source(
        session, tenant_id, source, own_bucket=own_bucket, locations=locations
    )
    _require_labels(kept)
    if dataset_version_id is not None:
        data = resolve_dataset(session, tenant_id, dataset_version_id)
        _require_shared_class(data.classes, _classes_of(session, tenant_id, version), model)
    check_budget(session, tenant_id, key_id, version.shared, kept)
    return add_job(
        session,
        tenant_id,
        JobKind.EVALUATE,
        first=ChunkTask.PLAN,
        input=kept,
        options=dict(options),
        dataset_version_id=dataset_version_id,
        key_id=key_id,
        **version.columns,
        priority=priority,
        limits=limits,
        metadata=metadata,
    )


def most_evaluated_items(session: Session, lease: Lease) -> int:
    """Items of a chunk whose complete scores fit into memory."""
    version = Chosen(str(lease.model_version_id))
    if lease.is_shared:
        shared = shared_version(session, version.id)
        classes: Collection[str] = shared.classes if shared is not None else ()
    else:
        classes = _classes_of(session, lease.tenant_id, version)
    return max(1, _CHUNK_SCORES // max(1, len(classes)))


def _classes_of(session: Session, tenant_id: str, version: Chosen) -> Collection[str]:
    if version.shared is not None:
        return version.shared.classes
    return get_version(session, tenant_id, version.id).classes or ()


def _require_labels(source: Mapping[str, Any]) -> None:
    """Refuse what surely has no labels; of other inputs the report says how many have none."""
    items = source.get("items")
    if "prefix" in source or (items and not any(item.get("label") for item in items)):
        raise InvalidInputError(
            "an evaluation needs labelled images, and this input has no label; name a dataset, "
            "an upload with labels, a manifest with a label column, or items with labels",
            code="input_unlabelled",
        )


def _require_shared_class(theirs: Collection[str], ours: Collection[str], model: str) -> None:
    if set(theirs).isdisjoint(ours):
        raise InvalidInputError(
            f"no class of the dataset is a class of {model}: the dataset has "
            f"{_listed(theirs)}, the model {_listed(ours)}",
            code="classes_differ",
        )


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(repr(name[:60]) for name in list(names)[:5])
    return shown + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
