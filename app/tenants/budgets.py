"""Query budgets of keys: how many items a line of keys may have answered in a day (UTC)."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.errors import InvalidInputError, NotFoundError
from app.tenants.tables import KeyBudget

_FIND = text(
    """
    SELECT coalesce(k.line_id, k.id) AS line_id, b.max_items_per_day,
           coalesce(q.items, 0) AS items_today
    FROM api_keys k
    LEFT JOIN key_budgets b ON b.line_id = coalesce(k.line_id, k.id) AND b.tenant_id = k.tenant_id
    LEFT JOIN query_counts q ON q.tenant_id = k.tenant_id AND q.subject = b.line_id
        AND q.day = (now() AT TIME ZONE 'UTC')::date
    WHERE k.tenant_id = :tenant_id AND k.id = :key_id
    """
)


@dataclass(frozen=True, slots=True)
class Budget:
    """What the keys of a line may have answered in a day, and what was planned for them today."""

    line_id: str
    #: None is any number, and then nothing is counted.
    max_items_per_day: int | None
    items_today: int


def budget_of(session: Session, tenant_id: str, key_id: str) -> Budget:
    """The budget of the key's line.

    Raises:
        NotFoundError: ``key_not_found``.
    """
    row = session.execute(_FIND, {"tenant_id": tenant_id, "key_id": key_id}).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no key {key_id[:60]!r}", code="key_not_found")
    return Budget(**row._mapping)


def set_budget(
    session: Session, tenant_id: str, key_id: str, max_items_per_day: int | None
) -> Budget:
    """Give the key's line a budget; None takes it away. What was counted today stays counted.

    Raises:
        NotFoundError: ``key_not_found``.
        InvalidInputError: ``max_items_invalid``: below 1.
    """
    line_id = budget_of(session, tenant_id, key_id).line_id
    if max_items_per_day is None:
        session.execute(
            delete(KeyBudget).where(KeyBudget.tenant_id == tenant_id, KeyBudget.line_id == line_id)
        )
    elif max_items_per_day < 1:
        raise InvalidInputError(
            "max_items_per_day must be 1 or more; revoke a key that shall ask nothing",
            code="max_items_invalid",
        )
    else:
        fresh = {"max_items_per_day": max_items_per_day, "updated_at": func.now()}
        session.execute(
            insert(KeyBudget)
            .values(line_id=line_id, tenant_id=tenant_id, **fresh)
            .on_conflict_do_update(index_elements=[KeyBudget.line_id], set_=fresh)
        )
    return budget_of(session, tenant_id, key_id)
