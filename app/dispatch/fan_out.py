"""From the outbox to the webhooks: one delivery for each webhook that wants an event."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.jobs.events import Event
from app.jobs.states import EventState
from app.webhooks.deliveries import new_delivery, payload_of
from app.webhooks.states import WebhookState
from app.webhooks.tables import Webhook, WebhookDelivery

#: Events handled in one transaction.
BATCH = 500


def fan_out(db: Database) -> int:
    """Turn events that webhooks have not had into deliveries; how many events, BATCH at most.

    By state and never by "number above the last seen": what commits late is found too. Events
    and deliveries move in one transaction, so none is left out or written twice.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        events = _take_events(session)
        if not events:
            return 0
        webhooks = session.scalars(
            select(Webhook)
            .where(
                Webhook.state == WebhookState.ENABLED,
                Webhook.tenant_id.in_({event.tenant_id for event in events}),
            )
            # A webhook that is deleted meanwhile waits for this, and takes its deliveries along.
            .with_for_update(read=True, key_share=True)
        ).all()
        rows = [
            _delivery(webhook, event)
            for event in events
            for webhook in webhooks
            if webhook.tenant_id == event.tenant_id and event.type in webhook.events
        ]
        if rows:
            session.execute(insert(WebhookDelivery).on_conflict_do_nothing(), rows)
        return len(events)


def _take_events(session: Session) -> list[Any]:
    pending = (
        select(Event.job_id, Event.number)
        .where(Event.state == EventState.PENDING)
        .order_by(Event.created_at)
        .limit(BATCH)
        .with_for_update(skip_locked=True)
    )
    taken = transition(
        session,
        Event,
        EventState.FANNED_OUT,
        sources=frozenset({EventState.PENDING}),
        where=[tuple_(Event.job_id, Event.number).in_(pending)],
        returning=(
            Event.job_id,
            Event.number,
            Event.tenant_id,
            Event.type,
            Event.data,
            Event.created_at,
        ),
    )
    return list(taken)


def _delivery(webhook: Webhook, event: Any) -> dict[str, Any]:
    data = {"job_id": event.job_id, "event": event.number, **event.data}
    payload = payload_of(event.type, event.created_at.isoformat(), data)
    columns = new_delivery(webhook, event.type, payload, job_id=event.job_id, number=event.number)
    # Not now: due in the order in which things happened.
    return {**columns, "due_at": event.created_at}
