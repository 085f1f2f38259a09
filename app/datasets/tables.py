"""Datasets, their frozen versions and the samples in them."""

from __future__ import annotations

import enum
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

import app.tenants.tables  # noqa: F401  (foreign keys point to it)
from app.db.base import Base, Id, Json, JsonList, Moment, of_same_tenant, one_of


class Split(enum.StrEnum):
    """Which part of a dataset version a sample belongs to."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class Dataset(Base):
    """A name for labelled images; its versions hold them."""

    __tablename__ = "datasets"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        Index("ix_datasets_tenant_id_id", "tenant_id", "id", unique=True),
    )


class DatasetVersion(Base):
    """Frozen labelled images: never changed, told apart by the hash of what is in it."""

    __tablename__ = "dataset_versions"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    dataset_id: Mapped[Id]
    number: Mapped[int] = mapped_column(Integer)
    #: SHA-256 over (image sha256, label, split) of all samples in order.
    content_sha256: Mapped[str] = mapped_column(Text)
    #: Class names, sorted; the order of a trained network's outputs.
    classes: Mapped[JsonList]
    sample_count: Mapped[int] = mapped_column(BigInteger)
    #: ``{"train": {"cat": 12, …}, …}``.
    counts: Mapped[Json]
    #: What it was frozen from: upload id, fractions, seed.
    source: Mapped[Json]
    #: Sizes and duplicates, see :mod:`app.datasets.facts`; NULL where an earlier release froze it.
    facts: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("dataset_id", "datasets"),
        UniqueConstraint("dataset_id", "number"),
        Index("ix_dataset_versions_tenant_id_id", "tenant_id", "id", unique=True),
    )


class Sample(Base):
    """One labelled image of a dataset version."""

    __tablename__ = "samples"

    dataset_version_id: Mapped[Id] = mapped_column(primary_key=True)
    ordinal: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[Id]
    name: Mapped[str] = mapped_column(Text)
    object_key: Mapped[str] = mapped_column(Text)
    offset_bytes: Mapped[int] = mapped_column(BigInteger)
    length_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    label: Mapped[str] = mapped_column(Text)
    split: Mapped[str] = mapped_column(Text)

    __table_args__ = (
        of_same_tenant("dataset_version_id", "dataset_versions", ondelete="CASCADE"),
        CheckConstraint(one_of("split", Split), name="split"),
        Index("ix_samples_split", "dataset_version_id", "split", "ordinal"),
    )
