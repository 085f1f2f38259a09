"""Jobs, chunks and attempts as the model knows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from app.jobs.claim import Lease
from app.jobs.item_rows import ItemRow
from app.jobs.retried import Which
from app.jobs.states import (
    TERMINAL_JOB_STATES,
    ChunkState,
    ChunkTask,
    ItemState,
    JobKind,
    JobState,
    StopReason,
)

LEASE_SECONDS = 30.0
MAX_KILLS = 4
OPEN = frozenset({ChunkState.PENDING, ChunkState.RUNNING})


@dataclass(slots=True)
class ModelChunk:
    """A chunk as the rules see it; times are seconds on the fake clock."""

    id: str
    job_id: str
    task: ChunkTask
    lo: int
    hi: int
    due_at: float
    state: ChunkState = ChunkState.PENDING
    attempt: int = 0
    kills: int = 0
    faults: int = 0
    lease_until: float | None = None
    worker_id: str | None = None

    @property
    def size(self) -> int:
        """Items it still has to do; 0 where it is one step for the whole job."""
        return self.hi - self.lo


@dataclass(slots=True)
class ModelJob:
    """A job as the rules see it, with every item that was ever recorded."""

    id: str
    tenant_id: str
    kind: JobKind
    state: JobState
    total: int = 0
    sealed: bool = False
    seq: int = 0
    reason: StopReason | None = None
    deadline_at: float | None = None
    max_failed_items: int | None = None
    max_failed_fraction: float | None = None
    #: Whether it was ever queued, or running: a resume leads back to there.
    was_queued: bool = False
    was_running: bool = False
    cancelled: int = 0
    expired: int = 0
    #: The job whose items it tries again, and the client's names of those.
    retry_of: str | None = None
    names: list[str] | None = None
    chunks: list[ModelChunk] = field(default_factory=list)
    #: Ordinal → how it ended and under which attempt.
    rows: dict[int, tuple[ItemState, int]] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether it is closed for good."""
        return self.state in TERMINAL_JOB_STATES

    @property
    def counted(self) -> int:
        """Items whose end is known."""
        return len(self.rows) + self.cancelled + self.expired

    def name_of(self, ordinal: int) -> str:
        """What the client calls an item."""
        return f"item {ordinal}" if self.names is None else self.names[ordinal]

    def left(self, which: Which) -> list[str]:
        """The names of the items that a retry takes: those that failed, or never ended."""
        failed = {at for at, (state, _) in self.rows.items() if state == ItemState.FAILED}
        never_ended = set(range(self.total)) - self.rows.keys()
        wanted = {"failed": failed, "unfinished": never_ended, "all": failed | never_ended}
        return [self.name_of(ordinal) for ordinal in sorted(wanted[which])]

    def items(self, state: ItemState) -> int:
        """Recorded items that ended so."""
        return sum(found == state for found, _ in self.rows.values())


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long a job may take, in seconds from its submission, and how many items may fail."""

    seconds: float | None = None
    failed_items: int | None = None
    failed_fraction: float | None = None


UNBOUNDED = Bounds()


@dataclass(eq=False, slots=True)
class Attempt:
    """A worker that was given a chunk, and all that it knows; it may be long outdated."""

    lease: Lease
    #: Items that it has found or packed so far, where its task is resumable.
    position: int
    #: What the last heartbeat or look told it of the job.
    told: JobState | None


def rows_for(ordinals: Iterable[int], failing: int) -> dict[int, ItemState]:
    """How items end: every ``failing``-th fails, none where it is 0."""
    return {
        ordinal: ItemState.FAILED if failing and ordinal % failing == 0 else ItemState.SUCCEEDED
        for ordinal in ordinals
    }


def item_rows(job: ModelJob, rows: Mapping[int, ItemState]) -> list[ItemRow]:
    """The same as a worker records them."""
    return [
        ItemRow(
            ordinal,
            job.name_of(ordinal),
            "s3://photos",
            state,
            prediction=[["cat", 1.0]] if state == ItemState.SUCCEEDED else None,
            error={"code": "x"} if state == ItemState.FAILED else None,
        )
        for ordinal, state in rows.items()
    ]
