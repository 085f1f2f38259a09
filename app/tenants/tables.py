"""Who owns rows, and what proves it."""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.db.base import Base, Id, Moment, of_same_tenant


class Tenant(Base):
    """An owner of rows; every other row names one."""

    __tablename__ = "tenants"

    id: Mapped[Id] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    #: Limits of its own; NULL means that of the settings. See :class:`app.tenants.quotas.Quotas`.
    max_open_jobs: Mapped[int | None] = mapped_column(BigInteger)
    max_open_items: Mapped[int | None] = mapped_column(BigInteger)
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_submissions_per_minute: Mapped[int | None] = mapped_column(BigInteger)
    max_training_minutes: Mapped[int | None] = mapped_column(BigInteger)
    #: From where its jobs may read; NULL means as the settings say, an empty list nowhere.
    input_locations: Mapped[list[str] | None] = mapped_column(ARRAY(Text))


class ApiKey(Base):
    """A key of a tenant; only the keyed hash of its secret is kept."""

    __tablename__ = "api_keys"

    id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id] = mapped_column(ForeignKey("tenants.id"))
    name: Mapped[str] = mapped_column(Text)
    #: HMAC-SHA-256 of the secret under the server's pepper, in hex.
    secret_hash: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[Moment] = mapped_column(server_default=func.now())
    expires_at: Mapped[Moment | None]
    revoked_at: Mapped[Moment | None]
    last_used_at: Mapped[Moment | None]
    #: The first key of its line, where it succeeds another one; NULL for a first key.
    line_id: Mapped[Id | None]

    __table_args__ = (
        of_same_tenant("line_id", "api_keys"),
        # Unique for foreign keys that name the tenant too.
        Index("ix_api_keys_tenant_id_id", "tenant_id", "id", unique=True),
        Index("ix_api_keys_line_id", "line_id", postgresql_where=text("line_id IS NOT NULL")),
    )


class KeyBudget(Base):
    """How many items the keys of one line may have answered in a day (UTC)."""

    __tablename__ = "key_budgets"

    #: The first key of the line: a key that succeeds it by rotation has the same budget.
    line_id: Mapped[Id] = mapped_column(primary_key=True)
    tenant_id: Mapped[Id]
    max_items_per_day: Mapped[int] = mapped_column(BigInteger)
    updated_at: Mapped[Moment] = mapped_column(server_default=func.now())

    __table_args__ = (
        of_same_tenant("line_id", "api_keys"),
        CheckConstraint("max_items_per_day > 0", name="max_items_per_day"),
    )
