"""Webhooks: addresses that are told of events, the log of what they were sent, replay."""

from __future__ import annotations

from collections.abc import Callable

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import describe, record
from app.api.idempotency import once, read_claim, replay
from app.api.parts import parts, principal
from app.api.places import place_to_look_up
from app.api.replies import Reply, as_json, page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.webhooks import (
    CreateWebhook,
    DeliveriesQuery,
    DeliveryAnswer,
    DeliveryPage,
    DeliveryPath,
    NewSecretAnswer,
    RotateSecret,
    WebhookAnswer,
    WebhookPage,
    WebhookPath,
)
from app.audit.actions import Action
from app.tenants.scopes import Scope
from app.webhooks import deliveries as log
from app.webhooks import register, secrets
from app.webhooks.states import DeliveryState
from app.webhooks.tables import Webhook, WebhookDelivery

resource = Resource("webhooks", "Webhooks", "Addresses of yours that are told of events.")


@resource.route_as(
    "post",
    "/webhooks",
    answers={201: NewSecretAnswer},
    scope=Scope.ADMIN,
    audit=Action.WEBHOOK_CREATED,
)
def create_webhook(body: CreateWebhook) -> Response:
    """Register an address for events from now on.

    Each event is POSTed as JSON, `{type, timestamp, data}`, at least once and in no promised
    order; `webhook-id` is the same each time, so that you can tell a repeat. Any 2xx within
    15 s takes it, 410 disables the webhook, and anything else is tried again for most of a day.
    A webhook that takes nothing for days, five unless the operator says otherwise, is disabled
    too; `disabled_reason` says so, and `…/enable` sets it going again.

    Each is signed as [Standard Webhooks](https://www.standardwebhooks.com) says, in
    `webhook-id`, `webhook-timestamp` and `webhook-signature`, with the `secret` in this answer.
    It is shown here and never again: a replay under the same Idempotency-Key has `secret: null`.
    """
    here, tenant_id = parts(), principal().tenant_id
    claim = read_claim()
    if claim is not None:
        # First: a name that leads nowhere by now is no reason to refuse what was accepted.
        with here.db.tenant(tenant_id) as session:
            kept = claim.recall(session)
        if kept is not None:
            return replay(kept)
    # Looks the name up, so no connection to the database is held meanwhile.
    with place_to_look_up(here.look_up_places):
        target = here.guard.check(body.url, tenant_id)

    def make(session: Session) -> tuple[Webhook, str]:
        return register.create_webhook(
            session, here.keyring(), tenant_id, target=target, events=body.events
        )

    # The host alone: the rest of an address is a secret of many a receiver.
    describe(host=target.parts.host, events=body.events)
    return _show_once(201, make)


@resource.route_as("get", "/webhooks", answers={200: WebhookPage}, scope=Scope.ADMIN)
def list_webhooks(query: PageQuery) -> Response:
    """List webhooks, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = register.list_webhooks(
            session, tenant_id, after=query.after, limit=query.limit
        )
    return send(WebhookPage(**page_fields(rows, has_more, show_webhook)))


@resource.route_as("get", "/webhooks/<webhook_id>", answers={200: WebhookAnswer}, scope=Scope.ADMIN)
def get_webhook(path: WebhookPath) -> Response:
    """Read a webhook."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        found = register.get_webhook(session, tenant_id, path.webhook_id)
    return send(show_webhook(found))


@resource.route_as(
    "delete",
    "/webhooks/<webhook_id>",
    answers={204: None},
    scope=Scope.ADMIN,
    audit=Action.WEBHOOK_DELETED,
)
def delete_webhook(path: WebhookPath) -> Response:
    """Forget a webhook and the log of its deliveries."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        register.delete_webhook(session, tenant_id, path.webhook_id)
        record(session, target=path.webhook_id)
    return Response(status=204)


@resource.route_as(
    "post",
    "/webhooks/<webhook_id>/enable",
    answers={200: WebhookAnswer},
    scope=Scope.ADMIN,
    audit=Action.WEBHOOK_ENABLED,
)
def enable_webhook(path: WebhookPath) -> Response:
    """Tell a disabled webhook of events again, from now on."""
    tenant_id = principal().tenant_id

    def work(session: Session) -> Reply:
        found = register.enable_webhook(session, tenant_id, path.webhook_id)
        return Reply(200, as_json(show_webhook(found)))

    return once(work)


@resource.route_as(
    "post",
    "/webhooks/<webhook_id>/secret/rotate",
    answers={200: NewSecretAnswer},
    scope=Scope.ADMIN,
    body_optional=True,
    audit=Action.WEBHOOK_SECRET_ROTATED,
)
def rotate_webhook_secret(path: WebhookPath, body: RotateSecret) -> Response:
    """Replace the secret that a webhook is signed with.

    Until the overlap is over, what it is sent has two signatures, one by each secret, and a
    receiver takes either. The new secret is in this answer and never again, as when a webhook is
    made; without one so far, as those from before there were secrets, it has its first now.
    """
    here, tenant_id = parts(), principal().tenant_id

    def make(session: Session) -> tuple[Webhook, str]:
        found = register.get_webhook(session, tenant_id, path.webhook_id)
        text = secrets.rotate_secret(
            session, here.keyring(), found, overlap_seconds=body.overlap_seconds
        )
        return found, text

    describe(overlap_seconds=body.overlap_seconds)
    return _show_once(200, make)


@resource.route_as(
    "post",
    "/webhooks/<webhook_id>/test",
    answers={202: DeliveryAnswer},
    scope=Scope.ADMIN,
    audit=Action.WEBHOOK_TESTED,
)
def test_webhook(path: WebhookPath) -> Response:
    """Send the webhook a `webhook.test` that tells of no job."""
    describe(target=path.webhook_id)
    tenant_id = principal().tenant_id
    return once(
        lambda session: _sent_soon(log.send_test(session, tenant_id, path.webhook_id)),
    )


@resource.route_as(
    "get",
    "/webhooks/<webhook_id>/deliveries",
    answers={200: DeliveryPage},
    scope=Scope.ADMIN,
)
def list_deliveries(path: WebhookPath, query: DeliveriesQuery) -> Response:
    """Read what a webhook was sent, or is still owed, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = log.list_deliveries(
            session,
            tenant_id,
            path.webhook_id,
            after=query.after,
            limit=query.limit,
            state=DeliveryState(query.state) if query.state else None,
        )
    return send(DeliveryPage(**page_fields(rows, has_more, show_delivery)))


@resource.route_as(
    "post",
    "/webhooks/<webhook_id>/deliveries/<delivery_id>/replay",
    answers={202: DeliveryAnswer},
    scope=Scope.ADMIN,
    audit=Action.WEBHOOK_REPLAYED,
)
def replay_delivery(path: DeliveryPath) -> Response:
    """Send a delivery again that was delivered or given up; one that is under way stays so."""
    describe(target=path.webhook_id, delivery=path.delivery_id)
    tenant_id = principal().tenant_id
    return once(
        lambda session: _sent_soon(
            log.replay_delivery(session, tenant_id, path.webhook_id, path.delivery_id)
        ),
    )


def show_webhook(webhook: Webhook) -> WebhookAnswer:
    """A webhook as an answer."""
    return WebhookAnswer.model_validate(
        {
            "id": webhook.id,
            "url": webhook.url,
            "events": webhook.events,
            "state": webhook.state,
            "signed": webhook.sealed_secret is not None,
            "previous_secret_ends_at": webhook.previous_secret_ends_at,
            "disabled_reason": webhook.disabled_reason,
            "first_failed_at": webhook.first_failed_at,
            "created_at": webhook.created_at,
            "disabled_at": webhook.disabled_at,
        }
    )


def show_delivery(delivery: WebhookDelivery) -> DeliveryAnswer:
    """A delivery as an answer."""
    waits = delivery.state == DeliveryState.PENDING
    return DeliveryAnswer.model_validate(
        {
            "id": delivery.id,
            "webhook_id": delivery.webhook_id,
            "job_id": delivery.job_id,
            "event_number": delivery.event_number,
            "event_type": delivery.event_type,
            "payload": delivery.payload,
            "state": delivery.state,
            "attempts": delivery.attempt,
            "last_status": delivery.last_status,
            "last_error": delivery.last_error,
            "last_tried_at": delivery.last_tried_at,
            "next_try_at": delivery.due_at if waits else None,
            "created_at": delivery.created_at,
            "delivered_at": delivery.delivered_at,
            "failed_at": delivery.failed_at,
        }
    )


def _sent_soon(delivery: WebhookDelivery) -> Reply:
    return Reply(202, as_json(show_delivery(delivery)))


def _show_once(status: int, make: Callable[[Session], tuple[Webhook, str]]) -> Response:
    """Show a secret just made; what is kept for a replay, and audited, holds none."""
    claim = read_claim()
    with parts().db.tenant(principal().tenant_id) as session:
        kept = claim.recall(session) if claim else None
        if kept is not None:
            return replay(kept)
        webhook, secret = make(session)
        record(session, target=webhook.id)
        shown = show_webhook(webhook).model_dump()
        where = f"/v1/webhooks/{webhook.id}" if status == 201 else None
        if claim:
            answer = NewSecretAnswer(**shown, secret=None)
            claim.keep(session, Reply(status, as_json(answer), where))
    return Reply(status, as_json(NewSecretAnswer(**shown, secret=secret)), where).response()
