"""Every state of jobs, chunks and items: what it means, and who moves a row out of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class JobKind(enum.StrEnum):
    """What a job does."""

    #: Recognise every item with one model version.
    PREDICT = "predict"
    #: Recognise every labelled item with one model version, and measure how right it is.
    EVALUATE = "evaluate"
    #: Train a recogniser on a dataset version and register what comes out.
    FINETUNE = "finetune"
    #: Train recognisers by recipes that differ, and register what the best brought.
    SEARCH = "search"
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
    #: All items are done; ends in the same transaction, unless the kind has closing work: an
    #: evaluation's report is the work of one chunk more, and its record ends the job.
    FINALIZING = "finalizing"
    #: Held by the client: nothing of it is claimed, and what was running is given back; the
    #: client's resume moves it back to where it stood.
    PAUSED = "paused"
    #: Told to stop (``stop_reason`` says why), but a worker may still hold a chunk; ends when
    #: it lets go.
    CANCELLING = "cancelling"
    #: Every item succeeded.
    SUCCEEDED = "succeeded"
    #: Some items succeeded, some failed.
    PARTIALLY_SUCCEEDED = "partially_succeeded"
    #: Every item failed, or the job itself could not be done; ``error`` says why.
    FAILED = "failed"
    #: Its deadline passed; what had finished stays.
    EXPIRED = "expired"
    #: Cancelled; what had finished stays.
    CANCELLED = "cancelled"


class StopReason(enum.StrEnum):
    """Why a job is told to stop before its end; decides the state it ends in."""

    #: The client asked for it; ends cancelled.
    CANCEL = "cancel"
    #: Its deadline passed; ends expired.
    DEADLINE = "deadline"
    #: More of its items failed than its failure budget allows; ends failed.
    FAILURES = "failures"
    #: Its tenant's quota of training minutes is used up; ends failed.
    TRAINING_MINUTES = "training_minutes"


TERMINAL_JOB_STATES = frozenset(
    {
        JobState.SUCCEEDED,
        JobState.PARTIALLY_SUCCEEDED,
        JobState.FAILED,
        JobState.EXPIRED,
        JobState.CANCELLED,
    }
)

#: States in which a job is neither ended nor told to stop.
_GOING_ON = frozenset({JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING, JobState.PAUSED})

#: Allowed moves: target → the states it may be reached from.
JOB_SOURCES: Mapping[JobState, frozenset[JobState]] = {
    # From PAUSED by a resume, to where the job stood.
    JobState.VALIDATING: frozenset({JobState.PAUSED}),
    JobState.QUEUED: frozenset({JobState.VALIDATING, JobState.PAUSED}),
    JobState.RUNNING: frozenset({JobState.QUEUED, JobState.PAUSED}),
    JobState.PAUSED: frozenset({JobState.VALIDATING, JobState.QUEUED, JobState.RUNNING}),
    # From PAUSED too: what a worker had in hand may have been the last.
    JobState.FINALIZING: _GOING_ON,
    # From FINALIZING where there is closing work to stop.
    JobState.CANCELLING: _GOING_ON | {JobState.FINALIZING},
    JobState.SUCCEEDED: frozenset({JobState.FINALIZING}),
    JobState.PARTIALLY_SUCCEEDED: frozenset({JobState.FINALIZING}),
    # From CANCELLING where the failure budget or the training minutes were the reason.
    JobState.FAILED: _GOING_ON | {JobState.FINALIZING, JobState.CANCELLING},
    JobState.EXPIRED: frozenset({JobState.CANCELLING}),
    JobState.CANCELLED: frozenset({JobState.CANCELLING}),
}


class ChunkTask(enum.StrEnum):
    """Which worker task a chunk wakes; with :mod:`app.queues.names` it decides the queue."""

    #: Read a job's input and cut it into chunks.
    PLAN = "plan"
    #: Recognise a range of items; of a predict job or of an evaluation.
    PREDICT = "predict"
    #: Measure an evaluation whose items are all done, and write its report.
    EVALUATE = "evaluate"
    FINETUNE = "finetune"
    #: Train by one recipe of a search.
    TRIAL = "trial"
    EXPORT = "export"
    INGEST = "ingest"
    IMPORT = "import"


#: Kinds whose input a plan cuts into chunks of items.
PLANNED_KINDS = frozenset({JobKind.PREDICT, JobKind.EVALUATE})

#: Kinds whose chunks are ranges of all their items. Each trial of a search is one.
ITEM_KINDS = PLANNED_KINDS | {JobKind.SEARCH}

#: Tasks that train: their time counts, and they keep checkpoints.
TRAINING_TASKS = (ChunkTask.FINETUNE, ChunkTask.TRIAL)

#: What is left to do once all items of such a job are done.
CLOSING_TASKS: Mapping[JobKind, ChunkTask] = {JobKind.EVALUATE: ChunkTask.EVALUATE}


class ChunkState(enum.StrEnum):
    """Where a chunk stands."""

    #: Runnable once due; a claim moves it on.
    PENDING = "pending"
    #: Leased to one worker; its record moves it on, or the sweeper when the lease ends.
    RUNNING = "running"
    #: Its results are recorded, or its job failed with it.
    DONE = "done"
    #: Its job's deadline passed before it ran to its end.
    EXPIRED = "expired"
    #: Its job was cancelled, or failed, before it ran to its end.
    CANCELLED = "cancelled"


CHUNK_SOURCES: Mapping[ChunkState, frozenset[ChunkState]] = {
    ChunkState.PENDING: frozenset({ChunkState.RUNNING}),
    ChunkState.RUNNING: frozenset({ChunkState.PENDING}),
    ChunkState.DONE: frozenset({ChunkState.RUNNING}),
    ChunkState.EXPIRED: frozenset({ChunkState.PENDING, ChunkState.RUNNING}),
    ChunkState.CANCELLED: frozenset({ChunkState.PENDING, ChunkState.RUNNING}),
}


class EventState(enum.StrEnum):
    """Where an event of the outbox stands."""

    #: Webhooks have not had it yet; the fan-out moves it on.
    PENDING = "pending"
    #: Every webhook that wants it has a delivery of its own; kept for some days for readers.
    FANNED_OUT = "fanned_out"


class ItemState(enum.StrEnum):
    """How an item ended; its row appears only then."""

    #: Recognised (or, in an ingest job, packed).
    SUCCEEDED = "succeeded"
    #: Not recognised; ``error`` says why.
    FAILED = "failed"
    #: Left out on purpose.
    SKIPPED = "skipped"
