"""How fast versions are on the devices that they ran on, from the chunks of jobs that ended."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class ChunkSpeed:
    """What one chunk of recognised images took."""

    #: Name, threads and precision, see :func:`worker.pipeline.device.describe_device`.
    device: str
    #: Images that were answered.
    images: int
    #: Seconds that the device computed.
    forward_seconds: float
    #: Seconds of the worker, shared with what it did at the same time.
    busy_seconds: float


# One statement as a job ends, and not one a chunk: forty workers on one version would wait for
# each other's row. Of two jobs that end at once the later adds nothing instead of waiting.
_ADD = text(
    """
    WITH alone AS MATERIALIZED (
        SELECT id AS job_id, model_version_id
        FROM jobs
        WHERE id = :job_id AND tenant_id = :tenant_id AND model_version_id IS NOT NULL
          AND pg_try_advisory_xact_lock(hashtextextended(model_version_id, 0))
    )
    INSERT INTO speeds AS known (tenant_id, model_version_id, device, images, forward_seconds,
                                 busy_seconds)
    SELECT :tenant_id, alone.model_version_id, measured.device, sum(measured.images),
           sum(measured.forward_seconds), sum(measured.busy_seconds)
    FROM alone
    JOIN chunks ON chunks.job_id = alone.job_id
    CROSS JOIN jsonb_to_record(chunks.speed) AS measured (
        device text, images bigint, forward_seconds float8, busy_seconds float8)
    WHERE chunks.speed IS NOT NULL
    GROUP BY alone.model_version_id, measured.device
    ON CONFLICT (model_version_id, device) DO UPDATE
    SET images = known.images + excluded.images,
        forward_seconds = known.forward_seconds + excluded.forward_seconds,
        busy_seconds = known.busy_seconds + excluded.busy_seconds,
        updated_at = now()
    """
)


def add_speeds(session: Session, tenant_id: str, job_id: str) -> None:
    """Add what the chunks of a job took to the speeds of its version.

    Never waits for another transaction: where one adds to the same version just now, these
    are left out.
    """
    session.execute(_ADD, {"tenant_id": tenant_id, "job_id": job_id})
