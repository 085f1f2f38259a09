"""Keys: make, rotate, list, revoke."""

from __future__ import annotations

from collections.abc import Callable

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import record
from app.api.idempotency import read_claim, replay
from app.api.parts import parts, principal
from app.api.replies import Reply, as_json, page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.service import (
    CreateKey,
    KeyAnswer,
    KeyPage,
    KeyPath,
    NewKeyAnswer,
    RotateKey,
)
from app.audit.actions import Action
from app.tenants.keys import NewKey
from app.tenants.keys import create_key as make_key
from app.tenants.keys import list_keys as page_keys
from app.tenants.keys import revoke_key as end_key
from app.tenants.rotate import rotate_key as succeed_key
from app.tenants.scopes import Scope

resource = Resource("keys", "Keys", "What proves who is asking, and what it may do.")


@resource.route_as(
    "post", "/keys", answers={201: NewKeyAnswer}, scope=Scope.ADMIN, audit=Action.KEY_CREATED
)
def create_key(body: CreateKey) -> Response:
    """Make a key.

    Its text is in this answer and never again: a replay under the same Idempotency-Key has
    `text: null`, since the service keeps only a hash. Revoke a key whose text was lost.
    """
    here, tenant_id = parts(), principal().tenant_id
    return _show_once(
        lambda session: make_key(
            session,
            tenant_id,
            name=body.name,
            scopes=list(body.scopes),
            pepper=here.settings.key_pepper.get_secret_value(),
            expires_at=body.expires_at,
        )
    )


@resource.route_as(
    "post",
    "/keys/<key_id>/rotate",
    answers={201: NewKeyAnswer},
    scope=Scope.ADMIN,
    body_optional=True,
    audit=Action.KEY_ROTATED,
)
def rotate_key(path: KeyPath, body: RotateKey) -> Response:
    """Make a key's successor, of the same name and scopes.

    Both serve until the overlap is over: the old key ends then, or before where it is revoked.
    Its text is in this answer and never again, as when a key is made. At most two keys of a line
    are alive at once.
    """
    here, tenant_id = parts(), principal().tenant_id
    answer = _show_once(
        lambda session: succeed_key(
            session,
            tenant_id,
            path.key_id,
            pepper=here.settings.key_pepper.get_secret_value(),
            overlap_seconds=body.overlap_seconds,
            expires_at=body.expires_at,
        ),
        successor_of=path.key_id,
    )
    here.keys.forget(path.key_id)
    return answer


@resource.route_as("get", "/keys", answers={200: KeyPage}, scope=Scope.ADMIN)
def list_keys(query: PageQuery) -> Response:
    """List keys, newest first, revoked ones too."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_keys(session, tenant_id, after=query.after, limit=query.limit)
    return send(KeyPage(**page_fields(rows, has_more, KeyAnswer.model_validate)))


@resource.route_as(
    "delete", "/keys/<key_id>", answers={204: None}, scope=Scope.ADMIN, audit=Action.KEY_REVOKED
)
def revoke_key(path: KeyPath) -> Response:
    """End a key; a second time changes nothing.

    At once in the process that answers, in others of the service within two seconds.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        end_key(session, tenant_id, path.key_id)
        record(session, target=path.key_id)
    parts().keys.forget(path.key_id)
    return Response(status=204)


def _show_once(make: Callable[[Session], NewKey], **details: str) -> Response:
    """Make a key and show its text; what is kept for a replay, and audited, holds none."""
    claim = read_claim()
    with parts().db.tenant(principal().tenant_id) as session:
        kept = claim.recall(session) if claim else None
        if kept is not None:
            return replay(kept)
        made = make(session)
        record(session, target=made.id, name=made.row.name, scopes=made.row.scopes, **details)
        shown = KeyAnswer.model_validate(made.row).model_dump()
        if claim:
            claim.keep(session, Reply(201, as_json(NewKeyAnswer(**shown, text=None))))
    return send(NewKeyAnswer(**shown, text=made.text), 201)
