"""Planning: a job's input, read as a stream, becomes chunks that carry item references.

Resumable: every few chunks are committed together with the position they reach, so a plan
that dies goes on from there. A million items are about four thousand rows, never a million.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import cast, func, insert, select, update
from sqlalchemy.dialects.postgresql import JSONB, JSONPATH
from sqlalchemy.orm import Session

from app.db.session import Database
from app.errors import InvalidInputError
from app.ids import CHUNK, new_id
from app.jobs.claim import Lease
from app.jobs.evaluate import most_evaluated_items
from app.jobs.inputs import Fault, Found, read_input
from app.jobs.item_quota import ItemQuota
from app.jobs.items import JobItem, fetched_together, pack_items
from app.jobs.query_budget import spend_budget
from app.jobs.record import record_failure, record_part, record_plan
from app.jobs.states import ChunkState, ChunkTask, JobKind
from app.jobs.stint import Stint
from app.jobs.tables import Chunk, Job
from app.queues.names import QUEUE_OF_TASK
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.locations import locations_of

#: Chunk size: what one worker does in this time at the measured rate of the model version,
CHUNK_SECONDS = 10
#: within these bounds,
MIN_CHUNK_ITEMS, MAX_CHUNK_ITEMS = 64, 4096
#: and this many where no rate is known yet.
UNMEASURED_CHUNK_ITEMS = 256
#: Jobs of a model version, the last that ended, among which one is looked for that was measured.
_RECENT_JOBS = 100
#: Items that are committed together while planning.
_PART_ITEMS = 16_384
_MAX_FAULTS = 100
#: Entries between two looks at whether to stop.
_LOOK_ENTRIES = 256


def plan_job(
    db: Database,
    store: ObjectStore,
    settings: Settings,
    lease: Lease,
    *,
    should_stop: Callable[[], bool],
    on_look: Callable[[], None] = lambda: None,
) -> bool:
    """Cut the job's input into chunks and seal it, or fail the job with all its faults.

    Over the tenant's quota of open items the chunk is given back for a while, and a job that
    alone has more fails. False where it ended before, because of ``should_stop`` or because its
    stint is over: what was committed stays, and the caller lets go of the lease. ``on_look``
    hears of what was looked at and is no item.

    Raises:
        FencedError: another worker plans this job now.
        ForbiddenError: ``location_not_allowed``: nothing of the input may be read.
        StorageError: the input could not be read; a later attempt goes on from here.
    """
    quota = ItemQuota(db, lease, settings)
    stint = Stint(db, lease, settings.io_turn_seconds)
    with db.tenant(lease.tenant_id) as session:
        size = _full_chunk(session, lease, settings)
        locations = locations_of(session, lease.tenant_id, settings.default_locations)
    part = _Part(lease, size, settings.chunk_items or MIN_CHUNK_ITEMS)
    if quota.must_wait(part.planned):
        return True
    with db.tenant(lease.tenant_id) as session:
        seen = _Seen(_planned_custom_ids(session, lease))
    stint.begin_work()
    faults = _Faults()
    entries = read_input(db, store, settings.bucket, lease, on_look, locations=locations)
    for number, entry in enumerate(entries):
        if number % _LOOK_ENTRIES == 0:
            if should_stop():
                return False
            # Not with faults: they are in memory alone, and reading on without writing is quick.
            if part.has_grown and not faults.count and stint.is_over():
                _commit_part(db, settings, lease, part)
                return False
        fault = entry if isinstance(entry, Fault) else seen.check(entry)
        if fault is not None:
            faults.add(fault)
        elif isinstance(entry, Found):
            # Seen even where a fault came before, so that every repeat is told.
            found = seen.unique(entry)
            if not faults.count:
                part.add(found)
            if part.item_count >= _PART_ITEMS:
                _commit_part(db, settings, lease, part)
                if quota.must_wait(part.planned):
                    return True
    items = part.planned + part.item_count
    with db.tenant(lease.tenant_id) as session:
        if faults.count:
            record_failure(session, lease, faults.as_error().as_dict())
        elif not quota.fail_if_too_large(session, items) and spend_budget(session, lease, items):
            part.write(session, settings.lease_seconds)
            record_plan(session, lease)
    return True


class _Faults:
    """What is wrong in the input: the first of it by line, all of it by number."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[dict[str, Any]] = []

    def add(self, fault: Fault) -> None:
        self.count += 1
        if len(self._first) < _MAX_FAULTS:
            self._first.append(fault.as_dict())

    def as_error(self) -> InvalidInputError:
        return InvalidInputError(
            f"the input has {self.count} fault{'s' if self.count > 1 else ''}; nothing was "
            "recognised. Mend what errors names and submit again.",
            code="input_invalid",
            errors=self._first,
            total=self.count,
        )


class _Part:
    """Chunks that are cut but not committed yet.

    The first chunks of a job are small and double, so that results, a rate and an estimate
    come soon; where a chunk begins alone says how large it may be, so a resumed plan cuts the
    same ones.
    """

    def __init__(self, lease: Lease, size: int, first: int) -> None:
        self._lease = lease
        self._size = size
        self._first = first
        self._lo: int = (lease.cursor or {}).get("planned", 0)
        self._runs: list[list[JobItem]] = []
        self._room = 0
        self._position: dict[str, Any] = {}
        self.item_count = 0
        #: Whether this attempt got on at all.
        self.has_grown = False

    def add(self, found: Found) -> None:
        run = self._runs[-1] if self._runs else None
        if run is None or len(run) >= self._room or not fetched_together(run[-1], found.item):
            self._runs.append([found.item])
            self._room = min(self._size, max(self._first, self._lo + self.item_count))
        else:
            run.append(found.item)
        self._position = found.position
        self.item_count += 1
        self.has_grown = True

    @property
    def planned(self) -> int:
        """Items of the job so far that are committed."""
        return self._lo

    def write(self, session: Session, lease_seconds: float) -> None:
        """Insert the chunks with the position they reach, and begin an empty part."""
        if not self.item_count:
            return
        lease, rows, lo = self._lease, [], self._lo
        for run in self._runs:
            rows.append(
                {
                    "id": new_id(CHUNK),
                    "tenant_id": lease.tenant_id,
                    "job_id": lease.job_id,
                    "task": ChunkTask.PREDICT,
                    "queue": QUEUE_OF_TASK[ChunkTask.PREDICT],
                    "state": ChunkState.PENDING,
                    "lo": lo,
                    "hi": lo + len(run),
                    "first_item": lo,
                    "items": pack_items(run),
                }
            )
            lo += len(run)
        record_part(
            session,
            lease,
            cursor={"planned": lo, "position": self._position},
            added=self.item_count,
            lease_seconds=lease_seconds,
        )
        session.execute(insert(Chunk), rows)
        self._lo, self._runs, self.item_count = lo, [], 0


class _Seen:
    """The custom_ids so far, as 16-byte digests: about 100 bytes of memory each."""

    def __init__(self, custom_ids: Iterator[str]) -> None:
        self._digests = {_short_digest(custom_id) for custom_id in custom_ids}

    def check(self, found: Found) -> Fault | None:
        """A fault where the client gave a custom_id twice."""
        if not found.named_by_client or not self._repeats(found.item.custom_id):
            return None
        return Fault(found.line, f"custom_id {found.item.custom_id!r} stands on an earlier line")

    def unique(self, found: Found) -> Found:
        """The same item, its custom_id told apart where two members share a name."""
        # Again where a member is really called so.
        while not found.named_by_client and self._repeats(found.item.custom_id):
            found = found.renamed(f"{found.item.custom_id}#{found.line}")
        self._digests.add(_short_digest(found.item.custom_id))
        return found

    def _repeats(self, custom_id: str) -> bool:
        return _short_digest(custom_id) in self._digests


def _short_digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()


def _commit_part(db: Database, settings: Settings, lease: Lease, part: _Part) -> None:
    with db.tenant(lease.tenant_id) as session:
        part.write(session, settings.lease_seconds)


def _planned_custom_ids(session: Session, lease: Lease) -> Iterator[str]:
    """The custom_ids of chunks that an earlier attempt committed."""
    if not (lease.cursor or {}).get("planned"):
        return
    rows = session.execute(
        select(
            # One array a chunk: a row for each of a million would take four times as long.
            func.jsonb_path_query_array(Chunk.items, cast("$.rows[*][0]", JSONPATH), type_=JSONB)
        )
        .where(Chunk.job_id == lease.job_id, Chunk.task == ChunkTask.PREDICT)
        .execution_options(yield_per=100)
    )
    for (custom_ids,) in rows:
        yield from custom_ids


def _full_chunk(session: Session, lease: Lease, settings: Settings) -> int:
    """Items of a full chunk of this job; kept, so that the relay knows what a chunk costs."""
    size = session.scalar(select(Job.chunk_items).where(Job.id == lease.job_id))
    if size is None:
        size = settings.chunk_items or _chunk_size(session, lease)
        if lease.kind is JobKind.EVALUATE:
            size = min(size, most_evaluated_items(session, lease))
        session.execute(
            update(Job)
            .where(Job.id == lease.job_id, Job.tenant_id == lease.tenant_id)
            .values(chunk_items=size)
            .execution_options(synchronize_session=False)
        )
    return size


def _chunk_size(session: Session, lease: Lease) -> int:
    """Items per chunk by the rate of the last job that this model version finished."""
    version = Job.shared_version_id if lease.is_shared else Job.model_version_id
    recent = (
        select(Job)
        .where(
            Job.tenant_id == lease.tenant_id,
            version == lease.model_version_id,
            Job.ended_at.is_not(None),
        )
        .order_by(Job.ended_at.desc())
        # Where thousands of small jobs are all there is, nobody looks through them each time.
        .limit(_RECENT_JOBS)
        .subquery()
    )
    last = session.execute(
        select(recent.c.succeeded, recent.c.running_at, recent.c.ended_at)
        .where(
            recent.c.kind == JobKind.PREDICT,
            recent.c.running_at.is_not(None),
            # The time it was held is in its time, too.
            recent.c.paused_at.is_(None),
            recent.c.succeeded >= MIN_CHUNK_ITEMS,
        )
        .order_by(recent.c.ended_at.desc())
        .limit(1)
    ).first()
    if last is None:
        return UNMEASURED_CHUNK_ITEMS
    seconds = max((last.ended_at - last.running_at).total_seconds(), 0.001)
    wanted = int(last.succeeded / seconds * CHUNK_SECONDS)
    return max(MIN_CHUNK_ITEMS, min(MAX_CHUNK_ITEMS, wanted))
