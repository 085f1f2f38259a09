"""Every state of webhooks and their deliveries: what it means, and who moves a row out of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class WebhookState(enum.StrEnum):
    """Whether a webhook is told of events."""

    #: New events become deliveries; the client, or a receiver that says 410, moves it on.
    ENABLED = "enabled"
    #: Nothing is sent; the client moves it back.
    DISABLED = "disabled"


WEBHOOK_SOURCES: Mapping[WebhookState, frozenset[WebhookState]] = {
    WebhookState.ENABLED: frozenset({WebhookState.DISABLED}),
    WebhookState.DISABLED: frozenset({WebhookState.ENABLED}),
}


class DeliveryState(enum.StrEnum):
    """Where the delivery of one event to one webhook stands."""

    #: Waits until it is due; a claim moves it on.
    PENDING = "pending"
    #: A dispatcher sends it under a lease; the answer moves it on, or a claim after the lease.
    SENDING = "sending"
    #: The receiver answered 2xx; only a replay moves it back.
    DELIVERED = "delivered"
    #: Given up; only a replay moves it back.
    FAILED = "failed"


DELIVERY_SOURCES: Mapping[DeliveryState, frozenset[DeliveryState]] = {
    DeliveryState.PENDING: frozenset(
        {DeliveryState.SENDING, DeliveryState.DELIVERED, DeliveryState.FAILED}
    ),
    # From SENDING too: the lease of a dispatcher that died has ended.
    DeliveryState.SENDING: frozenset({DeliveryState.PENDING, DeliveryState.SENDING}),
    DeliveryState.DELIVERED: frozenset({DeliveryState.SENDING}),
    DeliveryState.FAILED: frozenset({DeliveryState.SENDING}),
}
