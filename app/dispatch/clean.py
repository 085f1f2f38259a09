"""Old notifications: events that webhooks have had, and deliveries that have ended."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, func, select, tuple_

from app.db.session import Database
from app.jobs.events import Event
from app.jobs.states import EventState
from app.webhooks.states import DeliveryState
from app.webhooks.tables import WebhookDelivery

#: Rows deleted in one transaction.
CLEAN_BATCH = 1000


def clean_notifications(db: Database, *, days: float) -> int:
    """Delete events and deliveries older than ``days`` that nobody is owed; how many rows.

    At most :data:`CLEAN_BATCH` of each; any number of sweepers may do so at once.

    Raises:
        UnavailableError: the database does not answer.
    """
    before = func.now() - timedelta(days=days)
    events = (
        select(Event.job_id, Event.number)
        .where(Event.state == EventState.FANNED_OUT, Event.created_at < before)
        .limit(CLEAN_BATCH)
        .with_for_update(skip_locked=True)
    )
    deliveries = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.state.in_([DeliveryState.DELIVERED, DeliveryState.FAILED]),
            WebhookDelivery.created_at < before,
        )
        .limit(CLEAN_BATCH)
        .with_for_update(skip_locked=True)
    )
    deleted = 0
    for statement in (
        delete(Event).where(tuple_(Event.job_id, Event.number).in_(events)).returning(Event.number),
        delete(WebhookDelivery)
        .where(WebhookDelivery.id.in_(deliveries))
        .returning(WebhookDelivery.id),
    ):
        with db.system() as session:
            gone = session.execute(statement.execution_options(synchronize_session=False)).all()
            deleted += len(gone)
    return deleted
