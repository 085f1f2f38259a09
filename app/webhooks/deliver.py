"""Delivering: sign, POST, write down what became of it.

At least once: whoever dies between the POST and its record leaves a lease that ends, and the
delivery is sent again under the same ``webhook-id``, by which receivers know it.
"""

from __future__ import annotations

import json
import random
from datetime import timedelta
from typing import Any

from sqlalchemy import func
from sqlalchemy.orm import Session

from app.clock import utc_now
from app.db.session import Database
from app.db.transition import transition
from app.errors import InvalidInputError
from app.keyring import Keyring, SealError
from app.log import get_logger
from app.points import reach
from app.webhooks.claim import MOST_TRIES, Claimed
from app.webhooks.guard import Guard
from app.webhooks.register import (
    GONE,
    disable_failing_webhook,
    disable_webhook,
    note_answer,
)
from app.webhooks.secrets import about
from app.webhooks.send import Outcome, post
from app.webhooks.sign import signed_headers
from app.webhooks.states import DeliveryState
from app.webhooks.tables import WebhookDelivery

log = get_logger(__name__)

_FIRST_SECONDS, _FACTOR, _LONGEST_SECONDS = 5.0, 3.0, 8 * 3600.0


def deliver(
    db: Database,
    claimed: Claimed,
    guard: Guard,
    keyring: Keyring,
    *,
    failing_days: float | None = None,
) -> Outcome:
    """Send a claimed delivery and record what became of it.

    Raises:
        UnavailableError: sent, but not recorded; it will be sent again when the lease ends.
    """
    outcome = _send(claimed, guard, keyring)
    reach("webhook_posted")
    with db.system() as session:
        record_outcome(session, claimed, outcome, failing_days=failing_days)
    return outcome


def _send(claimed: Claimed, guard: Guard, keyring: Keyring) -> Outcome:
    if not claimed.is_enabled:
        return Outcome(error="the webhook is disabled")
    try:
        # Again each time: the name may lead elsewhere by now, or the operator took it back.
        target = guard.check(claimed.url, claimed.tenant_id)
        bound_to = about(claimed.tenant_id, claimed.webhook_id)
        secrets = [keyring.open(each, bound_to) for each in claimed.sealed_secrets]
    except InvalidInputError as error:
        return Outcome(error=error.detail)
    except SealError as error:
        # Never unsigned instead: the operator puts the key back, or the secret is replaced.
        log.error("webhook_secret_lost", webhook=claimed.webhook_id, code=error.code)
        return Outcome(error="it cannot be signed: the webhook's secret does not open")
    body = json.dumps(claimed.payload, separators=(",", ":"))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "Darkroom-Webhooks",
        **signed_headers(claimed.id, utc_now(), body, secrets),
    }
    return post(target, body.encode(), headers)


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
