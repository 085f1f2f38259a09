"""Webhooks and their deliveries as they are asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from app.api.schemas.base import (
    Answer,
    DeliveryId,
    PageAnswer,
    PageQuery,
    Parameters,
    Request,
    WebhookId,
    free_text,
)
from app.api.schemas.events import EventTypeWord
from app.webhooks.secrets import DEFAULT_OVERLAP_SECONDS, MAX_OVERLAP_SECONDS

_ENDS: tuple[EventTypeWord, ...] = (
    "job.succeeded",
    "job.partially_succeeded",
    "job.failed",
    "job.expired",
    "job.cancelled",
)
DeliveryStateWord = Literal["pending", "sending", "delivered", "failed"]


class WebhookPath(Parameters):
    """Which webhook."""

    webhook_id: WebhookId = Field(description="A webhook's id.")


class DeliveryPath(WebhookPath):
    """Which delivery of which webhook."""

    delivery_id: DeliveryId = Field(description="A delivery's id.")


class DeliveriesQuery(PageQuery):
    """A page of a webhook's deliveries."""

    state: DeliveryStateWord | None = Field(None, description="Only those in this state.")


class CreateWebhook(Request):
    """An address that wants to be told of events."""

    url: Annotated[str, free_text(2000)] = Field(
        description="https to a public host on port 443 or 8443, or what else the operator allows."
    )
    events: Annotated[list[EventTypeWord], Field(min_length=1, max_length=50)] = Field(
        list(_ENDS), description="Types of events; how a job ended, where left out."
    )


class RotateSecret(Request):
    """How a webhook's secret is replaced."""

    overlap_seconds: int = Field(
        DEFAULT_OVERLAP_SECONDS,
        ge=0,
        le=MAX_OVERLAP_SECONDS,
        description="The old secret signs along for so many seconds; 0 ends it at once.",
    )


class WebhookAnswer(Answer):
    """An address that is told of events."""

    id: str
    url: str
    events: list[str]
    state: Literal["enabled", "disabled"]
    signed: bool = Field(
        description="Whether what it is sent is signed: `false` in a webhook that was made before "
        "there were secrets, until its secret is rotated."
    )
    previous_secret_ends_at: datetime | None = Field(
        description="Until when the secret before the present one signs along; null if none does."
    )
    disabled_reason: str | None = Field(
        description="`gone`: the receiver answered 410. `failing`: it took nothing for days."
    )
    first_failed_at: datetime | None = Field(
        description="The first failure after the last success; null while it takes what it is sent."
    )
    created_at: datetime
    disabled_at: datetime | None


class NewSecretAnswer(WebhookAnswer):
    """A webhook whose secret was just made."""

    secret: str | None = Field(
        description="`whsec_` and the secret in base64, by which you verify what you are sent: in "
        "this answer and never again, null in a replay."
    )


class WebhookPage(PageAnswer):
    """A page of webhooks, newest first."""

    data: list[WebhookAnswer]


class DeliveryAnswer(Answer):
    """One event on its way to one webhook."""

    id: str = Field(description="The `webhook-id` that the receiver sees, each time.")
    webhook_id: str
    job_id: str | None = Field(description="Null in a test of the webhook.")
    event_number: int | None
    event_type: str
    payload: dict[str, Any] = Field(description="What is sent.")
    state: DeliveryStateWord
    attempts: int = Field(description="How often it may have been sent.")
    last_status: int | None = Field(description="The receiver's last answer.")
    last_error: str | None = Field(description="Why the last attempt failed.")
    last_tried_at: datetime | None
    next_try_at: datetime | None
    created_at: datetime
    delivered_at: datetime | None
    failed_at: datetime | None


class DeliveryPage(PageAnswer):
    """A page of a webhook's deliveries, newest first."""

    data: list[DeliveryAnswer]
