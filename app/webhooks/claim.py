"""Claiming: which delivery a process sends next, under a lease and with a fencing token.

Whoever dies between the POST and its record leaves a lease that ends, and the delivery is
claimed again; not for ever, since each claim counts as a try.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import case, func, select, text
from sqlalchemy.orm import Session

from app.db.transition import transition
from app.webhooks.states import DELIVERY_SOURCES, DeliveryState, WebhookState
from app.webhooks.tables import Webhook, WebhookDelivery

#: Well beyond the longest POST with the look-up of its name.
LEASE_SECONDS = 60
#: 5 s, 15 s, 45 s, … and at most 8 h between tries: eleven of them fill most of a day.
MOST_TRIES = 11


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this process may send; ``attempt`` is the fencing token."""

    id: str
    tenant_id: str
    webhook_id: str
    attempt: int
    tries: int
    payload: dict[str, Any]
    url: str
    is_enabled: bool
    #: The tokens of the secrets that sign it, the newest first; none in a webhook from before.
    sealed_secrets: tuple[str, ...] = field(default=(), repr=False)


# One step through an index to find each webhook that is owed something, and one to its first due
# delivery: how many wait behind that one does not matter. In one scan by time, 200,000 deliveries
# of one busy tenant stood before everybody else's and before the answer that nothing is due: 84 ms
# a claim, and 4 ms so, with 520 webhooks that are owed something.
DUE = text(
    """
    WITH RECURSIVE owed AS (
        (SELECT webhook_id, tenant_id FROM webhook_deliveries
         WHERE state IN ('pending', 'sending')
         ORDER BY webhook_id LIMIT 1)
        UNION ALL
        SELECT following.webhook_id, following.tenant_id
        FROM owed
        CROSS JOIN LATERAL (
            SELECT webhook_id, tenant_id FROM webhook_deliveries
            WHERE state IN ('pending', 'sending') AND webhook_id > owed.webhook_id
            ORDER BY webhook_id LIMIT 1
        ) following
    ), heads AS (
        SELECT owed.webhook_id, head.due_at
        FROM owed
        CROSS JOIN LATERAL (
            SELECT due_at FROM webhook_deliveries
            WHERE state IN ('pending', 'sending') AND webhook_id = owed.webhook_id
              AND due_at <= now()
            ORDER BY due_at LIMIT 1
        ) head
        WHERE owed.tenant_id <> ALL(:busy) AND owed.webhook_id <> ALL(:busy_webhooks)
        ORDER BY head.due_at
        -- Keeps the order, so that the first that can be locked ends the search.
        OFFSET 0
    )
    SELECT taken.id, taken.tries
    FROM heads
    CROSS JOIN LATERAL (
        SELECT id, tries FROM webhook_deliveries
        WHERE state IN ('pending', 'sending') AND webhook_id = heads.webhook_id
          AND due_at <= now()
        ORDER BY due_at LIMIT 1
        FOR UPDATE SKIP LOCKED
    ) taken
    LIMIT 1
    """
)


def claim_delivery(
    session: Session, *, busy: Collection[str] = (), busy_webhooks: Collection[str] = ()
) -> Claimed | None:
    """Take the delivery that has been due for longest, of no tenant or webhook that is busy.

    Due is a pending one at its time, or one whose sender's lease has ended.
    """
    words = {"busy": list(busy), "busy_webhooks": list(busy_webhooks)}
    while (due := session.execute(DUE, words).first()) is not None:
        if due.tries < MOST_TRIES or not _give_up(session, due.id):
            row = _take(session, due.id)
            return _claimed(session, row) if row is not None else None
    return None


def _take(session: Session, delivery_id: str) -> Any | None:
    """Its row under our lease, one try more."""
    rows = transition(
        session,
        WebhookDelivery,
        DeliveryState.SENDING,
        sources=DELIVERY_SOURCES[DeliveryState.SENDING],
        where=[WebhookDelivery.id == delivery_id],
        values={
            "attempt": WebhookDelivery.attempt + 1,
            "tries": WebhookDelivery.tries + 1,
            "due_at": func.now() + timedelta(seconds=LEASE_SECONDS),
            "last_tried_at": func.now(),
        },
        returning=(
            WebhookDelivery.id,
            WebhookDelivery.tenant_id,
            WebhookDelivery.webhook_id,
            WebhookDelivery.attempt,
            WebhookDelivery.tries,
            WebhookDelivery.payload,
        ),
    )
    return rows[0] if rows else None


def _give_up(session: Session, delivery_id: str) -> bool:
    """End a delivery whose sender died at its last try; else it would be sent for ever."""
    moved = transition(
        session,
        WebhookDelivery,
        DeliveryState.FAILED,
        sources=frozenset({DeliveryState.SENDING}),
        where=[WebhookDelivery.id == delivery_id],
        values={
            "last_status": None,
            "last_error": "whoever sent it died before what became of it could be recorded",
        },
    )
    return bool(moved)


def _claimed(session: Session, row: Any) -> Claimed:
    webhook = session.execute(
        select(
            Webhook.url,
            Webhook.state,
            Webhook.sealed_secret,
            case(
                (Webhook.previous_secret_ends_at > func.now(), Webhook.sealed_previous_secret)
            ).label("previous"),
        ).where(Webhook.id == row.webhook_id)
    ).one()
    return Claimed(
        id=row.id,
        tenant_id=row.tenant_id,
        webhook_id=row.webhook_id,
        attempt=row.attempt,
        tries=row.tries,
        payload=row.payload,
        url=webhook.url,
        is_enabled=webhook.state == WebhookState.ENABLED,
        sealed_secrets=tuple(filter(None, (webhook.sealed_secret, webhook.previous))),
    )
