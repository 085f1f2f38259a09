"""How items ended, as rows: stored by one statement, however many a chunk has."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from app.jobs.events import INSERT_EVENT
from app.jobs.states import ItemState


@dataclass(frozen=True, slots=True)
class ItemRow:
    """How one item ended, as it is stored."""

    ordinal: int
    custom_id: str
    source: str
    state: ItemState
    #: Ranked [class, score] pairs of a recognised item.
    prediction: list[list[Any]] | None = None
    #: Code and detail of a failed item.
    error: dict[str, Any] | None = None
    label: str | None = None
    metadata: dict[str, Any] | None = None


#: Stores items and the event that tells of them; takes the parameters of both.
INSERT_ITEMS = text(
    f"""
    WITH event AS ({INSERT_EVENT})
    INSERT INTO items (job_id, ordinal, tenant_id, seq, attempt, custom_id, source, state,
                       prediction, error, label, metadata)
    SELECT :job_id, ordinal, :tenant_id, :seq, :attempt, custom_id, source, state,
           prediction, error, label, metadata
    FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS row(
        ordinal bigint, custom_id text, source text, state text,
        prediction jsonb, error jsonb, label text, metadata jsonb)
    """  # noqa: S608  joined from our own constants
)


def rows_as_json(rows: Sequence[ItemRow]) -> str:
    """The parameter ``rows`` of :data:`INSERT_ITEMS`."""
    return json.dumps(
        [
            {
                "ordinal": row.ordinal,
                "custom_id": row.custom_id,
                "source": row.source,
                "state": row.state.value,
                "prediction": row.prediction,
                "error": row.error,
                "label": row.label,
                "metadata": row.metadata,
            }
            for row in rows
        ],
        allow_nan=False,
        ensure_ascii=False,
        separators=(",", ":"),
    )
