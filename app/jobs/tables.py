"""Jobs, their chunks and their items as rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

# Loaded for the tables that foreign keys below point to.
import app.datasets.tables
import app.models.tables
import app.tenants.tables  # noqa: F401
from app.db.base import Base, Id, IdText, Json, JsonList, Moment, of_same_tenant, one_of
from app.jobs.states import (
    TERMINAL_JOB_STATES,
    ChunkState,
    ChunkTask,
    ItemState,
    JobKind,
    JobState,
    StopReason,
)

#: In the order of the enum, so that the SQL is the same each time.
_ENDED = ", ".join(f"'{state.value}'" for state in JobState if state in TERMINAL_JOB_STATES)
#: Jobs that have not ended. As text, so that a query says it in the index's own words.
OPEN_JOBS = f"jobs.state NOT IN ({_ENDED})"


class Job(Base):
    """What a client submitted and how far it is; polling reads this one row."""

    __tablename__ = "jobs"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    kind: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    #: The client's input as accepted: one of upload, prefix, manifest, items, dataset, job;
    #: or retry_of.
    input: Mapped[Json]
    #: Options of the kind, typed and complete (defaults filled in).
    options: Mapped[Json]
    #: The client's own key-value pairs.
    metadata_: Mapped[Json] = mapped_column("metadata")
    model_version_id: Mapped[Id | None]
    dataset_version_id: Mapped[Id | None]
    #: The key it was submitted with, whose query budget its items count against.
    key_id: Mapped[Id | None]
    #: The version it runs where that is another tenant's: no foreign key leads out of a tenant.
    shared_version_id: Mapped[Id | None]
    #: What names that version, as it was granted when the job was submitted; see
    #: :meth:`app.models.shared.SharedVersion.as_kept`.
    shared_version: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    #: Items in all; final once ``sealed_at`` is set.
    total: Mapped[int] = mapped_column(BigInteger, default=0)
    succeeded: Mapped[int] = mapped_column(BigInteger, default=0)
    failed: Mapped[int] = mapped_column(BigInteger, default=0)
    skipped: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Left untouched by a cancel, or by the failure of the job.
    cancelled: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Left untouched when the deadline passed.
    expired: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    #: Items of a full chunk, about ten seconds of work; set as the plan begins.
    chunk_items: Mapped[int | None] = mapped_column(Integer)
    #: Counts the recordings; its holder has the row locked, so it has no holes.
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    #: Number of the last event; taken under the same lock.
    event_number: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    #: Jobs without items: ``{"step": 3, "steps": 30, "unit": "epoch"}``.
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: What the job made, e.g. ``{"model_version": "mdv_…"}``.
    result: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: Why the job failed: code, detail, errors.
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    #: Must have ended by then, or ends expired.
    deadline_at: Mapped[Moment | None]
    #: Failure budget: with more failed items than this (a count, a fraction of the total)
    #: the job is told to stop.
    max_failed_items: Mapped[int | None] = mapped_column(BigInteger)
    max_failed_fraction: Mapped[float | None] = mapped_column(Double)
    #: Why a job that is being stopped, or was, was told to; see :class:`StopReason`.
    stop_reason: Mapped[str | None] = mapped_column(Text)
    #: The job whose failed or unfinished items this one tries again.
    retry_of: Mapped[Id | None]

    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    #: Planning is complete: ``total`` is final and the job may close.
    sealed_at: Mapped[Moment | None]
    queued_at: Mapped[Moment | None]
    running_at: Mapped[Moment | None]
    finalizing_at: Mapped[Moment | None]
    paused_at: Mapped[Moment | None]
    cancelling_at: Mapped[Moment | None]
    #: Set with any terminal state.
    ended_at: Mapped[Moment | None]
    #: What lost attempts had stored was deleted.
    tidied_at: Mapped[Moment | None]
    #: The last change of counts or state.
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("model_version_id", "model_versions"),
        of_same_tenant("dataset_version_id", "dataset_versions"),
        of_same_tenant("key_id", "api_keys"),
        of_same_tenant("retry_of", "jobs"),
        CheckConstraint(one_of("kind", JobKind), name="kind"),
        CheckConstraint(one_of("state", JobState), name="state"),
        CheckConstraint(
            "succeeded >= 0 AND failed >= 0 AND skipped >= 0 AND cancelled >= 0 AND expired >= 0 "
            "AND (sealed_at IS NULL "
            "OR succeeded + failed + skipped + cancelled + expired <= total)",
            name="counts",
        ),
        CheckConstraint(f"(ended_at IS NOT NULL) = (state IN ({_ENDED}))", name="ended"),
        CheckConstraint(one_of("stop_reason", StopReason), name="stop_reason"),
        # Unique, for foreign keys that name the tenant too.
        Index("ix_jobs_tenant_id_id", "tenant_id", "id", unique=True),
        Index(
            "ix_jobs_open",
            "state",
            postgresql_where=text(f"state NOT IN ({_ENDED})"),
        ),
        # Whose work there is, and how much of it: the relay's and the quotas' questions.
        Index(
            "ix_jobs_tenant_open",
            "tenant_id",
            "id",
            postgresql_where=text(f"state NOT IN ({_ENDED})"),
        ),
        Index(
            "ix_jobs_deadline_at",
            "deadline_at",
            postgresql_where=text("ended_at IS NULL AND deadline_at IS NOT NULL"),
        ),
        Index("ix_jobs_retry_of", "retry_of", postgresql_where=text("retry_of IS NOT NULL")),
        Index("ix_jobs_model_version_id", "model_version_id", "ended_at"),
        Index(
            "ix_jobs_shared_version_id",
            "shared_version_id",
            "ended_at",
            postgresql_where=text("shared_version_id IS NOT NULL"),
        ),
        CheckConstraint(
            "shared_version_id IS NULL OR (model_version_id IS NULL AND "
            "shared_version IS NOT NULL)",
            name="shared_version",
        ),
        Index(
            "ix_jobs_untidied",
            "ended_at",
            postgresql_where=text(
                "tidied_at IS NULL AND ended_at IS NOT NULL "
                "AND kind IN ('finetune', 'export', 'import', 'evaluate', 'search')"
            ),
        ),
    )


#: Chunks of trainings that have ended, whose checkpoints are still to be deleted. As text, so that
#: a query says it in the index's own words.
UNTIDY = (
    "task IN ('finetune', 'trial') AND cursor IS NOT NULL AND state NOT IN ('pending', 'running')"
)


class Chunk(Base):
    """A range of a job's items that one worker leases; carries the references of its items."""

    __tablename__ = "chunks"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[Id]
    task: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    #: Items [lo, hi) of the job; empty for chunks that have no items.
    lo: Mapped[int] = mapped_column(BigInteger, default=0)
    hi: Mapped[int] = mapped_column(BigInteger, default=0)
    #: References of the items [first_item, …), see :mod:`app.jobs.items`. Recorded ones stay,
    #: so that a retry finds them: the chunk's own are those of [lo, hi).
    items: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: Ordinal of the first reference in ``items``; ``lo`` as planned or split off. A trigger keeps
    #: it right where a process of the release before writes, which does not know it.
    first_item: Mapped[int] = mapped_column(BigInteger, default=0, server_default=text("0"))
    #: How fast it was recognised, see :class:`app.jobs.speeds.ChunkSpeed`.
    speed: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: Where a resumable task goes on after its last recording.
    cursor: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))

    #: The fencing token: grows with every claim.
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    #: Leases that ended without a word since the chunk last got on.
    kills: Mapped[int] = mapped_column(Integer, default=0)
    #: Tries that ended with a fault that may pass, since the chunk last got on.
    faults: Mapped[int] = mapped_column(Integer, default=0, server_default=text("0"))
    worker_id: Mapped[Id | None]
    lease_until: Mapped[Moment | None]
    due_at: Mapped[Moment] = mapped_column(server_default=func.now())
    last_rung_at: Mapped[Moment | None]
    #: Items or steps finished but not recorded, from the last heartbeat.
    progress: Mapped[int] = mapped_column(BigInteger, default=0)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    running_at: Mapped[Moment | None]
    done_at: Mapped[Moment | None]

    __table_args__ = (
        of_same_tenant("job_id", "jobs", ondelete="CASCADE"),
        CheckConstraint(one_of("task", ChunkTask), name="task"),
        CheckConstraint(one_of("state", ChunkState), name="state"),
        CheckConstraint("lo <= hi", name="range"),
        CheckConstraint("(state = 'running') = (lease_until IS NOT NULL)", name="lease"),
        Index("ix_chunks_job_id_lo", "job_id", "lo"),
        # What is runnable, per job and queue: the relay asks several times a second.
        Index(
            "ix_chunks_runnable",
            "job_id",
            "queue",
            "lo",
            postgresql_where=text("state = 'pending' AND last_rung_at IS NULL"),
        ),
        # What is in work or on its way: a few rows, whatever waits behind them.
        Index(
            "ix_chunks_active",
            "queue",
            "last_rung_at",
            postgresql_where=text(
                "state = 'running' OR (state = 'pending' AND last_rung_at IS NOT NULL)"
            ),
        ),
        # Ended trainings whose checkpoints are still to be deleted.
        Index(
            "ix_chunks_untidy",
            "id",
            postgresql_where=text(UNTIDY),
        ),
        Index(
            "ix_chunks_killed",
            "kills",
            postgresql_where=text("state = 'pending' AND kills > 0"),
        ),
        Index(
            "ix_chunks_running",
            "lease_until",
            postgresql_where=text("state = 'running'"),
        ),
    )


class Item(Base):
    """How one image of a job ended: its prediction or its error; written once."""

    __tablename__ = "items"

    # No foreign key: the check would run once per row of the hottest INSERT of the service.
    job_id: Mapped[Id] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[Id]
    #: The recording that wrote it; running jobs page by (seq, ordinal).
    seq: Mapped[int] = mapped_column(BigInteger)
    #: Attempt of the chunk that wrote it.
    attempt: Mapped[int] = mapped_column(Integer)
    custom_id: Mapped[str] = mapped_column(Text)
    #: Object key or member name that the bytes came from.
    source: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    #: Ranked [class, score] pairs.
    prediction: Mapped[list[Any] | None] = mapped_column(JSONB(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: The true label that came with the input, if any.
    label: Mapped[str | None] = mapped_column(Text)
    metadata_: Mapped[dict[str, Any] | None] = mapped_column("metadata", JSONB(none_as_null=True))

    __table_args__ = (
        CheckConstraint(one_of("state", ItemState), name="state"),
        CheckConstraint("(state = 'failed') = (error IS NOT NULL)", name="error"),
        Index("ix_items_job_id_seq_ordinal", "job_id", "seq", "ordinal"),
        Index(
            "ix_items_failed",
            "job_id",
            "ordinal",
            postgresql_where=text("state = 'failed'"),
        ),
    )


class Artifact(Base):
    """A file that a job made, kept in the object store."""

    __tablename__ = "artifacts"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[Id]
    #: File name as offered for download.
    name: Mapped[str] = mapped_column(Text)
    media_type: Mapped[str] = mapped_column(Text)
    object_key: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("job_id", "jobs", ondelete="CASCADE"),
        Index("ix_artifacts_job_id_id", "job_id", "id"),
        Index("ix_artifacts_tenant_id", "tenant_id"),
    )


class IdempotencyKey(Base):
    """The answer a client's ``Idempotency-Key`` stands for, replayed when it asks again."""

    __tablename__ = "idempotency_keys"

    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    #: SHA-256 of method, path and body; another payload under the same key is refused.
    request_sha256: Mapped[str] = mapped_column(Text)
    status: Mapped[int] = mapped_column(Integer)
    body: Mapped[Json]
    location: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)


class WorkerRow(Base):
    """A worker process that is, or was, running; shared by all tenants."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(IdText, primary_key=True)
    #: ``host:name``; a new process of the same name replaces the old one.
    name: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    device: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    #: Chunks it works on at once.
    slots: Mapped[int] = mapped_column(Integer)
    #: Ids of the model versions it holds warm.
    warm_versions: Mapped[JsonList]
    started_at: Mapped[Moment] = mapped_column(server_default=func.now())
    last_seen_at: Mapped[Moment] = mapped_column(server_default=func.now())
    #: Set when it stopped or was replaced: its leases are void.
    gone_at: Mapped[Moment | None]

    __table_args__ = (
        Index("ix_workers_alive", "queue", postgresql_where=text("gone_at IS NULL")),
        Index("ix_workers_name", "name"),
    )


class TurnRow(Base):
    """When a tenant, or one of its jobs, last had its turn in a queue; the relay's alone."""

    __tablename__ = "turns"

    queue: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(primary_key=True)
    #: Empty for the tenant's own turn. No foreign key: the sweep forgets what has ended.
    job_id: Mapped[Id] = mapped_column(primary_key=True)
    since: Mapped[Moment]
    #: What is left of the turn; see :mod:`app.dispatch.turns`.
    deficit: Mapped[int] = mapped_column(Integer)
