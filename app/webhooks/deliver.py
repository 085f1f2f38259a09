"""Delivering: claim under a lease, POST, write down what became of it.

At least once: whoever dies between the POST and its record leaves a lease that ends, and the
delivery is sent again under the same ``webhook-id``, by which receivers know it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.errors import InvalidInputError
from app.points import reach
from app.webhooks.guard import Guard
from app.webhooks.register import (
    GONE,
    disable_failing_webhook,
    disable_webhook,
    note_answer,
)
from app.webhooks.send import Outcome, post
from app.webhooks.states import DELIVERY_SOURCES, DeliveryState, WebhookState
from app.webhooks.tables import Webhook, WebhookDelivery

#: Well beyond the longest POST with the look-up of its name.
LEASE_SECONDS = 60
#: 5 s, 15 s, 45 s, … and at most 8 h between tries: eleven of them fill most of a day.
MOST_TRIES = 11
_FIRST_SECONDS, _FACTOR, _LONGEST_SECONDS = 5.0, 3.0, 8 * 3600.0


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
    SELECT taken.id
    FROM heads
    CROSS JOIN LATERAL (
        SELECT id FROM webhook_deliveries
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
    due = session.scalar(DUE, words)
    if due is None:
        return None
    rows = transition(
        session,
        WebhookDelivery,
        DeliveryState.SENDING,
        sources=DELIVERY_SOURCES[DeliveryState.SENDING],
        where=[WebhookDelivery.id == due],
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
    if not rows:
        return None
    row = rows[0]
    webhook = session.execute(
        select(Webhook.url, Webhook.state).where(Webhook.id == row.webhook_id)
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
    )


def deliver(
    db: Database, claimed: Claimed, guard: Guard, *, failing_days: float | None = None
) -> Outcome:
    """Send a claimed delivery and record what became of it.

    Raises:
        UnavailableError: sent, but not recorded; it will be sent again when the lease ends.
    """
    outcome = _send(claimed, guard)
    reach("webhook_posted")
    with db.system() as session:
        record_outcome(session, claimed, outcome, failing_days=failing_days)
    return outcome


def _send(claimed: Claimed, guard: Guard) -> Outcome:
    if not claimed.is_enabled:
        return Outcome(error="the webhook is disabled")
    try:
        # Again each time: the name may lead elsewhere by now, or the operator took it back.
        target = guard.check(claimed.url)
    except InvalidInputError as error:
        return Outcome(error=error.detail)
    body = json.dumps(claimed.payload, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Darkroom-Webhooks",
        "webhook-id": claimed.id,
        "webhook-timestamp": str(int(time.time())),
    }
    return post(target, body, headers)


def record_outcome(
    session: Session, claimed: Claimed, outcome: Outcome, *, failing_days: float | None = None
) -> bool:
    """Write down what became of a POST; False where another has claimed the delivery since.

    A webhook that took nothing for ``failing_days`` is disabled, when the next delivery to it
    is given up: a single fault after quiet days is not enough. Without them none is.
    """
    is_last = claimed.tries >= MOST_TRIES
    # The webhook before its delivery: the order in which a deletion takes their locks.
    if outcome.is_gone:
        disable_webhook(session, claimed.tenant_id, claimed.webhook_id, GONE)
    elif claimed.is_enabled:
        note_answer(session, claimed.webhook_id, is_success=outcome.is_success)
        if is_last and not outcome.is_success and failing_days is not None:
            disable_failing_webhook(
                session, claimed.tenant_id, claimed.webhook_id, days=failing_days
            )
    values: dict[str, Any] = {"last_status": outcome.status, "last_error": outcome.error}
    if outcome.is_success:
        to = DeliveryState.DELIVERED
    elif outcome.is_gone or not claimed.is_enabled or is_last:
        to = DeliveryState.FAILED
    else:
        to = DeliveryState.PENDING
        values["due_at"] = func.now() + timedelta(seconds=back_off_seconds(claimed.tries))
    moved = transition(
        session,
        WebhookDelivery,
        to,
        sources=frozenset({DeliveryState.SENDING}),
        where=[WebhookDelivery.id == claimed.id, WebhookDelivery.attempt == claimed.attempt],
        values=values,
    )
    return bool(moved)


def back_off_seconds(tries: int) -> float:
    """Seconds to wait after so many tries: exponential, give or take a fifth."""
    seconds = min(_FIRST_SECONDS * _FACTOR ** (tries - 1), _LONGEST_SECONDS)
    return seconds * random.uniform(0.8, 1.2)  # noqa: S311  no secret here
