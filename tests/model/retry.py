"""Retries in database and model at once: a new job over what another did not finish well."""

from __future__ import annotations

from sqlalchemy import select

from app.errors import ConflictError, FencedError, InvalidInputError
from app.jobs.items import unpack_items
from app.jobs.plan import plan_job
from app.jobs.retried import Which
from app.jobs.retry import submit_retry
from app.jobs.states import ChunkState, ChunkTask, JobKind, JobState
from app.jobs.tables import Chunk
from app.settings import load_settings
from app.storage.s3 import ObjectStore
from tests.model.drive import Driver, key
from tests.model.values import LEASE_SECONDS, Attempt, ModelJob

#: The references of a retry lie in the database: its plan asks no store.
_SETTINGS = load_settings(
    DATABASE_URL="postgresql://unused", chunk_items=2, lease_seconds=LEASE_SECONDS
)


def refusal(job: ModelJob, which: Which) -> str | None:
    """The code with which a retry of this job is refused; None where it is accepted."""
    if job.kind != JobKind.PREDICT:
        return "not_retryable"
    if not job.ended:
        return "job_not_ended"
    if any(each.task == ChunkTask.PLAN and each.state != ChunkState.DONE for each in job.chunks):
        return "input_not_read"
    return None if job.left(which) else "nothing_to_retry"


def retry(driver: Driver, job_id: str, which: Which) -> str | None:
    """A client submits the retry of a job, in whatever state that is; its plan, if accepted."""
    source = driver.world.jobs[job_id]
    told, new = _submit(driver, source, which)
    assert told == refusal(source, which)
    if new is None:
        return None
    job = driver.add_job(new[0], source.tenant_id, JobKind.PREDICT, JobState.VALIDATING)
    # A job that has ended never changes, so what its retry must hold is known from the start.
    job.retry_of, job.names = job_id, source.left(which)
    driver.world.add_chunk(job.id, new[1], ChunkTask.PLAN)
    return new[1]


def _submit(
    driver: Driver, source: ModelJob, which: Which
) -> tuple[str | None, tuple[str, str] | None]:
    """The code of the refusal, or the new job and its plan."""
    try:
        with driver.db.tenant(source.tenant_id) as session:
            new = submit_retry(session, source.tenant_id, source.id, which=which)
            plan_id = session.scalars(select(Chunk.id).where(Chunk.job_id == new.id)).one()
    except (ConflictError, InvalidInputError) as error:
        return error.code, None
    return None, (new.id, plan_id)


def plan_retry(driver: Driver, attempt: Attempt) -> None:
    """A worker plans a retry from beginning to end."""
    lease = attempt.lease
    job = driver.world.jobs[lease.job_id]
    names = job.names or []
    try:
        taken = plan_job(
            driver.db,
            ObjectStore.from_settings(_SETTINGS),
            _SETTINGS,
            lease,
            should_stop=lambda: False,
        )
    except FencedError:
        taken = False
    assert taken == driver.world.record_part(*key(attempt), {}, added=len(names))
    if not taken:
        return
    chunks = (
        select(Chunk.id, Chunk.lo, Chunk.hi, Chunk.items)
        .where(Chunk.job_id == job.id, Chunk.task == ChunkTask.PREDICT)
        .order_by(Chunk.lo)
    )
    with driver.db.system() as session:
        rows = session.execute(chunks).all()
    found = [item.custom_id for row in rows for item in unpack_items(row.items)]
    assert found == names
    for row in rows:
        driver.world.add_chunk(job.id, row.id, ChunkTask.PREDICT, row.lo, row.hi)
    driver.world.record_plan(*key(attempt))
