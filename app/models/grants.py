"""Grants: the owner of a model gives other tenants rights on it, and takes them back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import InvalidInputError, NotFoundError
from app.ids import GRANT, new_id
from app.models.resolve import get_model
from app.models.rights import Answers, Right
from app.models.tables import Grant

# Other tenants' names are out of a tenant's sight: these functions give away only what is needed.
_FIND_TENANT = text("SELECT find_tenant(:name)")
_LIST = text(
    """
    SELECT id, tenant, rights, answers, max_items_per_day, items_today, created_at, updated_at
    FROM list_grants(:model_id)
    WHERE (CAST(:after AS text) IS NULL OR id < :after)
      AND (CAST(:tenant AS text) IS NULL OR tenant = :tenant)
    ORDER BY id DESC
    LIMIT :limit
    """
)


@dataclass(frozen=True, slots=True)
class GivenGrant:
    """A grant as the owner of the model sees it."""

    id: str
    #: The grantee's name.
    tenant: str
    rights: list[str]
    answers: str
    max_items_per_day: int | None
    #: Items that were planned for the grantee today (UTC).
    items_today: int
    created_at: datetime
    updated_at: datetime


def give_grant(
    session: Session,
    tenant_id: str,
    model: str,
    grantee: str,
    *,
    rights: Iterable[Right | str],
    answers: Answers | str = Answers.ROUNDED,
    max_items_per_day: int | None = None,
) -> GivenGrant:
    """Let the tenant named ``grantee`` do just this with the model, whatever it might before.

    Raises:
        InvalidInputError: ``rights_missing`` or ``right_unknown``; ``grant_to_owner``; a number
            below 1 (``max_items_invalid``).
        NotFoundError: ``model_not_found``, ``tenant_not_found``.
    """
    words = _check_rights(rights)
    if max_items_per_day is not None and max_items_per_day < 1:
        raise InvalidInputError(
            "max_items_per_day must be 1 or more; to let a tenant ask nothing, take the grant back",
            code="max_items_invalid",
        )
    model_id = get_model(session, tenant_id, model).id
    grantee_id = _find_tenant(session, grantee)
    if grantee_id == tenant_id:
        raise InvalidInputError(
            f"model {model!r} belongs to {grantee!r} itself, who may do everything with it; what "
            "single keys may do is a matter of their scopes",
            code="grant_to_owner",
        )
    values: dict[str, Any] = {
        "rights": words,
        "answers": Answers(answers),
        "max_items_per_day": max_items_per_day,
    }
    session.execute(
        insert(Grant)
        .values(
            id=new_id(GRANT),
            tenant_id=tenant_id,
            model_id=model_id,
            grantee_id=grantee_id,
            **values,
        )
        .on_conflict_do_update(
            index_elements=[Grant.model_id, Grant.grantee_id],
            set_={**values, "updated_at": func.now()},
        )
    )
    return _list(session, model_id, tenant=grantee, limit=1)[0]


def revoke_grant(session: Session, tenant_id: str, model: str, grantee: str) -> str:
    """Take every right on the model back: no new job from now on, no new chunk of old ones.

    The answer is the id of the grant that was.

    Raises:
        NotFoundError: ``model_not_found``, ``tenant_not_found`` or ``grant_not_found``.
    """
    model_id = get_model(session, tenant_id, model).id
    gone: str | None = session.scalar(
        delete(Grant)
        .where(
            Grant.tenant_id == tenant_id,
            Grant.model_id == model_id,
            Grant.grantee_id == _find_tenant(session, grantee),
        )
        .returning(Grant.id)
    )
    if gone is None:
        raise NotFoundError(
            f"tenant {grantee!r} has no right on model {model!r}", code="grant_not_found"
        )
    return gone


def list_grants(
    session: Session, tenant_id: str, model: str, *, after: str | None = None, limit: int = 100
) -> tuple[list[GivenGrant], bool]:
    """A page of the grants on a model, the youngest first, and whether more follow.

    Raises:
        NotFoundError: ``model_not_found``.
    """
    model_id = get_model(session, tenant_id, model).id
    rows = _list(session, model_id, after=after, limit=limit + 1)
    return rows[:limit], len(rows) > limit


def _list(
    session: Session,
    model_id: str,
    *,
    after: str | None = None,
    tenant: str | None = None,
    limit: int,
) -> list[GivenGrant]:
    words = {"model_id": model_id, "after": after, "tenant": tenant, "limit": limit}
    return [GivenGrant(**row._mapping) for row in session.execute(_LIST, words)]


def _find_tenant(session: Session, name: str) -> str:
    found: str | None = session.scalar(_FIND_TENANT, {"name": name})
    if found is None:
        raise NotFoundError(
            f"there is no tenant {name[:120]!r}: ask its people how it is spelt; upper and lower "
            "case count",
            code="tenant_not_found",
        )
    return found


def _check_rights(rights: Iterable[Right | str]) -> list[str]:
    wanted = {str(right) for right in rights}
    known = [right.value for right in Right]
    if unknown := sorted(wanted.difference(known)):
        raise InvalidInputError(
            f"unknown right {unknown[0][:60]!r}; there are {', '.join(known)}",
            code="right_unknown",
        )
    if not wanted:
        raise InvalidInputError(
            "a grant needs at least one right; to leave none, take it back", code="rights_missing"
        )
    return [word for word in known if word in wanted]
