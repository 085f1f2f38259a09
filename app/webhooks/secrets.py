"""The secrets that sign deliveries: shown once, kept sealed, two while one is replaced."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import ConflictError
from app.keyring import Keyring
from app.sealing.columns import SealedColumn
from app.webhooks.tables import Webhook

PREFIX = "whsec_"
#: Standard Webhooks asks for 24 to 64.
_SECRET_BYTES = 32
DEFAULT_OVERLAP_SECONDS = 24 * 3600
MAX_OVERLAP_SECONDS = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret just made: what its owner sees, and what is kept."""

    text: str
    token: str


def make_secret(keyring: Keyring, tenant_id: str, webhook_id: str) -> Secret:
    """A fresh secret of a webhook."""
    secret = secrets.token_bytes(_SECRET_BYTES)
    text = PREFIX + base64.b64encode(secret).decode()
    return Secret(text, keyring.seal(secret, about(tenant_id, webhook_id)))


def about(tenant_id: str, webhook_id: str) -> str:
    """What the secrets of a webhook are bound to: in another's row they do not open."""
    return f"webhook:{tenant_id}:{webhook_id}"


def rotate_secret(
    session: Session,
    keyring: Keyring,
    webhook: Webhook,
    *,
    overlap_seconds: int = DEFAULT_OVERLAP_SECONDS,
) -> str:
    """Give the webhook a new secret, whose text comes back; the old one signs along meanwhile.

    Raises:
        ConflictError: ``secret_rotating`` where the one before the present still signs, unless
            both are to end at once.
    """
    # Rotations of one webhook wait for each other, and each sees what the last one wrote.
    session.refresh(webhook, with_for_update=True)
    rotating = session.scalar(
        select(Webhook.previous_secret_ends_at > func.now()).where(Webhook.id == webhook.id)
    )
    if rotating and overlap_seconds:
        raise ConflictError(
            f"the secret before the present one signs along until "
            f"{webhook.previous_secret_ends_at:%Y-%m-%d %H:%M:%S} UTC; wait, or end both with "
            "overlap_seconds 0",
            code="secret_rotating",
        )
    made = make_secret(keyring, webhook.tenant_id, webhook.id)
    keeps = bool(webhook.sealed_secret and overlap_seconds)
    webhook.sealed_previous_secret = webhook.sealed_secret if keeps else None
    webhook.previous_secret_ends_at = (
        func.now() + timedelta(seconds=overlap_seconds) if keeps else None
    )
    webhook.sealed_secret = made.token
    session.flush()
    session.refresh(webhook)
    return made.text


def forget_ended_secrets(session: Session) -> None:
    """Delete the secrets whose overlap is over, of every tenant: they sign nothing any more."""
    session.execute(
        update(Webhook)
        .where(
            Webhook.sealed_previous_secret.is_not(None),
            Webhook.previous_secret_ends_at < func.now(),
        )
        .values(sealed_previous_secret=None)
        .execution_options(synchronize_session=False)
    )


def _about_row(row: Any) -> str:
    return about(row.tenant_id, row.id)


#: For status and rotation of the sealing keys.
WEBHOOK_SECRETS = SealedColumn(
    name="webhooks",
    column=Webhook.sealed_secret,
    id_column=Webhook.id,
    tenant_column=Webhook.tenant_id,
    about=_about_row,
)
PREVIOUS_WEBHOOK_SECRETS = SealedColumn(
    name="webhooks, previous",
    column=Webhook.sealed_previous_secret,
    id_column=Webhook.id,
    tenant_column=Webhook.tenant_id,
    about=_about_row,
)
