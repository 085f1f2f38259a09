"""What a request costs, in questions to database and object store: the same work, the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import psycopg

#: Keys and quotas of who asks are remembered for a while, and rested connections are asked whether
#: they live: that has nothing to do with the id that is asked for.
_UNRELATED = ("find_api_key", "last_used_at", "tenants.max_open_jobs", "AS submitted")


@contextmanager
def recorded_work(app: Any) -> Iterator[list[str]]:
    """Every statement sent to the database, and every request to the object store, in order."""
    seen: list[str] = []
    execute = psycopg.Cursor.execute

    def note(cursor: Any, query: Any, *words: Any, **names: Any) -> Any:
        text = str(query)
        if text != "SELECT 1" and not any(word in text for word in _UNRELATED):
            seen.append(text)
        return execute(cursor, query, *words, **names)

    def note_request(**words: Any) -> None:
        seen.append(f"S3 {words['model'].name}")

    events = app.extensions["darkroom"].store._client.meta.events
    events.register("before-call.s3", note_request)
    try:
        with patch.object(psycopg.Cursor, "execute", note):
            yield seen
    finally:
        events.unregister("before-call.s3", note_request)
