"""Delivering: claim under a lease, POST, write down what became of it.

At least once: whoever dies between the POST and its record leaves a lease that ends, and the
delivery is sent again under the same ``webhook-id``, by which receivers know it.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.db.transition import transition
from app.errors import InvalidInputError
from app.points import reach
from app.webhooks.hosts import check_url
from app.webhooks.register import disable_webhook
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


def claim_delivery(
    session: Session, *, busy: Collection[str] = (), busy_webhooks: Collection[str] = ()
) -> Claimed | None:
    """Take the delivery that has been due for longest, of no tenant or webhook that is busy.

    Due is a pending one at its time, or one whose sender's lease has ended.
    """
    due = (
        select(WebhookDelivery.id)
        .where(
            WebhookDelivery.state.in_([DeliveryState.PENDING, DeliveryState.SENDING]),
            WebhookDelivery.due_at <= func.now(),
            WebhookDelivery.tenant_id.not_in(list(busy)),
            WebhookDelivery.webhook_id.not_in(list(busy_webhooks)),
        )
        .order_by(WebhookDelivery.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
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


def deliver(db: Database, claimed: Claimed, allowed: Sequence[str]) -> Outcome:
    """Send a claimed delivery and record what became of it.

    Raises:
        UnavailableError: sent, but not recorded; it will be sent again when the lease ends.
    """
    outcome = _send(claimed, allowed)
    reach("webhook_posted")
    with db.system() as session:
        record_outcome(session, claimed, outcome)
    return outcome


def _send(claimed: Claimed, allowed: Sequence[str]) -> Outcome:
    if not claimed.is_enabled:
        return Outcome(error="the webhook is disabled")
    try:
        # Again, because the operator may have taken the host back.
        check_url(claimed.url, allowed)
    except InvalidInputError as error:
        return Outcome(error=error.detail)
    body = json.dumps(claimed.payload, separators=(",", ":")).encode()
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Darkroom-Webhooks",
        "webhook-id": claimed.id,
        "webhook-timestamp": str(int(time.time())),
    }
    return post(claimed.url, body, headers)


def record_outcome(session: Session, claimed: Claimed, outcome: Outcome) -> bool:
    """Write down what became of a POST; False where another has claimed the delivery since."""
    if outcome.is_gone:
        # The webhook before its delivery: the order in which a deletion takes their locks.
        disable_webhook(session, claimed.tenant_id, claimed.webhook_id, "gone")
    values: dict[str, Any] = {"last_status": outcome.status, "last_error": outcome.error}
    if outcome.is_success:
        to = DeliveryState.DELIVERED
    elif outcome.is_gone or not claimed.is_enabled or claimed.tries >= MOST_TRIES:
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
