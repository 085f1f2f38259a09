"""The trials of a search as rows: begun under a lock, written epoch by epoch, ended as items."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Row, Select, and_, cast, extract, func, insert, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from app.jobs.claim import Lease, fenced, holds
from app.jobs.states import ChunkState, ChunkTask, ItemState
from app.jobs.tables import Chunk, Item, Job
from app.training.search import Search, Trial, TrialEpoch, TrialMetric, TrialState
from app.training.tables import TrialRow

# For the rest of the transaction; a second worker that asks meanwhile sees what the first wrote.
_ASK = text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))")
# Forty workers that begin at once ask one after the other, each for a part of a second: the last
# waits longer than for any row, and its turn comes all the same.
_PATIENTLY = text("SET LOCAL lock_timeout = '55s'")

_ENDED: Mapping[str, TrialState] = {
    ItemState.SUCCEEDED: "complete",
    ItemState.SKIPPED: "pruned",
    ItemState.FAILED: "failed",
}
_OPEN: Mapping[str, TrialState] = {
    ChunkState.RUNNING: "running",
    ChunkState.PENDING: "waiting",
}


def begin_trial(
    session: Session, lease: Lease, suggest: Callable[[list[Trial]], Mapping[str, Any]]
) -> dict[str, Any]:
    """The parameters of the trial: those that it has, or what ``suggest`` makes of the others.

    One trial of a search is begun at a time, so that each knows of all before it.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    session.execute(_PATIENTLY)
    session.execute(_ASK, {"name": f"darkroom.search.{lease.job_id}"})
    if session.execute(select(Chunk.id).where(*holds(lease))).first() is None:
        raise fenced(lease)
    known = session.scalar(select(TrialRow.parameters).where(*_mine(lease)))
    if known is not None:
        return dict(known)
    parameters = dict(suggest(list_trials(session, lease.tenant_id, lease.job_id)))
    session.execute(
        insert(TrialRow).values(
            job_id=lease.job_id,
            number=lease.lo,
            tenant_id=lease.tenant_id,
            parameters=parameters,
        )
    )
    return parameters


def note_epoch(session: Session, lease: Lease, epoch: TrialEpoch) -> None:
    """Write what an epoch showed; one that is taught again is written again."""
    shown = cast({str(epoch.epoch): [_finite(epoch.accuracy), _finite(epoch.loss)]}, JSONB)
    session.execute(
        update(TrialRow)
        .where(*_mine(lease))
        .values(epochs=TrialRow.epochs.concat(shown))
        .execution_options(synchronize_session=False)
    )


def complete_trial(session: Session, lease: Lease, kept: TrialEpoch) -> None:
    """Write what the epoch showed whose weights the trial keeps."""
    session.execute(
        update(TrialRow)
        .where(*_mine(lease))
        .values(accuracy=kept.accuracy, loss=kept.loss)
        .execution_options(synchronize_session=False)
    )


def list_trials(session: Session, tenant_id: str, job_id: str) -> list[Trial]:
    """All trials of a search that were begun, by number."""
    return [_read(row) for row in session.execute(_rows(tenant_id, job_id))]


def page_trials(
    session: Session, tenant_id: str, job_id: str, *, after: int | None = None, limit: int = 100
) -> tuple[list[Trial], bool]:
    """A page of the trials that were begun, by number, and whether more follow."""
    query = _rows(tenant_id, job_id).limit(limit + 1)
    if after is not None:
        query = query.where(TrialRow.number > after)
    rows = session.execute(query).all()
    return [_read(row) for row in rows[:limit]], len(rows) > limit


def best_trial(trials: list[Trial], metric: TrialMetric) -> Trial | None:
    """The complete trial that did best; of several alike the one better by the other metric."""

    def rank(trial: Trial) -> tuple[float, float, int]:
        accuracy, loss = -float(trial.accuracy or 0), float(trial.loss or 0)
        one, other = (loss, accuracy) if metric == "loss" else (accuracy, loss)
        return one, other, trial.number

    complete = [trial for trial in trials if trial.state == "complete"]
    return min(complete, key=rank, default=None)


def seconds_left(session: Session, lease: Lease, search: Search) -> float | None:
    """Seconds until the search's time is up, by the database's clock; None where it has no end."""
    if search.max_seconds is None:
        return None
    passed = session.scalar(
        select(extract("epoch", func.now() - Job.running_at)).where(Job.id == lease.job_id)
    )
    return search.max_seconds - float(passed or 0)


def _mine(lease: Lease) -> list[Any]:
    return [
        TrialRow.tenant_id == lease.tenant_id,
        TrialRow.job_id == lease.job_id,
        TrialRow.number == lease.lo,
    ]


def _rows(tenant_id: str, job_id: str) -> Select[Any]:
    return (
        select(
            TrialRow.number,
            TrialRow.parameters,
            TrialRow.epochs,
            TrialRow.accuracy,
            TrialRow.loss,
            TrialRow.started_at,
            Item.state.label("ended"),
            Item.error,
            Chunk.state.label("chunk"),
            Chunk.done_at,
        )
        .outerjoin(Item, and_(Item.job_id == TrialRow.job_id, Item.ordinal == TrialRow.number))
        .join(
            Chunk,
            and_(
                Chunk.job_id == TrialRow.job_id,
                Chunk.lo == TrialRow.number,
                Chunk.task == ChunkTask.TRIAL,
            ),
        )
        .where(TrialRow.tenant_id == tenant_id, TrialRow.job_id == job_id)
        .order_by(TrialRow.number)
    )


def _read(row: Row[Any]) -> Trial:
    return Trial(
        number=row.number,
        state=_OPEN.get(row.chunk, "stopped") if row.ended is None else _ENDED[row.ended],
        parameters=row.parameters,
        epochs=[
            TrialEpoch(int(epoch), *shown)
            for epoch, shown in sorted(row.epochs.items(), key=lambda each: int(each[0]))
        ],
        accuracy=row.accuracy,
        loss=row.loss,
        error=row.error,
        started_at=row.started_at,
        ended_at=row.done_at,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
