"""Metrics of jobs, and how long workers trained, as rows."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Double, ForeignKey, Index, Integer, Text, func
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


class TrainingTime(Base):
    """One attempt at a fine-tuning and how long it took; written by a trigger of the database."""

    __tablename__ = "training_time"

    # No foreign keys: the time counts whatever becomes of the job.
    chunk_id: Mapped[Id] = mapped_column(primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    job_id: Mapped[Id]
    began_at: Mapped[Moment]
    ended_at: Mapped[Moment]

    __table_args__ = (
        CheckConstraint("began_at <= ended_at", name="order"),
        Index("ix_training_time_tenant_id_ended_at", "tenant_id", "ended_at"),
        Index("ix_training_time_ended_at", "ended_at"),
    )
