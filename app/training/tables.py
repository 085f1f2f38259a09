"""Metrics of jobs, trials of searches, and how long workers trained, as rows."""

from __future__ import annotations

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
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, Id, Json, Moment, of_same_tenant


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


class TrialRow(Base):
    """What a trial of a search is tried with, and what it shows.

    A trial is an item of its job: how it ended is told by the item's row, whether it is in work
    by its chunk.
    """

    __tablename__ = "trials"

    job_id: Mapped[Id] = mapped_column(primary_key=True)
    #: The ordinal of its item.
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[Id]
    #: Field of the recipe → value; never changed, so that a later attempt tries the same.
    parameters: Mapped[Json]
    #: Epoch → accuracy and loss on the validation split, NULL where not finite.
    epochs: Mapped[Json] = mapped_column(server_default=text("'{}'::jsonb"))
    #: Those of the epoch whose weights it keeps, once it is complete.
    accuracy: Mapped[float | None] = mapped_column(Double)
    loss: Mapped[float | None] = mapped_column(Double)
    started_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (of_same_tenant("job_id", "jobs", ondelete="CASCADE"),)


class TrainingTime(Base):
    """One attempt at a training and how long it took; written by a trigger of the database."""

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
