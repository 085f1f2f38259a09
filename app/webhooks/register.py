"""Registering addresses that want to be told of events."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import ColumnElement, delete, func, select, text, update
from sqlalchemy.orm import Session

from app.db.page import fetch_page
from app.db.transition import transition
from app.errors import ConflictError, NotFoundError
from app.ids import WEBHOOK, new_id
from app.keyring import Keyring
from app.log import get_logger
from app.webhooks.guard import Target
from app.webhooks.secrets import make_secret
from app.webhooks.states import WEBHOOK_SOURCES, WebhookState
from app.webhooks.tables import Webhook

log = get_logger(__name__)

#: Why a webhook is disabled: its receiver said 410, or it has taken nothing for days.
GONE, FAILING = "gone", "failing"

#: Every event of a tenant becomes a delivery for each of its webhooks.
_MOST_PER_TENANT = 20
_ONE_AT_A_TIME = text(
    "SELECT pg_advisory_xact_lock(hashtext('darkroom.webhooks'), hashtext(:tenant))"
)


def create_webhook(
    session: Session,
    keyring: Keyring,
    tenant_id: str,
    *,
    target: Target,
    events: Sequence[str],
) -> tuple[Webhook, str]:
    """Register an address that the guard let pass for events of these types from now on.

    With it comes the text of the secret that signs what it is sent, which is kept nowhere.

    Raises:
        ConflictError: ``too_many_webhooks``.
    """
    # Those that one tenant makes at once wait for each other, or they would not count each other.
    session.execute(_ONE_AT_A_TIME, {"tenant": tenant_id})
    count = session.scalar(
        select(func.count()).select_from(Webhook).where(Webhook.tenant_id == tenant_id)
    )
    if (count or 0) >= _MOST_PER_TENANT:
        raise ConflictError(
            f"there are {count} webhooks already, the most there may be; delete one first",
            code="too_many_webhooks",
        )
    webhook_id = new_id(WEBHOOK)
    secret = make_secret(keyring, tenant_id, webhook_id)
    webhook = Webhook(
        id=webhook_id,
        tenant_id=tenant_id,
        sealed_secret=secret.token,
        url=target.url,
        events=list(dict.fromkeys(events)),
        state=WebhookState.ENABLED,
    )
    session.add(webhook)
    session.flush()
    session.refresh(webhook)
    return webhook, secret.text


def get_webhook(session: Session, tenant_id: str, webhook_id: str) -> Webhook:
    """The webhook. Raises NotFoundError where this tenant has no such one."""
    webhook = session.scalar(
        select(Webhook).where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
    )
    if webhook is None:
        raise NotFoundError(f"no webhook {webhook_id}", code="webhook_not_found")
    return webhook


def list_webhooks(
    session: Session, tenant_id: str, *, after: str | None = None, limit: int = 50
) -> tuple[list[Webhook], bool]:
    """A page of webhooks, newest first, and whether more follow."""
    query = select(Webhook).where(Webhook.tenant_id == tenant_id)
    return fetch_page(session, query, Webhook.id, after=after, limit=limit)


def delete_webhook(session: Session, tenant_id: str, webhook_id: str) -> None:
    """Forget a webhook and the log of its deliveries.

    Raises:
        NotFoundError: no such webhook.
    """
    get_webhook(session, tenant_id, webhook_id)
    session.execute(
        delete(Webhook)
        .where(Webhook.id == webhook_id, Webhook.tenant_id == tenant_id)
        .execution_options(synchronize_session=False)
    )


def enable_webhook(session: Session, tenant_id: str, webhook_id: str) -> Webhook:
    """Tell a webhook of events again, from now on; an enabled one stays as it is.

    Raises:
        NotFoundError: no such webhook.
    """
    transition(
        session,
        Webhook,
        WebhookState.ENABLED,
        sources=WEBHOOK_SOURCES[WebhookState.ENABLED],
        where=[Webhook.id == webhook_id, Webhook.tenant_id == tenant_id],
        values={"disabled_reason": None, "disabled_at": None, "first_failed_at": None},
    )
    webhook = get_webhook(session, tenant_id, webhook_id)
    session.refresh(webhook)
    return webhook


def disable_webhook(
    session: Session,
    tenant_id: str,
    webhook_id: str,
    reason: str,
    where: Sequence[ColumnElement[bool]] = (),
) -> None:
    """Tell a webhook of nothing any more; what is still due fails instead of being sent."""
    moved = transition(
        session,
        Webhook,
        WebhookState.DISABLED,
        sources=WEBHOOK_SOURCES[WebhookState.DISABLED],
        where=[Webhook.id == webhook_id, Webhook.tenant_id == tenant_id, *where],
        values={"disabled_reason": reason},
    )
    if moved:
        log.warning("webhook_disabled", webhook=webhook_id, tenant=tenant_id, reason=reason)


def disable_failing_webhook(
    session: Session, tenant_id: str, webhook_id: str, *, days: float
) -> None:
    """Disable a webhook that has taken nothing for so many days."""
    since = func.now() - timedelta(days=days)
    disable_webhook(session, tenant_id, webhook_id, FAILING, [Webhook.first_failed_at < since])


def note_answer(session: Session, webhook_id: str, *, is_success: bool) -> None:
    """Remember since when a webhook fails; writes only where that changes."""
    changes = (
        Webhook.first_failed_at.is_not(None) if is_success else Webhook.first_failed_at.is_(None)
    )
    session.execute(
        update(Webhook)
        .where(Webhook.id == webhook_id, changes)
        .values(first_failed_at=None if is_success else func.now())
        .execution_options(synchronize_session=False)
    )
