"""Deletes rows that nobody asks for any more; each step is bounded and skips what others hold."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, tuple_, update
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs.tables import IdempotencyKey, WorkerRow

#: A client that repeats a request does so long before.
IDEMPOTENCY_KEY_AGE = timedelta(hours=24)
#: How long a worker that has gone is still listed.
WORKER_AGE = timedelta(hours=24)
#: A worker that said nothing for so long is gone; its leases ended long before.
WORKER_SILENCE = timedelta(hours=1)
#: Rows of one kind in one step.
_BATCH = 1000


def clean_rows(db: Database) -> int:
    """Delete old idempotency keys and the rows of workers that have gone; how many.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        keys = _delete_idempotency_keys(session)
    with db.system() as session:
        _bury_silent_workers(session)
        workers = _delete_workers(session)
    return keys + workers


def _delete_idempotency_keys(session: Session) -> int:
    key = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.key)
    old = (
        select(IdempotencyKey.tenant_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.now() - IDEMPOTENCY_KEY_AGE)
        .order_by(IdempotencyKey.created_at)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    return _count(session, delete(IdempotencyKey).where(key.in_(old)).returning(IdempotencyKey.key))


def _bury_silent_workers(session: Session) -> None:
    session.execute(
        update(WorkerRow)
        .where(
            WorkerRow.id.in_(
                select(WorkerRow.id)
                .where(
                    WorkerRow.gone_at.is_(None),
                    WorkerRow.last_seen_at < func.now() - WORKER_SILENCE,
                )
                .limit(_BATCH)
                .with_for_update(skip_locked=True)
            )
        )
        .values(gone_at=func.now())
        .execution_options(synchronize_session=False)
    )


def _delete_workers(session: Session) -> int:
    gone = (
        select(WorkerRow.id)
        .where(
            WorkerRow.gone_at < func.now() - WORKER_AGE,
            # One that beats although another took its name is still ending.
            or_(
                WorkerRow.last_seen_at < func.now() - WORKER_SILENCE,
                WorkerRow.last_seen_at <= WorkerRow.gone_at,
            ),
        )
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    return _count(session, delete(WorkerRow).where(WorkerRow.id.in_(gone)).returning(WorkerRow.id))


def _count(session: Session, statement: Any) -> int:
    statement = statement.execution_options(synchronize_session=False)
    return len(session.execute(statement).all())
