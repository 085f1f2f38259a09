"""Deletes rows that nobody asks for any more; each step is bounded and skips what others hold."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, func, or_, select, tuple_, update
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningDelete

from app.db.session import Database
from app.jobs.events import Event
from app.jobs.states import EventState
from app.jobs.tables import IdempotencyKey, WorkerRow
from app.jobs.training_time import WINDOW
from app.models.tables import QueryCount
from app.training.tables import TrainingTime
from app.webhooks.secrets import forget_ended_secrets
from app.webhooks.states import DeliveryState
from app.webhooks.tables import WebhookDelivery

#: A client that repeats a request does so long before.
IDEMPOTENCY_KEY_AGE = timedelta(hours=24)
#: How long a worker that has gone is still listed.
WORKER_AGE = timedelta(hours=24)
#: A worker that said nothing for so long is gone; its leases ended long before.
WORKER_SILENCE = timedelta(hours=1)
#: How long it can be looked up what was asked on a day; budgets ask for the present one.
QUERY_COUNT_DAYS = 31
#: Rows of one kind that are deleted in one transaction.
BATCH = 1000


def clean_rows(db: Database, *, event_days: float) -> int:
    """Delete a batch of each kind of row that is too old to keep; how many rows in all.

    Idempotency keys, workers that have gone, and, older than ``event_days``, events that webhooks
    have had and deliveries that have ended; training time that no quota counts any more. Fewer
    than :data:`BATCH` mean that no more are left.
    Secrets of webhooks that were replaced are forgotten meanwhile.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        _bury_silent_workers(session)
    with db.system() as session:
        forget_ended_secrets(session)
    deleted = 0
    for statement in (
        _old_keys(),
        _gone_workers(),
        _old_training_time(),
        _old_query_counts(),
        *_old_notifications(event_days),
    ):
        with db.system() as session:
            gone = session.execute(statement.execution_options(synchronize_session=False)).all()
            deleted += len(gone)
    return deleted


def _old_keys() -> ReturningDelete[Any]:
    key = tuple_(IdempotencyKey.tenant_id, IdempotencyKey.key)
    old = (
        select(IdempotencyKey.tenant_id, IdempotencyKey.key)
        .where(IdempotencyKey.created_at < func.now() - IDEMPOTENCY_KEY_AGE)
        .order_by(IdempotencyKey.created_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return delete(IdempotencyKey).where(key.in_(old)).returning(IdempotencyKey.key)


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
                .limit(BATCH)
                .with_for_update(skip_locked=True)
            )
        )
        .values(gone_at=func.now())
        .execution_options(synchronize_session=False)
    )


def _gone_workers() -> ReturningDelete[Any]:
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
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return delete(WorkerRow).where(WorkerRow.id.in_(gone)).returning(WorkerRow.id)


def _old_training_time() -> ReturningDelete[Any]:
    key = tuple_(TrainingTime.chunk_id, TrainingTime.attempt)
    old = (
        select(TrainingTime.chunk_id, TrainingTime.attempt)
        .where(TrainingTime.ended_at < func.now() - WINDOW)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return delete(TrainingTime).where(key.in_(old)).returning(TrainingTime.attempt)


def _old_query_counts() -> ReturningDelete[Any]:
    key = tuple_(QueryCount.tenant_id, QueryCount.subject, QueryCount.day)
    old = (
        select(QueryCount.tenant_id, QueryCount.subject, QueryCount.day)
        .where(QueryCount.day < func.current_date() - QUERY_COUNT_DAYS)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return delete(QueryCount).where(key.in_(old)).returning(QueryCount.day)


def _old_notifications(days: float) -> tuple[ReturningDelete[Any], ReturningDelete[Any]]:
    before = func.now() - timedelta(days=days)
    events = (
        select(Event.job_id, Event.number)
        .where(Event.state == EventState.FANNED_OUT, Event.created_at < before)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    deliveries = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.state.in_([DeliveryState.DELIVERED, DeliveryState.FAILED]),
            WebhookDelivery.created_at < before,
        )
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    return (
        delete(Event).where(tuple_(Event.job_id, Event.number).in_(events)).returning(Event.number),
        delete(WebhookDelivery)
        .where(WebhookDelivery.id.in_(deliveries))
        .returning(WebhookDelivery.id),
    )
