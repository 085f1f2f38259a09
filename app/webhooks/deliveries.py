"""The log of what a webhook was sent, and sending it again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.clock import utc_now
from app.db.page import fetch_page
from app.db.transition import transition
from app.errors import ConflictError, NotFoundError
from app.ids import DELIVERY, new_id
from app.webhooks.register import get_webhook
from app.webhooks.states import DeliveryState, WebhookState
from app.webhooks.tables import Webhook, WebhookDelivery

TEST_TYPE = "webhook.test"


def list_deliveries(
    session: Session,
    tenant_id: str,
    webhook_id: str,
    *,
    after: str | None = None,
    limit: int = 50,
    state: DeliveryState | None = None,
) -> tuple[list[WebhookDelivery], bool]:
    """A page of a webhook's deliveries, newest first, and whether more follow.

    Raises:
        NotFoundError: no such webhook.
    """
    get_webhook(session, tenant_id, webhook_id)
    query = select(WebhookDelivery).where(
        WebhookDelivery.webhook_id == webhook_id, WebhookDelivery.tenant_id == tenant_id
    )
    if state is not None:
        query = query.where(WebhookDelivery.state == state)
    return fetch_page(session, query, WebhookDelivery.id, after=after, limit=limit)


def replay_delivery(
    session: Session, tenant_id: str, webhook_id: str, delivery_id: str
) -> WebhookDelivery:
    """Send a delivery again that has ended, under the same ``webhook-id``; others stay as they are.

    Raises:
        NotFoundError: no such webhook, or no such delivery of it.
        ConflictError: ``webhook_disabled``.
    """
    _require_enabled(get_webhook(session, tenant_id, webhook_id))
    transition(
        session,
        WebhookDelivery,
        DeliveryState.PENDING,
        sources=frozenset({DeliveryState.DELIVERED, DeliveryState.FAILED}),
        where=[
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.webhook_id == webhook_id,
            WebhookDelivery.tenant_id == tenant_id,
        ],
        values={"tries": 0, "due_at": func.now(), "delivered_at": None, "failed_at": None},
    )
    delivery = session.scalar(
        select(WebhookDelivery).where(
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.webhook_id == webhook_id,
            WebhookDelivery.tenant_id == tenant_id,
        )
    )
    if delivery is None:
        raise NotFoundError(f"no delivery {delivery_id}", code="delivery_not_found")
    session.refresh(delivery)
    return delivery


def send_test(session: Session, tenant_id: str, webhook_id: str) -> WebhookDelivery:
    """Owe the webhook a delivery that tells of no job.

    Raises:
        NotFoundError: no such webhook.
        ConflictError: ``webhook_disabled``.
    """
    webhook = get_webhook(session, tenant_id, webhook_id)
    _require_enabled(webhook)
    delivery = WebhookDelivery(
        **new_delivery(webhook, TEST_TYPE, payload_of(TEST_TYPE, utc_now().isoformat(), {}))
    )
    session.add(delivery)
    session.flush()
    session.refresh(delivery)
    return delivery


def payload_of(type_: str, timestamp: str, data: dict[str, Any]) -> dict[str, Any]:
    """What a receiver gets, in the shape of the Standard Webhooks specification."""
    return {"type": type_, "timestamp": timestamp, "data": data}


def new_delivery(
    webhook: Webhook,
    type_: str,
    payload: dict[str, Any],
    *,
    job_id: str | None = None,
    number: int | None = None,
) -> dict[str, Any]:
    """The columns of a delivery that is due at once."""
    return {
        "id": new_id(DELIVERY),
        "tenant_id": webhook.tenant_id,
        "webhook_id": webhook.id,
        "job_id": job_id,
        "event_number": number,
        "event_type": type_,
        "payload": payload,
        "state": DeliveryState.PENDING,
        "attempt": 0,
        "tries": 0,
    }


def _require_enabled(webhook: Webhook) -> None:
    if webhook.state != WebhookState.ENABLED:
        raise ConflictError(
            f"webhook {webhook.id} is disabled; enable it first", code="webhook_disabled"
        )
