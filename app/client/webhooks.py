"""Registers addresses that are told of events, and reads what they were sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from app.client.transport import Transport, road
from app.client.values import Delivery, Webhook


class Webhooks:
    """``darkroom.webhooks``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        url: str,
        events: Sequence[str] | None = None,
        *,
        idempotency_key: str | None = None,
    ) -> Webhook:
        """Register an address; ``events`` are types, how a job ended where left out.

        Its ``secret``, which :func:`app.client.verify_webhook` takes, is in this answer and never
        again.
        """
        body: dict[str, Any] = {"url": url}
        if events:
            body["events"] = list(events)
        answer = self._transport.call(
            "POST", "/v1/webhooks", json=body, idempotency_key=idempotency_key
        )
        return Webhook.from_dict(answer.json())

    def list(self) -> Iterator[Webhook]:
        """Every webhook, newest first."""
        return map(Webhook.from_dict, self._transport.pages("/v1/webhooks"))

    def get(self, webhook_id: str) -> Webhook:
        """One webhook."""
        return Webhook.from_dict(self._transport.call("GET", road("webhooks", webhook_id)).json())

    def delete(self, webhook_id: str) -> None:
        """Forget a webhook and the log of its deliveries."""
        self._transport.call("DELETE", road("webhooks", webhook_id))

    def enable(self, webhook_id: str) -> Webhook:
        """Tell a disabled webhook of events again, from now on."""
        answer = self._transport.call("POST", road("webhooks", webhook_id, "enable"))
        return Webhook.from_dict(answer.json())

    def rotate_secret(
        self,
        webhook_id: str,
        *,
        overlap_seconds: int | None = None,
        idempotency_key: str | None = None,
    ) -> Webhook:
        """Replace the secret; the old one signs along for ``overlap_seconds``, a day if left out.

        The new ``secret`` is in this answer and never again.
        """
        body = {} if overlap_seconds is None else {"overlap_seconds": overlap_seconds}
        answer = self._transport.call(
            "POST",
            road("webhooks", webhook_id, "secret", "rotate"),
            json=body,
            idempotency_key=idempotency_key,
        )
        return Webhook.from_dict(answer.json())

    def test(self, webhook_id: str) -> Delivery:
        """Send a ``webhook.test``; the delivery is under way."""
        answer = self._transport.call("POST", road("webhooks", webhook_id, "test"))
        return Delivery.from_dict(answer.json())

    def deliveries(self, webhook_id: str, *, state: str | None = None) -> Iterator[Delivery]:
        """What a webhook was sent, or is still owed, newest first."""
        path = road("webhooks", webhook_id, "deliveries")
        return map(Delivery.from_dict, self._transport.pages(path, {"state": state}))

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send a delivery again, under the same ``webhook-id``."""
        path = road("webhooks", webhook_id, "deliveries", delivery_id, "replay")
        return Delivery.from_dict(self._transport.call("POST", path).json())
