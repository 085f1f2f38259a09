"""Metrics of jobs as rows."""

from __future__ import annotations

from sqlalchemy import Double, Integer, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, Id, Moment, of_same_tenant


class Metric(Base):
    """One logged number of a job; a run that starts over writes the same rows again."""

    __tablename__ = "metrics"

    job_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant_id: Mapped[Id]
    value: Mapped[float] = mapped_column(Double)
    recorded_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (of_same_tenant("job_id", "jobs", ondelete="CASCADE"),)
