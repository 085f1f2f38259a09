"""Reading which workers are, or were, running."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.page import fetch_page
from app.jobs.tables import WorkerRow


def list_workers(
    session: Session, *, after: str | None = None, limit: int = 50
) -> tuple[list[WorkerRow], bool]:
    """A page of workers, newest first, and whether more follow; all tenants share them."""
    return fetch_page(session, select(WorkerRow), WorkerRow.id, after=after, limit=limit)
