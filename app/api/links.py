"""Links that download one artifact without a key, for a while.

The token in a link is sealed: it says who made the link, and until when it opens, to nobody but us.
It is bound to its artifact and to reading it, and it opens nothing else. Links are not kept: one
ends early with the API key that made it, or where its sealing key is taken out of the service.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from flask import request

from app.api.parts import parts
from app.clock import utc_now
from app.errors import ForbiddenError
from app.keyring import SealError
from app.tenants.scopes import Principal

#: Longer ones are no tokens of ours.
TOKEN_MAX_CHARACTERS = 400


def make_link(principal: Principal, artifact_id: str) -> tuple[str, datetime]:
    """An address that downloads the artifact, and when it ends.

    It begins with the service's public address where the settings name one, else with the host
    that this request was sent to; one that is no host at all is left out.
    """
    here = parts()
    ends_at = utc_now() + timedelta(seconds=here.settings.link_seconds)
    text = f"{principal.tenant_id} {principal.key_id} {int(ends_at.timestamp())}"
    token = here.keyring().seal(text.encode(), _about(artifact_id))
    base = here.settings.public_url or (request.host_url if request.host else "")
    path = f"/v1/artifacts/{artifact_id}/download?token={quote(token)}"
    return base.rstrip("/") + path, ends_at


def open_link(token: str, artifact_id: str) -> Principal:
    """Whose link this is; it may read the artifact as the key that made it, and nothing else.

    A forged link, and one whose key has ended, count as a failed try of the address that asks.

    Raises:
        ForbiddenError: ``link_invalid`` or ``link_expired``.
    """
    here = parts()
    try:
        text = here.keyring().open(token, _about(artifact_id)).decode()
    except SealError:
        here.rates.note_failure(request.remote_addr)
        raise ForbiddenError(
            "this is no link to this file; ask for a fresh one where you got it",
            code="link_invalid",
        ) from None
    tenant_id, key_id, ends = text.split(" ")
    if int(ends) <= time.time():
        ended = datetime.fromtimestamp(int(ends), UTC).isoformat()
        raise ForbiddenError(f"this link ended at {ended}", code="link_expired")
    maker = here.keys.find(here.db, tenant_id, key_id)
    if maker is None:
        here.rates.note_failure(request.remote_addr)
        raise ForbiddenError(
            "this link ended with the key that made it; ask for a fresh one where you got it",
            code="link_expired",
        )
    return maker


def _about(artifact_id: str) -> str:
    return f"link:GET:{artifact_id}"
