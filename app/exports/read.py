"""Reads a job's items for an export: a snapshot, page by page, with nothing held between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic_core import from_json
from sqlalchemy import Text, cast, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.errors import DarkroomError, NotFoundError
from app.exports.rows import ExportRow, Provenance
from app.jobs.states import TERMINAL_JOB_STATES, ItemState
from app.jobs.tables import Item, Job
from app.models.tables import Model, ModelVersion

Only = Literal["all", "succeeded", "failed"]

_PAGE_ROWS_MAX = 5000
#: (class, score) pairs of one page, so that a large top-k does not grow the memory.
_PAGE_PAIRS = 50_000


class ExportMismatchError(DarkroomError):
    """The items read are not those that the job counts; the file was discarded."""

    code = "export_mismatch"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A job at the moment its export began; items recorded later are not in it."""

    job_id: str
    kind: str
    state: str
    seq: int
    total: int
    #: Items by state, as the job's row counts them.
    counts: Mapping[str, int]
    cancelled: int
    expired: int
    options: Mapping[str, Any]
    created_at: str
    ended_at: str | None
    provenance: Provenance

    @property
    def is_complete(self) -> bool:
        """Whether the job had ended, so that no item can follow."""
        return self.state in TERMINAL_JOB_STATES

    def compare(self, only: Only, found: Mapping[str, int]) -> None:
        """Raise ExportMismatchError where ``found`` rows by state are not those of this filter."""
        expected = {name: count for name, count in self.counts.items() if only in ("all", name)}
        if any(found.get(state, 0) != count for state, count in expected.items()):
            raise ExportMismatchError(
                f"job {self.job_id} counts {expected}, but the export found {dict(found)}"
            )


def take_snapshot(session: Session, tenant_id: str, job_id: str) -> Snapshot:
    """The job and its recogniser as they stand now.

    Counts and ``seq`` come from one row, which each recording updates in the transaction
    that writes its items: they describe exactly the items with a ``seq`` up to this one.

    Raises:
        NotFoundError: this tenant has no such job.
    """
    found = session.execute(
        select(Job, ModelVersion, Model.name)
        .outerjoin(ModelVersion, ModelVersion.id == Job.model_version_id)
        .outerjoin(Model, Model.id == ModelVersion.model_id)
        .where(Job.tenant_id == tenant_id, Job.id == job_id)
    ).one_or_none()
    if found is None:
        raise NotFoundError(f"there is no job {job_id}", code="job_not_found")
    job, version, model_name = found
    return Snapshot(
        job_id=job.id,
        kind=job.kind,
        state=job.state,
        seq=job.seq,
        total=job.total,
        counts={
            ItemState.SUCCEEDED.value: job.succeeded,
            ItemState.FAILED.value: job.failed,
            ItemState.SKIPPED.value: job.skipped,
        },
        cancelled=job.cancelled,
        expired=job.expired,
        options=job.options,
        created_at=job.created_at.isoformat(),
        ended_at=job.ended_at.isoformat() if job.ended_at else None,
        provenance=_provenance(job, version, model_name),
    )


def _provenance(job: Job, version: ModelVersion | None, model_name: str | None) -> Provenance:
    if version is not None:
        return Provenance(
            model=f"{model_name}@{version.number}",
            model_version_id=version.id,
            weights_sha256=version.weights_sha256,
            preprocess_sha256=version.preprocess_sha256,
        )
    if job.shared_version is not None:
        # Another tenant's, by what was granted then: it may not be any more.
        return Provenance(
            model=job.shared_version["reference"],
            model_version_id=job.shared_version_id,
            weights_sha256=job.shared_version["weights_sha256"],
            preprocess_sha256=job.shared_version["preprocess_sha256"],
        )
    return Provenance()


def iter_pages(
    db: Database, tenant_id: str, snapshot: Snapshot, only: Only, *, limit: int | None = None
) -> Iterator[Sequence[ExportRow]]:
    """The items in input order; one short transaction a page, none while the caller works."""
    limit = limit or page_rows(snapshot.options)
    conditions = [
        Item.job_id == snapshot.job_id,
        Item.tenant_id == tenant_id,
        Item.seq <= snapshot.seq,
    ]
    if only != "all":
        conditions.append(Item.state == only)
    statement = (
        select(
            Item.ordinal,
            Item.custom_id,
            Item.source,
            Item.state,
            # As text, for a parser that takes a third of the driver's time.
            cast(Item.prediction, Text),
            cast(Item.error, Text),
            Item.label,
            cast(Item.metadata_, Text),
        )
        .where(*conditions)
        .order_by(Item.ordinal)
        .limit(limit)
    )
    after = -1
    while True:
        with db.tenant(tenant_id) as session:
            found = session.execute(statement.where(Item.ordinal > after)).all()
        if found:
            yield [_parse(row) for row in found]
            after = found[-1][0]
        if len(found) < limit:
            return


def _parse(row: Any) -> ExportRow:
    ordinal, custom_id, source, state, prediction, error, label, metadata = row
    return ExportRow(
        ordinal,
        custom_id,
        source,
        state,
        None if prediction is None else from_json(prediction),
        None if error is None else from_json(error),
        label,
        None if metadata is None else from_json(metadata),
    )


def page_rows(options: Mapping[str, Any]) -> int:
    """Rows of one page: fewer where each row holds a long prediction."""
    pairs = options.get("top_k") or 1
    return max(1, min(_PAGE_ROWS_MAX, _PAGE_PAIRS // int(pairs)))
