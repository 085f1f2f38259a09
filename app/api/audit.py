"""Who did what: a route names its act, and its entry is written with the act or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast
from urllib.parse import quote

from flask import Response, g, request
from sqlalchemy.orm import Session

from app.api.parts import parts, principal, request_id
from app.api.replies import Reply
from app.audit.actions import Action, Outcome
from app.audit.append import append_entry
from app.errors import DarkroomError, ForbiddenError
from app.log import get_logger

log = get_logger(__name__)

#: The longest target that the log can be searched for.
_TARGET_MAX_CHARACTERS = 200


@dataclass(slots=True)
class Note:
    """What this request will have done, once it has done it."""

    action: Action | None
    target: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    written: bool = False


def begin_note(action: Action | None) -> None:
    """Open the note of a request whose route is audited as ``action``; None where it is not."""
    g.audit = Note(action)


def describe(*, target: str | None = None, **details: Any) -> None:
    """Say what the entry of this request shall tell, before ``once`` writes it.

    ``details`` are small, plain JSON and hold no secret; None is left out.
    """
    note = _note()
    note.target = target or note.target
    note.details |= {name: value for name, value in details.items() if value is not None}


def record(session: Session, *, target: str | None = None, **details: Any) -> None:
    """Write the request's entry into the transaction that does its act."""
    note = _note()
    if note.action is None:
        raise RuntimeError("this route names no act: give route_as the argument audit")
    describe(target=target, **details)
    append_entry(
        session,
        parts().audit_key(),
        tenant_id=principal().tenant_id,
        actor=principal().key_id,
        action=note.action,
        target=note.target,
        details=note.details,
        request_id=request_id(),
        client_address=request.remote_addr,
    )
    note.written = True


def record_reply(session: Session, reply: Reply) -> None:
    """Write the entry of a route that was answered with ``reply``, where it names an act."""
    if _note().action is not None:
        record(session, target=_note().target or reply.body.get("id"))


def record_apart(*, target: str, **details: Any) -> None:
    """Write the entry of an act that has no transaction: data go out only after it is kept."""
    with parts().db.tenant(principal().tenant_id) as session:
        record(session, target=target, **details)


def record_for_owner(tenant_id: str, *, target: str, **details: Any) -> None:
    """Write into another tenant's log what this one does with what is that one's.

    The actor is this tenant; its key, address and request are its own affair.
    """
    with parts().db.tenant(tenant_id) as session:
        append_entry(
            session,
            parts().audit_key(),
            tenant_id=tenant_id,
            actor=principal().tenant_id,
            action=cast(Action, _note().action),
            target=target,
            details=details,
        )


def skip_note() -> None:
    """Say that this request needs no entry: one of a moment ago tells of it."""
    _note().written = True


def record_denial(tenant_id: str, key_id: str, code: str, **details: Any) -> None:
    """Note that a known key was refused; the same refusal once a minute and process.

    The refusal stands, whether it could be noted or not.
    """
    # By the rule, so that nobody fills the log by asking for one id after the other.
    rule = request.url_rule.rule if request.url_rule else request.path
    if not parts().repeats.is_news("denied", key_id, code, f"{request.method} {rule}"):
        return
    # Quoted: it may hold whatever a client sends, while the log is text.
    where = f"{request.method} {quote(request.path)}"[:_TARGET_MAX_CHARACTERS]
    try:
        with parts().db.tenant(tenant_id) as session:
            append_entry(
                session,
                parts().audit_key(),
                tenant_id=tenant_id,
                actor=key_id,
                action=Action.ACCESS_DENIED,
                outcome=Outcome.DENIED,
                target=where,
                details={"code": code, **details},
                request_id=request_id(),
                client_address=request.remote_addr,
            )
    except DarkroomError as error:
        log.warning("denial_not_audited", key=key_id, denied=code, code=error.code)


@contextmanager
def note_denial(**details: Any) -> Iterator[None]:
    """Note it where what is done within is forbidden to the key of this request.

    It stands around a transaction, not in one: that of a refusal is rolled back.
    """
    try:
        yield
    except ForbiddenError as error:
        record_denial(principal().tenant_id, principal().key_id, error.code, **details)
        raise


def check_noted(response: Response, *, replayed: bool) -> None:
    """Tell loudly of an act that left no entry: a fault of its route."""
    note = _note()
    if note.action is None or note.written or replayed or request.method == "HEAD":
        return
    if response.status_code in (200, 201, 202, 204, 206):
        log.error("act_not_audited", action=note.action.value, path=request.path)


def _note() -> Note:
    return cast(Note, g.audit)
