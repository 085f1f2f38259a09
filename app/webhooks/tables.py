"""Webhooks and the deliveries that they are owed, as rows."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, Id, Json, JsonList, Moment, of_same_tenant, one_of
from app.webhooks.states import DeliveryState, WebhookState


class Webhook(Base):
    """An address of a tenant's that is told of events."""

    __tablename__ = "webhooks"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    url: Mapped[str] = mapped_column(Text)
    #: Types of the events it wants.
    events: Mapped[JsonList]
    state: Mapped[str] = mapped_column(Text)
    #: Tokens of :mod:`app.keyring`: the secret that signs, null in a webhook from before there
    #: were any, and the one before it, which signs along until its end.
    sealed_secret: Mapped[str | None] = mapped_column(Text)
    sealed_previous_secret: Mapped[str | None] = mapped_column(Text)
    previous_secret_ends_at: Mapped[Moment | None]
    #: Why it is disabled: ``gone`` where the receiver said 410, ``failing`` where for days
    #: nothing but failures came back.
    disabled_reason: Mapped[str | None] = mapped_column(Text)
    #: The first failure after the last success; null while it takes what it is sent.
    first_failed_at: Mapped[Moment | None]
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    disabled_at: Mapped[Moment | None]

    __table_args__ = (
        CheckConstraint(one_of("state", WebhookState), name="state"),
        Index("ix_webhooks_tenant_id_id", "tenant_id", "id", unique=True),
    )


class WebhookDelivery(Base):
    """One event on its way to one webhook; its id is the ``webhook-id`` that receivers see."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    webhook_id: Mapped[Id]
    #: The event, which is cleaned up sooner; null in a test of the webhook.
    job_id: Mapped[Id | None]
    event_number: Mapped[int | None] = mapped_column(BigInteger)
    event_type: Mapped[str] = mapped_column(Text)
    #: What is sent.
    payload: Mapped[Json]
    state: Mapped[str] = mapped_column(Text)
    #: The fencing token: grows with every claim, so it counts the times it may have been sent.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    #: Claims since it was written or last replayed; decides when it is given up.
    tries: Mapped[int] = mapped_column(Integer, default=0)
    #: When to claim it: pending, the next try; sending, the end of the lease.
    due_at: Mapped[Moment] = mapped_column(server_default=func.now())
    #: The receiver's last answer.
    last_status: Mapped[int | None] = mapped_column(Integer)
    #: Why the last try failed.
    last_error: Mapped[str | None] = mapped_column(Text)
    last_tried_at: Mapped[Moment | None]
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    delivered_at: Mapped[Moment | None]
    failed_at: Mapped[Moment | None]

    __table_args__ = (
        of_same_tenant("webhook_id", "webhooks", ondelete="CASCADE"),
        CheckConstraint(one_of("state", DeliveryState), name="state"),
        # However often an event is fanned out: one delivery.
        UniqueConstraint("webhook_id", "job_id", "event_number"),
        Index("ix_webhook_deliveries_webhook_id_id", "webhook_id", "id"),
        # Of each webhook the delivery that is due first, however many wait behind it.
        Index(
            "ix_webhook_deliveries_webhook_id_due_at",
            "webhook_id",
            "due_at",
            postgresql_where=text("state IN ('pending', 'sending')"),
        ),
        # The previous release claims by it.
        Index(
            "ix_webhook_deliveries_due_at",
            "due_at",
            postgresql_where=text("state IN ('pending', 'sending')"),
        ),
        Index("ix_webhook_deliveries_created_at", "created_at"),
    )
