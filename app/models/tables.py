"""Machine-learning models as rows: names, versions, aliases, scores, and who else may use them."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Double,
    ForeignKey,
    Index,
    Integer,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

import app.tenants.tables  # noqa: F401  (foreign keys point to it)
from app.datasets.tables import Split
from app.db.base import Base, Id, Json, JsonList, Moment, of_same_tenant, one_of
from app.models.rights import Answers
from app.models.states import MoveKind, VersionState

#: Versions that are given up and whose weights still lie there.
GIVEN_UP = "delete_asked_at IS NOT NULL AND weights_key IS NOT NULL"


class Model(Base):
    """A name that versions are registered under."""

    __tablename__ = "models"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        UniqueConstraint("tenant_id", "name"),
        # Grants need it, too: who grants a right on a model must own it.
        Index("ix_models_tenant_id_id", "tenant_id", "id", unique=True),
    )


class ModelVersion(Base):
    """Immutable weights with their preprocessing, classes and lineage.

    Columns of the weights are empty while the version is pending.
    """

    __tablename__ = "model_versions"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    model_id: Mapped[Id]
    number: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(Text)
    arch: Mapped[str] = mapped_column(Text)
    arch_options: Mapped[Json]
    classes: Mapped[JsonList | None]
    preprocess: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    preprocess_sha256: Mapped[str | None] = mapped_column(Text)
    weights_key: Mapped[str | None] = mapped_column(Text)
    #: SHA-256 of the weights in clear.
    weights_sha256: Mapped[str | None] = mapped_column(Text)
    #: Bytes of the weights in clear.
    weights_bytes: Mapped[int | None] = mapped_column(BigInteger)
    #: The data key of the version's weights and checkpoints, wrapped by a sealing key.
    sealed_key: Mapped[str | None] = mapped_column(Text)
    #: SHA-256 of the object at ``weights_key``; empty where the weights lie in clear.
    sealed_sha256: Mapped[str | None] = mapped_column(Text)
    parameter_count: Mapped[int | None] = mapped_column(BigInteger)
    #: Multiply-accumulate operations for one image.
    macs: Mapped[int | None] = mapped_column(BigInteger)
    #: Scores on the held-out split of the data it was trained on.
    scores: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: What the last evaluation of it fitted: the temperature, and on what.
    calibration: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    #: Where it came from: job, dataset version, recipe, or the file and its digest.
    lineage: Mapped[Json]
    job_id: Mapped[Id | None]
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    ready_at: Mapped[Moment | None]
    #: When its owner gave it up; the weights go once no open job uses them.
    delete_asked_at: Mapped[Moment | None]
    deleted_at: Mapped[Moment | None]

    __table_args__ = (
        of_same_tenant("model_id", "models"),
        of_same_tenant("job_id", "jobs", use_alter=True),
        UniqueConstraint("model_id", "number"),
        CheckConstraint(one_of("state", VersionState), name="state"),
        CheckConstraint(
            "state NOT IN ('ready', 'archived') OR (classes IS NOT NULL AND "
            "preprocess IS NOT NULL AND weights_key IS NOT NULL AND weights_sha256 IS NOT NULL)",
            name="complete",
        ),
        CheckConstraint("sealed_sha256 IS NULL OR sealed_key IS NOT NULL", name="sealed"),
        Index("ix_model_versions_tenant_id_id", "tenant_id", "id", unique=True),
        Index(
            "ix_model_versions_given_up",
            "delete_asked_at",
            postgresql_where=text(GIVEN_UP),
        ),
    )


class Alias(Base):
    """A movable pointer to a version of a model: ``digits@production``."""

    __tablename__ = "aliases"

    model_id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    version_id: Mapped[Id]
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("model_id", "models"),
        of_same_tenant("version_id", "model_versions"),
    )


class AliasMove(Base):
    """One move of an alias; rows are only ever added, so a move can be taken back."""

    __tablename__ = "alias_moves"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    model_id: Mapped[Id]
    alias: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    #: Where it pointed before; NULL for the first move.
    from_version_id: Mapped[Id | None]
    to_version_id: Mapped[Id]
    #: What the gate compared, see :class:`app.models.gate.Verdict`.
    verdict: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("model_id", "models"),
        of_same_tenant("from_version_id", "model_versions"),
        of_same_tenant("to_version_id", "model_versions"),
        CheckConstraint(one_of("kind", MoveKind), name="kind"),
        Index("ix_alias_moves_model_id_alias_id", "model_id", "alias", "id"),
    )


class Gate(Base):
    """What a version must show before an alias may point at it."""

    __tablename__ = "gates"

    model_id: Mapped[Id] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    #: A word of :data:`app.models.states.GateMetric`.
    metric: Mapped[str] = mapped_column(Text)
    #: By how much at least the metric must be above that of the version in place; below 0, by how
    #: much it may be worse.
    margin: Mapped[float] = mapped_column(Double)
    #: What the metric must be at least, whatever is in place.
    minimum: Mapped[float | None] = mapped_column(Double)
    #: The dataset that both must have been evaluated on; NULL is any.
    dataset_id: Mapped[Id | None]
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("model_id", "models"),
        of_same_tenant("dataset_id", "datasets"),
    )


class Evaluation(Base):
    """How good a version was on one split of a dataset version."""

    __tablename__ = "evaluations"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    model_version_id: Mapped[Id]
    dataset_version_id: Mapped[Id]
    #: NULL where it was the whole version.
    split: Mapped[str | None] = mapped_column(Text)
    #: The job that found out: of kind finetune or evaluate.
    job_id: Mapped[Id]
    #: Images that were answered.
    items: Mapped[int] = mapped_column(BigInteger)
    #: Name → number, such as ``{"accuracy": 0.98}``.
    metrics: Mapped[Json]
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("model_version_id", "model_versions"),
        of_same_tenant("dataset_version_id", "dataset_versions"),
        of_same_tenant("job_id", "jobs", use_alter=True),
        CheckConstraint(f"split IS NULL OR {one_of('split', Split)}", name="split"),
        Index("ix_evaluations_model_version_id_id", "model_version_id", "id"),
    )


class Speed(Base):
    """How fast a version was on one kind of device, summed over the jobs that ran."""

    __tablename__ = "speeds"

    model_version_id: Mapped[Id] = mapped_column(primary_key=True)
    #: Its name, threads and precision, such as ``NVIDIA H200, float32``.
    device: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    #: Images that were answered.
    images: Mapped[int] = mapped_column(BigInteger)
    #: Seconds that the device computed.
    forward_seconds: Mapped[float] = mapped_column(Double)
    #: Seconds that workers were busy, reading and decoding included.
    busy_seconds: Mapped[float] = mapped_column(Double)
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (of_same_tenant("model_version_id", "model_versions"),)


class Grant(Base):
    """What another tenant may do with all versions of a model; no row is no right at all."""

    __tablename__ = "grants"

    id: Mapped[Id] = mapped_column(primary_key=True)
    #: The model's owner.
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    model_id: Mapped[Id]
    grantee_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    #: Words of :class:`app.models.rights.Right`.
    rights: Mapped[list[str]] = mapped_column(ARRAY(Text))
    #: How exactly the grantee is answered; see :class:`app.models.rights.Answers`.
    answers: Mapped[str] = mapped_column(Text)
    #: Items that the model answers the grantee in a day (UTC); NULL is any number.
    max_items_per_day: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("model_id", "models"),
        UniqueConstraint("model_id", "grantee_id"),
        CheckConstraint(
            "rights <@ ARRAY['run', 'evaluate', 'export'] AND cardinality(rights) > 0",
            name="rights",
        ),
        CheckConstraint(one_of("answers", Answers), name="answers"),
        CheckConstraint("max_items_per_day > 0", name="max_items_per_day"),
        CheckConstraint("grantee_id <> tenant_id", name="others"),
        Index("ix_grants_grantee_id", "grantee_id"),
    )


class QueryCount(Base):
    """Items planned for one tenant on one day (UTC), by a line of keys or with a shared model.

    Written by the database's function ``spend_queries`` alone, which only ever adds.
    """

    __tablename__ = "query_counts"

    #: Who asked.
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: The line of keys, or the model of another tenant.
    subject: Mapped[Id] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    items: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (Index("ix_query_counts_day", "day"),)
