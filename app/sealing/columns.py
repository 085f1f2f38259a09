"""Columns that hold sealed secrets: under which keys they lie, and how they come under the next.

A rotation seals small tokens again and nothing else: what a data key sealed stays as it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.db.session import Database
from app.keyring import Keyring, SealError
from app.log import get_logger

log = get_logger(__name__)

_BATCH = 200


@dataclass(frozen=True, slots=True)
class SealedColumn:
    """A column of tokens of :mod:`app.keyring`; a table may have several."""

    #: What its rows are, in the plural, as people read it.
    name: str
    column: InstrumentedAttribute[Any]
    id_column: InstrumentedAttribute[Any]
    tenant_column: InstrumentedAttribute[Any]
    #: What the token of a row is bound to, by its ``id`` and ``tenant_id``.
    about: Callable[[Any], str]
    #: Which rows hold their secret in clear, from the time before it was sealed.
    in_clear: ColumnElement[bool] | None = None


@dataclass(frozen=True, slots=True)
class ColumnStatus:
    """Where the secrets of one column stand."""

    name: str
    #: Key id → rows that only this key opens.
    by_key: Mapping[str, int]
    in_clear: int


#: Hears in a batch's transaction how many rows of each tenant it sealed again.
OnBatch = Callable[[Session, str, Mapping[str, int]], None]


@dataclass(slots=True)
class Rotated:
    """What a rotation did to one column."""

    name: str
    resealed: int = 0
    #: Rows whose token did not open, by error code; they stay as they are.
    refused: dict[str, int] = field(default_factory=dict)


def count_column(session: Session, column: SealedColumn) -> ColumnStatus:
    """How many rows each key seals; needs a session that sees every tenant."""
    key_id = _key_id(column)
    rows = session.execute(
        select(key_id, func.count()).where(column.column.is_not(None)).group_by(key_id)
    )
    by_key = {str(row[0]): int(row[1]) for row in rows}
    in_clear = 0
    if column.in_clear is not None:
        rows_of = select(func.count()).select_from(column.id_column.class_)
        in_clear = int(session.scalar(rows_of.where(column.in_clear)) or 0)
    return ColumnStatus(column.name, dict(sorted(by_key.items())), in_clear)


def rotate_column(
    db: Database, keyring: Keyring, column: SealedColumn, on_batch: OnBatch = lambda *_: None
) -> Rotated:
    """Bring every token of a column under the active key, a short transaction for each batch.

    May be ended at any moment and begun again, and many may run at once, beside everything
    else: a token is replaced only where it is still the one that was read.

    Raises:
        UnavailableError: the database does not answer.
    """
    rotated, last = Rotated(column.name), ""
    while True:
        with db.system() as session:
            rows = session.execute(
                select(
                    column.id_column.label("id"),
                    column.column.label("token"),
                    column.tenant_column.label("tenant_id"),
                )
                .where(
                    column.column.is_not(None),
                    _key_id(column) != keyring.active_id,
                    column.id_column > last,
                )
                .order_by(column.id_column)
                .limit(_BATCH)
            ).all()
            tenants: Counter[str] = Counter()
            for row in rows:
                if _rotate_row(session, keyring, column, row, rotated):
                    tenants[row.tenant_id] += 1
            if tenants:
                on_batch(session, column.name, tenants)
        rotated.resealed += tenants.total()
        if not rows:
            return rotated
        last = rows[-1].id


def _rotate_row(
    session: Session, keyring: Keyring, column: SealedColumn, row: Any, rotated: Rotated
) -> bool:
    try:
        token = keyring.reseal(row.token, column.about(row))
    except SealError as error:
        log.warning("not_resealed", what=column.name, row=row.id, code=error.code)
        rotated.refused[error.code] = rotated.refused.get(error.code, 0) + 1
        return False
    moved = session.execute(
        update(column.id_column.class_)
        .where(column.id_column == row.id, column.column == row.token)
        .values({column.column: token})
        .returning(column.id_column)
        .execution_options(synchronize_session=False)
    ).first()
    return moved is not None


def _key_id(column: SealedColumn) -> ColumnElement[str]:
    """The id in a token, in SQL; see :func:`app.keyring.key_id_of`."""
    return func.split_part(column.column, ".", 2)
