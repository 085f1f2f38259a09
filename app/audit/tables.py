"""The audit log as rows: what was done, and the newest link of each tenant's chain."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, CheckConstraint, ForeignKey, Index, LargeBinary, Text, func
from sqlalchemy import text as sql
from sqlalchemy.orm import Mapped, mapped_column

from app.audit.actions import Outcome
from app.db.base import Base, Id, Moment, one_of


class AuditEntry(Base):
    """One act; never changed and never deleted, except that the dispatcher chains it, once."""

    __tablename__ = "audit_entries"

    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    #: Holds the writer's clock, which the MAC covers.
    id: Mapped[Id] = mapped_column(primary_key=True)
    at: Mapped[Moment] = mapped_column(server_default=func.now())
    #: An API key's id, or ``operator``.
    actor: Mapped[str] = mapped_column(Text)
    action: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(Text)
    #: Id or name of what was acted on.
    target: Mapped[str | None] = mapped_column(Text)
    request_id: Mapped[str | None] = mapped_column(Text)
    client_address: Mapped[str | None] = mapped_column(Text)
    #: ``json`` and not ``jsonb``: the text stays as it was signed.
    details: Mapped[dict[str, Any]] = mapped_column(JSON)
    #: Which key made the MAC; see :class:`app.audit.keys.AuditKey`.
    mac_key: Mapped[str] = mapped_column(Text)
    #: HMAC-SHA-256 of what the writer knows, made by the writer.
    mac: Mapped[bytes] = mapped_column(LargeBinary)
    #: Place in the tenant's chain: 1, 2, 3, … without holes; null until the dispatcher came by.
    seq: Mapped[int | None] = mapped_column(BigInteger)
    chained_at: Mapped[Moment | None]
    hash_key: Mapped[str | None] = mapped_column(Text)
    #: HMAC-SHA-256 of the link before, and of this entry with its place.
    hash: Mapped[bytes | None] = mapped_column(LargeBinary)

    __table_args__ = (
        CheckConstraint(one_of("outcome", Outcome), name="outcome"),
        CheckConstraint(
            "num_nulls(seq, chained_at, hash_key, hash) IN (0, 4) AND seq >= 1", name="chained"
        ),
        # No two links at one place: a fork is refused, however many dispatchers run.
        Index("uq_audit_entries_tenant_id_seq", "tenant_id", "seq", unique=True),
        Index("ix_audit_entries_tenant_id_target_id", "tenant_id", "target", "id"),
        Index("ix_audit_entries_tenant_id_action_id", "tenant_id", "action", "id"),
        Index("ix_audit_entries_tenant_id_actor_id", "tenant_id", "actor", "id"),
        Index("ix_audit_entries_tenant_id_at", "tenant_id", "at"),
        Index(
            "ix_audit_entries_unchained",
            "at",
            "id",
            postgresql_where=sql("seq IS NULL"),
        ),
    )


class AuditHead(Base):
    """The newest link of a tenant's chain, so that one that was cut off at its end is missed."""

    __tablename__ = "audit_heads"

    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[bytes] = mapped_column(LargeBinary)
    mac_key: Mapped[str] = mapped_column(Text)
    #: HMAC-SHA-256 of tenant, place and link.
    mac: Mapped[bytes] = mapped_column(LargeBinary)
