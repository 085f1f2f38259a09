"""Every state of jobs, chunks and items: what it means, and who moves a row out of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class JobKind(enum.StrEnum):
    """What a job does."""

    #: Recognise every item with one model version.
    PREDICT = "predict"
    #: Train a recogniser on a dataset version and register what comes out.
    FINETUNE = "finetune"
    #: Write the results of another job to a file.
    EXPORT = "export"
    #: Unpack an archive into shards and judge its members.
    INGEST = "ingest"
    #: Check weights against an architecture and register them.
    IMPORT = "import"


class JobState(enum.StrEnum):
    """Where a job stands; the last five never change again."""

    #: Input is being read and cut into chunks; the plan moves it on, or fails it.
    VALIDATING = "validating"
    #: Planned, no chunk claimed yet; the first claim moves it on.
    QUEUED = "queued"
    #: At least one chunk was claimed; the last record moves it on.
    RUNNING = "running"
    #: All chunks are done, the outcome is being written; ends in the same transaction
    #: unless the kind has closing work.
    FINALIZING = "finalizing"
    #: Cancelled by the client, but a worker still holds a chunk; ends when it lets go.
    CANCELLING = "cancelling"
    #: Every item succeeded.
    SUCCEEDED = "succeeded"
    #: Some items succeeded, some failed.
    PARTIALLY_SUCCEEDED = "partially_succeeded"
    #: Every item failed, or the job itself could not be done; ``error`` says why.
    FAILED = "failed"
    #: Cancelled; what had finished stays.
    CANCELLED = "cancelled"


TERMINAL_JOB_STATES = frozenset(
    {
        JobState.SUCCEEDED,
        JobState.PARTIALLY_SUCCEEDED,
        JobState.FAILED,
        JobState.CANCELLED,
    }
)

#: Allowed moves: target → the states it may be reached from.
JOB_SOURCES: Mapping[JobState, frozenset[JobState]] = {
    JobState.QUEUED: frozenset({JobState.VALIDATING}),
    JobState.RUNNING: frozenset({JobState.QUEUED}),
    JobState.FINALIZING: frozenset({JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING}),
    JobState.CANCELLING: frozenset({JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING}),
    JobState.SUCCEEDED: frozenset({JobState.FINALIZING}),
    JobState.PARTIALLY_SUCCEEDED: frozenset({JobState.FINALIZING}),
    JobState.FAILED: frozenset(
        {JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING, JobState.FINALIZING}
    ),
    JobState.CANCELLED: frozenset({JobState.CANCELLING}),
}


class ChunkTask(enum.StrEnum):
    """Which worker task a chunk wakes; with :mod:`app.queues.names` it decides the queue."""

    #: Read a job's input and cut it into chunks.
    PLAN = "plan"
    PREDICT = "predict"
    FINETUNE = "finetune"
    EXPORT = "export"
    INGEST = "ingest"
    IMPORT = "import"


class ChunkState(enum.StrEnum):
    """Where a chunk stands."""

    #: Runnable once due; a claim moves it on.
    PENDING = "pending"
    #: Leased to one worker; its record moves it on, or the sweeper when the lease ends.
    RUNNING = "running"
    #: Its results are recorded, or its job failed with it.
    DONE = "done"
    #: Its job was cancelled before it ran to its end.
    CANCELLED = "cancelled"


CHUNK_SOURCES: Mapping[ChunkState, frozenset[ChunkState]] = {
    ChunkState.PENDING: frozenset({ChunkState.RUNNING}),
    # From RUNNING too: a claim may take over a lease that has ended before the sweeper saw it.
    ChunkState.RUNNING: frozenset({ChunkState.PENDING, ChunkState.RUNNING}),
    ChunkState.DONE: frozenset({ChunkState.RUNNING}),
    ChunkState.CANCELLED: frozenset({ChunkState.PENDING, ChunkState.RUNNING}),
}


class ItemState(enum.StrEnum):
    """How an item ended; its row appears only then."""

    #: Recognised (or, in an ingest job, packed).
    SUCCEEDED = "succeeded"
    #: Not recognised; ``error`` says why.
    FAILED = "failed"
    #: Left out on purpose.
    SKIPPED = "skipped"
