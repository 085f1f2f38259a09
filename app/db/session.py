"""Connections and transactions: every one bound to a tenant, or openly to the system role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, DisconnectionError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from app.clock import monotonic_seconds
from app.errors import SettingsError, UnavailableError
from app.points import reach
from app.settings import Settings

#: Set in the ``info`` of a session that writes a result: the points around its COMMIT are named.
RECORDS = "records"

_SERVER_OPTIONS = " ".join(
    f"-c {name}={value}"
    for name, value in {
        # A client that stops between UPDATE job and COMMIT would freeze the whole job.
        "idle_in_transaction_session_timeout": "10s",
        "lock_timeout": "5s",
        "statement_timeout": "60s",
        "timezone": "UTC",
        "application_name": "darkroom",
    }.items()
)

#: The system's questions go across whole tables. A plan kept from when these were empty, the
#: morning of a service, took a quarter of a second each time until autovacuum came by.
_PLAN_EACH_TIME = "-c plan_cache_mode=force_custom_plan"

#: A pooled connection that rested so long is asked whether it lives before it serves again.
_PING_AFTER_SECONDS = 1.0
_RESTS_SINCE = "rests_since"

#: When a client may ask again whose write found a full disk: people have to make room.
_FULL_RETRY_SECONDS = 60

#: What the driver raises where SQLAlchemy does not stand between.
_DRIVER_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)

# OFFSET keeps the question whole, and it needs what is bound: row level security looks at the
# tenant after it was set, whatever the planner chooses. The statement is its own transaction.
_BOUND = """
    SELECT answer.*
    FROM (SELECT set_config('app.tenant', %(tenant_id)s, true)) AS bound (tenant_id)
    CROSS JOIN LATERAL ({question} OFFSET 0) AS answer
"""

#: Handed to the driver on every connection; seconds, but tcp_user_timeout in milliseconds.
CONNECT_ARGS: dict[str, Any] = {
    "options": _SERVER_OPTIONS,
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


def make_engine(url: str, *, pool_size: int = 5, options: str = "") -> Engine:
    """An engine with the connection manners of the house; opens nothing yet.

    ``options`` are further ones of the server, as ``-c name=value``.
    """
    if url.startswith("postgresql://"):
        url = "postgresql+psycopg://" + url.removeprefix("postgresql://")
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        # An error that is logged shows its statement; its words may hold what a client keeps to
        # itself, such as a signed address.
        hide_parameters=True,
        connect_args={**CONNECT_ARGS, "options": f"{_SERVER_OPTIONS} {options}"},
    )
    event.listen(engine, "checkin", _note_rest)
    event.listen(engine, "checkout", _ping_after_rest)
    return engine


def _note_rest(_connection: DBAPIConnection | None, record: ConnectionPoolEntry) -> None:
    record.info[_RESTS_SINCE] = monotonic_seconds()


def _ping_after_rest(
    connection: DBAPIConnection, record: ConnectionPoolEntry, _proxy: PoolProxiedConnection
) -> None:
    """Ask a connection that has rested whether it still lives; a dead one is replaced.

    One that served a moment ago is taken as alive: asking before each transaction costs a busy
    API a fifth of its time. Where that is wrong the caller gets what it gets from a connection
    that dies a moment later: an error that may be tried again.
    """
    since = record.info.get(_RESTS_SINCE)
    if since is None or monotonic_seconds() - since < _PING_AFTER_SECONDS:
        return
    try:
        connection.cursor().execute("SELECT 1")
        connection.rollback()
    except psycopg.Error as error:
        raise DisconnectionError("the connection did not outlive its rest") from error


class Database:
    """The two doors to PostgreSQL: as a tenant under row level security, or as the system."""

    def __init__(self, url: str, system_url: str | None = None, *, pool_size: int = 5) -> None:
        self._engine = make_engine(url, pool_size=pool_size)
        self._system_engine = (
            make_engine(system_url, pool_size=pool_size, options=_PLAN_EACH_TIME)
            if system_url
            else None
        )
        self._sessions = sessionmaker(self._engine, expire_on_commit=False)
        self._system_sessions = sessionmaker(self._system_engine, expire_on_commit=False)
        # For single questions that need no transaction around them.
        self._asking = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        event.listen(self._sessions, "after_begin", _bind_tenant)
        event.listen(self._sessions, "before_commit", _before_commit)
        event.listen(self._sessions, "after_commit", _after_commit)

    @classmethod
    def from_settings(cls, settings: Settings) -> Database:
        """The database that the settings name, with the system door where a URL is given."""
        system = settings.system_database_url
        return cls(
            settings.database_url.get_secret_value(),
            system.get_secret_value() if system else None,
            pool_size=settings.database_pool,
        )

    @contextmanager
    def tenant(self, tenant_id: str) -> Iterator[Session]:
        """One transaction that sees and writes only this tenant's rows; commits at the end.

        Raises:
            UnavailableError: the database does not answer.
        """
        with _unavailable(), self._sessions.begin() as session:
            session.info["tenant_id"] = tenant_id
            yield session

    @contextmanager
    def anonymous(self) -> Iterator[Session]:
        """One transaction with no tenant: sees no tenant's rows, only what is common to all."""
        with self.tenant("") as session:
            yield session

    def ask(self, question: str, words: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of one statement that reads what is common to all; no transaction, no tenant.

        ``question`` is in the driver's own form, ``%(word)s``.

        Raises:
            UnavailableError: the database does not answer.
        """
        with _unavailable(), self._asking.connect() as connection:
            # Past SQLAlchemy, which would work out the columns anew for each answer: half the
            # time of a question this small.
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            try:
                return driver.cursor(row_factory=namedtuple_row).execute(question, words).fetchall()
            except psycopg.Error:
                if driver.closed:
                    # SQLAlchemy has to see it, too: it replaces all that died together.
                    connection.exec_driver_sql("SELECT 1")
                raise

    def ask_as(self, tenant_id: str, question: str, words: Mapping[str, Any]) -> Sequence[Any]:
        """The rows of one SELECT that sees only this tenant's rows; one round trip.

        Where it is asked so often that a transaction around it would cost more than it does.
        ``question`` compares its table's tenant with ``bound.tenant_id``.

        Raises:
            UnavailableError: the database does not answer.
        """
        return self.ask(_BOUND.format(question=question), {**words, "tenant_id": tenant_id})

    @contextmanager
    def system(self) -> Iterator[Session]:
        """One transaction across tenants, for dispatcher, sweeper and administration."""
        if self._system_engine is None:
            raise SettingsError("SYSTEM_DATABASE_URL is not set for this process")
        with _unavailable(), self._system_sessions.begin() as session:
            yield session

    def close(self) -> None:
        """Close all pooled connections."""
        self._engine.dispose()
        if self._system_engine is not None:
            self._system_engine.dispose()


def _bind_tenant(session: Session, _transaction: object, connection: Connection) -> None:
    """Set the tenant of a transaction as it begins, whichever statement comes first."""
    connection.exec_driver_sql(
        "SELECT set_config('app.tenant', %(tenant)s, true)", {"tenant": session.info["tenant_id"]}
    )


def _before_commit(session: Session) -> None:
    """Name the two points before the COMMIT of a result: nothing lies between it and the last."""
    if session.info.get(RECORDS):
        session.flush()
        reach("before_commit")
        reach("inside_commit")


def _after_commit(session: Session) -> None:
    if session.info.get(RECORDS):
        reach("after_commit")


@contextmanager
def _unavailable() -> Iterator[None]:
    """Turn a lost or refused connection into the error that callers may retry."""
    try:
        yield
    except (OperationalError, PoolTimeout, *_DRIVER_AWAY) as error:
        if isinstance(getattr(error, "orig", error), psycopg.errors.DiskFull):
            raise UnavailableError(
                "the database's disk is full: nothing was written; make room and try again",
                code="storage_full",
                retry_after_seconds=_FULL_RETRY_SECONDS,
            ) from error
        raise UnavailableError(
            "the database does not answer; try again", code="database_unavailable"
        ) from error
    except DBAPIError as error:
        if error.connection_invalidated:
            raise UnavailableError(
                "the database connection was lost; try again", code="database_unavailable"
            ) from error
        raise
