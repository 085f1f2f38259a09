"""Logs and reads the metrics of jobs: the numbers that curves are drawn from."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, text, tuple_
from sqlalchemy.orm import Session

from app.errors import InvalidInputError, NotFoundError
from app.training.tables import Metric

#: Such as ``train/loss`` or ``test/f1_macro``.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,99}")
_CURSOR = re.compile(r"([0-9]{1,9}):(.{1,100})")

# The job is looked up in the same statement: a foreign key's own check sees all tenants.
_LOG = text(
    """
    INSERT INTO metrics (job_id, name, step, tenant_id, value)
    SELECT jobs.id, logged.name, :step, jobs.tenant_id, logged.value
    FROM jobs, unnest(CAST(:names AS text[]), CAST(:values AS float8[])) AS logged (name, value)
    WHERE jobs.id = :job_id AND jobs.tenant_id = :tenant_id
    ON CONFLICT (job_id, name, step)
    DO UPDATE SET value = excluded.value, recorded_at = now()
    RETURNING job_id
    """
)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One number of a curve."""

    name: str
    step: int
    #: None where the number was not finite: a run that diverged shows a gap, not a broken page.
    value: float | None
    recorded_at: datetime

    @property
    def id(self) -> str:
        """Where the next page goes on: ``after`` of :func:`read_metrics`."""
        return f"{self.step}:{self.name}"


def log_metrics(
    session: Session, tenant_id: str, job_id: str, step: int, values: Mapping[str, float]
) -> None:
    """Write the metrics of one step; a run that starts over writes the same rows again.

    Raises:
        InvalidInputError: ``metric_invalid``.
        NotFoundError: ``job_not_found``.
    """
    for name in values:
        if not _NAME.fullmatch(name):
            raise InvalidInputError(
                f"{name[:120]!r} is no name for a metric: use 1 to 100 letters, digits, '.', "
                "'_', '-' or '/', and begin with a letter or digit",
                code="metric_invalid",
            )
    if not 0 <= step < 10**9:
        raise InvalidInputError(f"step {step} is not valid: 0…10^9-1", code="metric_invalid")
    if not values:
        return
    logged = session.execute(
        _LOG,
        {
            "job_id": job_id,
            "tenant_id": tenant_id,
            "step": step,
            "names": list(values),
            "values": [float(value) for value in values.values()],
        },
    )
    if logged.first() is None:
        raise NotFoundError(f"there is no job {job_id[:60]!r}", code="job_not_found")


def read_metrics(
    session: Session,
    tenant_id: str,
    job_id: str,
    name: str | None = None,
    *,
    after: str | None = None,
    limit: int = 1000,
) -> tuple[list[MetricPoint], bool]:
    """A page of a job's metrics by step, then name; and whether more follow.

    ``after`` is the :attr:`MetricPoint.id` of the last one already had.

    Raises:
        InvalidInputError: ``cursor_invalid``.
    """
    statement = select(Metric.name, Metric.step, Metric.value, Metric.recorded_at).where(
        Metric.tenant_id == tenant_id, Metric.job_id == job_id
    )
    if name is not None:
        statement = statement.where(Metric.name == name)
    if after is not None:
        cursor = _CURSOR.fullmatch(after)
        if cursor is None:
            raise InvalidInputError(
                f"after={after[:120]!r} is no id of a metric", code="cursor_invalid"
            )
        statement = statement.where(tuple_(Metric.step, Metric.name) > (int(cursor[1]), cursor[2]))
    rows = session.execute(statement.order_by(Metric.step, Metric.name).limit(limit + 1)).all()
    points = [
        MetricPoint(
            row.name,
            row.step,
            row.value if math.isfinite(row.value) else None,
            row.recorded_at,
        )
        for row in rows[:limit]
    ]
    return points, len(rows) > limit
