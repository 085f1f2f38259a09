"""Merges a job with its retries: each item by the best answer that any of them gave.

A retry's items stand in the order of those that it tries again (:mod:`app.jobs.retried`), so all
jobs are read side by side, once, each in the order of its items, and none is held whole.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from app.db.session import Database
from app.exports.read import (
    ExportMismatchError,
    Only,
    Snapshot,
    iter_pages,
    page_rows,
    take_snapshot,
)
from app.exports.rows import ExportRow, Provenance
from app.jobs.retried import list_retries, takes
from app.jobs.states import ItemState

#: Rows of one page where many jobs are read at once, at least.
_PAGE_ROWS_MIN = 50


@dataclass(frozen=True, slots=True)
class Member:
    """A job as it stood, with the retries that were made of it, newest first."""

    snapshot: Snapshot
    #: Place among all members; rows name their recogniser by it.
    number: int
    #: Which items it tries again; empty for the job that is exported.
    which: str
    retries: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A job and all that came of retrying it, retries of retries included."""

    root: Member
    #: All members by number; the root is the first.
    members: Sequence[Member]

    @property
    def provenances(self) -> list[Provenance]:
        """The recogniser of each member."""
        return [member.snapshot.provenance for member in self.members]

    def describe_retries(self) -> list[dict[str, Any]]:
        """The merged jobs as a manifest names them."""
        return [
            {
                "id": member.snapshot.job_id,
                "retry_of": retried.snapshot.job_id,
                "which": member.which,
                "state": member.snapshot.state,
                "complete": member.snapshot.is_complete,
                "counts": {"total": member.snapshot.total, **member.snapshot.counts},
                "model": member.snapshot.provenance.model,
                "model_version_id": member.snapshot.provenance.model_version_id,
            }
            for retried in self.members
            for member in retried.retries
        ]


def take_single(session: Session, tenant_id: str, job_id: str) -> Family:
    """A job alone as it stands now.

    Raises:
        NotFoundError: this tenant has no such job.
    """
    root = Member(take_snapshot(session, tenant_id, job_id), 0, "")
    return Family(root, [root])


def take_family(session: Session, tenant_id: str, job_id: str) -> Family:
    """A job and its retries as they stand now.

    Raises:
        NotFoundError: this tenant has no such job.
        InvalidInputError: it was retried more often than can be merged.
    """
    root = take_snapshot(session, tenant_id, job_id)
    # Read after it: only of a job that had ended then are the retries of just those items.
    links = list_retries(session, tenant_id, job_id) if root.is_complete else []
    children: dict[str, list[tuple[Snapshot, str]]] = {}
    for link in links:
        snapshot = take_snapshot(session, tenant_id, link.id)
        children.setdefault(link.retry_of, []).append((snapshot, link.which))
    members: list[Member] = []

    def gather(snapshot: Snapshot, which: str) -> Member:
        number = len(members)
        members.append(Member(snapshot, number, which))
        found = children.get(snapshot.job_id, ()) if snapshot.is_complete else ()
        retries = tuple(gather(*child) for child in found)
        members[number] = Member(snapshot, number, which, retries)
        return members[number]

    return Family(gather(root, ""), members)


def iter_merged_pages(
    db: Database, tenant_id: str, family: Family, only: Only
) -> Iterator[Sequence[ExportRow]]:
    """The items of the root in its order, each by the best answer in the family.

    That is the job's own where the item succeeded, else that of the newest retry in which it
    did, else the newest error. ``only`` looks at the answer.

    Raises:
        ExportMismatchError: of some member other rows were found than it counts.
    """
    reader = _Reader(db, tenant_id, family)
    size = page_rows(family.root.snapshot.options)
    page: list[ExportRow] = []
    for row in reader.answers(family.root):
        if row is not None and only in ("all", row.state):
            page.append(row)
        if len(page) >= size:
            yield page
            page = []
    reader.compare()
    if page:
        yield page


class _Reader:
    """Reads all members side by side and counts what it read of each."""

    def __init__(self, db: Database, tenant_id: str, family: Family) -> None:
        self._db = db
        self._tenant_id = tenant_id
        self._family = family
        self._counts: list[Counter[str]] = [Counter() for _ in family.members]

    def answers(self, member: Member) -> Iterator[ExportRow | None]:
        """One answer for each item of the member in its order; None where there is none yet."""
        rows = self._rows(member)
        following = next(rows, None)
        retries = [(retry.which, self.answers(retry)) for retry in member.retries]
        for ordinal in range(member.snapshot.total):
            own = None
            if following is not None and following.ordinal == ordinal:
                own, following = following, next(rows, None)
            state = None if own is None else own.state
            yield _best(
                ordinal, own, [next(each, None) for which, each in retries if takes(which, state)]
            )
        if following is not None or any(next(each, _END) is not _END for _, each in retries):
            raise ExportMismatchError(
                f"job {member.snapshot.job_id} or a retry of it has more items than it should"
            )

    def compare(self) -> None:
        """Raise ExportMismatchError where a member's rows are not those that it counts."""
        for member, counts in zip(self._family.members, self._counts, strict=True):
            member.snapshot.compare("all", counts)

    def _rows(self, member: Member) -> Iterator[ExportRow]:
        members = len(self._family.members)
        limit = max(_PAGE_ROWS_MIN, page_rows(member.snapshot.options) // members)
        pages = iter_pages(self._db, self._tenant_id, member.snapshot, "all", limit=limit)
        for page in pages:
            self._counts[member.number].update(row.state for row in page)
            for row in page:
                yield row._replace(recogniser=member.number) if member.number else row


_END = object()


def _best(
    ordinal: int, own: ExportRow | None, answers: Sequence[ExportRow | None]
) -> ExportRow | None:
    """The answer for one item of its own row and those of its retries, newest first."""
    given = [answer for answer in answers if answer is not None]
    best = next((answer for answer in given if answer.state != ItemState.FAILED), None)
    if best is None:
        best = given[0] if given else own
    return best if best is None or best is own else best._replace(ordinal=ordinal)
