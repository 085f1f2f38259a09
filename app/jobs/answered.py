"""The answers of an evaluation's items, with the attempt that recorded each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.jobs.states import ChunkTask
from app.jobs.tables import Chunk, Item

#: Chunks looked at together, without their items.
_PAGE_CHUNKS = 500


class AnsweredItem(NamedTuple):
    """How one item ended, as far as it is measured."""

    ordinal: int
    #: Of the chunk; together they name the complete scores of what that attempt recorded.
    attempt: int
    state: str
    label: str | None
    #: The best class and its score as shown; None where it failed.
    answered: str | None
    confidence: float | None


def read_answered(
    db: Database, tenant_id: str, job_id: str
) -> Iterator[tuple[str, Sequence[AnsweredItem]]]:
    """Every chunk of items with how they ended, in the order of the input.

    A short transaction a chunk, and none while the caller works.
    """
    after = -1
    while True:
        with db.tenant(tenant_id) as session:
            chunks = session.execute(
                select(Chunk.id, Chunk.first_item, Chunk.lo, Chunk.hi)
                .where(
                    Chunk.job_id == job_id,
                    Chunk.tenant_id == tenant_id,
                    Chunk.task == ChunkTask.PREDICT,
                    Chunk.lo > after,
                )
                .order_by(Chunk.lo)
                .limit(_PAGE_CHUNKS)
            ).all()
        for chunk in chunks:
            after = chunk.lo
            with db.tenant(tenant_id) as session:
                # From its first reference: an earlier attempt may have recorded a part.
                yield chunk.id, _items(session, tenant_id, job_id, chunk.first_item, chunk.hi)
        if len(chunks) < _PAGE_CHUNKS:
            return


def name_items(
    session: Session, tenant_id: str, job_id: str, ordinals: Sequence[int]
) -> dict[int, tuple[str, str]]:
    """The ``custom_id`` and ``source`` of some items by their ordinals."""
    rows = session.execute(
        select(Item.ordinal, Item.custom_id, Item.source).where(
            Item.job_id == job_id, Item.tenant_id == tenant_id, Item.ordinal.in_(ordinals)
        )
    )
    return {row.ordinal: (row.custom_id, row.source) for row in rows}


def _items(
    session: Session, tenant_id: str, job_id: str, first: int, end: int
) -> list[AnsweredItem]:
    # The best answer alone: rankings may be long.
    best = Item.prediction.op("->")(0)
    rows = session.execute(
        select(
            Item.ordinal,
            Item.attempt,
            Item.state,
            Item.label,
            best.op("->>")(0),
            best.op("->")(1),
        )
        .where(
            Item.job_id == job_id,
            Item.tenant_id == tenant_id,
            Item.ordinal >= first,
            Item.ordinal < end,
        )
        .order_by(Item.ordinal)
    )
    return [AnsweredItem(*row) for row in rows]
