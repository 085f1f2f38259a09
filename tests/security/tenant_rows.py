"""Two tenants with a row in every table, and who of them sees what, asked as the API's role."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import func, text

from app.audit.actions import Action
from app.audit.append import append_entry
from app.audit.keys import AuditKey
from app.datasets.tables import Dataset, DatasetVersion
from app.db.session import Database
from app.ids import ARTIFACT, DATASET, DATASET_VERSION, MODEL, new_id
from app.jobs.states import ChunkTask
from app.jobs.tables import Artifact, Chunk, Item
from app.models.evaluations import record_evaluation
from app.models.gate import GateRule, set_gate
from app.models.tables import Model, Speed
from app.tenants.keys import create_key
from app.tenants.scopes import Scope
from app.training.tables import TrainingTime, TrialRow
from app.webhooks.register import create_webhook
from tests.factories import PEPPER, add_job, add_key, add_upload, add_version
from tests.integration.test_tenant_rows import furnish
from tests.webhooks import KEYRING, unchecked

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Link:
    """A foreign key from one tenant's table to another."""

    name: str
    table: str
    columns: tuple[str, ...]
    target: str


def furnish_all(database: Database) -> str:
    """The id of a tenant that has a row in every table with a tenant."""
    owned = furnish(database)
    tenant_id = owned.tenant_id
    add_key(database, tenant_id, "k", 0)
    _add_childless(database, tenant_id)
    with database.tenant(tenant_id) as session:
        set_gate(session, tenant_id, "pets", "production", GateRule("f1", dataset="pets"))
        record_evaluation(
            session,
            tenant_id,
            version_id=owned.model_version_id,
            dataset_version_id=owned.dataset_version_id,
            split=None,
            job_id=owned.job_id,
            items=1,
            scores={},
        )
        speed = {"images": 1, "forward_seconds": 1.0, "busy_seconds": 1.0}
        version_id = owned.model_version_id
        session.add(Speed(model_version_id=version_id, device="cpu", tenant_id=tenant_id, **speed))
        job = add_job(session, tenant_id)
        retry = add_job(session, tenant_id)
        retry.retry_of = job.id
        # Its key has a query budget.
        job.key_id = owned.key_id
        session.flush()
        session.execute(text("SELECT spend_queries(:job, 1)"), {"job": job.id})
        session.add_all(
            [
                Chunk(
                    id=f"chk_{job.id[4:]}",
                    tenant_id=tenant_id,
                    job_id=job.id,
                    task=ChunkTask.PLAN,
                    queue="io",
                    state="pending",
                ),
                Item(
                    job_id=job.id,
                    ordinal=0,
                    tenant_id=tenant_id,
                    seq=1,
                    attempt=1,
                    custom_id="a",
                    source="a",
                    state="succeeded",
                ),
                TrialRow(job_id=job.id, number=0, tenant_id=tenant_id, parameters={}),
                Artifact(
                    id=new_id(ARTIFACT),
                    tenant_id=tenant_id,
                    job_id=job.id,
                    name="a",
                    media_type="x/y",
                    object_key="k",
                    size_bytes=1,
                    sha256="0",
                ),
            ]
        )
    key = AuditKey.derive(PEPPER)
    with database.system() as session:
        append_entry(session, key, tenant_id=tenant_id, action=Action.TENANT_CREATED)
        session.execute(
            text(
                "INSERT INTO audit_heads (tenant_id, seq, hash, mac_key, mac) "
                "VALUES (:tenant, 0, '', :key, '')"
            ),
            {"tenant": tenant_id, "key": key.id},
        )
        session.add(
            TrainingTime(
                chunk_id=f"chk_{tenant_id[4:]}",
                attempt=1,
                tenant_id=tenant_id,
                job_id="job_1",
                began_at=func.now(),
                ended_at=func.now(),
            )
        )
        session.execute(
            text(
                "INSERT INTO turns (queue, tenant_id, job_id, since, deficit) "
                "VALUES ('io', :tenant, '', now(), 0)"
            ),
            {"tenant": tenant_id},
        )
    return tenant_id


def _add_childless(database: Database, tenant_id: str) -> None:
    """Rows that nothing points to: a link to them meets no unique constraint first."""
    with database.tenant(tenant_id) as session:
        model = Model(id=new_id(MODEL), tenant_id=tenant_id, name="childless")
        dataset = Dataset(id=new_id(DATASET), tenant_id=tenant_id, name="childless")
        empty = Dataset(id=new_id(DATASET), tenant_id=tenant_id, name="empty")
        session.add_all([model, dataset, empty])
        session.flush()
        session.add(
            DatasetVersion(
                id=new_id(DATASET_VERSION),
                tenant_id=tenant_id,
                dataset_id=dataset.id,
                number=1,
                content_sha256="0",
                classes=[],
                sample_count=0,
                counts={},
                source={},
            )
        )
        add_version(session, tenant_id, "unnamed")
        create_key(session, tenant_id, name="unused", scopes=[Scope.ADMIN], pepper=PEPPER)
        add_upload(session, tenant_id)
        create_webhook(
            session,
            KEYRING,
            tenant_id,
            target=unchecked("https://example.com/"),
            events=["job.failed"],
        )


@contextmanager
def as_api(url: str) -> Iterator[Connection]:
    """A connection of the API's role, each statement by itself, with no tenant ever bound."""
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@contextmanager
def bound(connection: Connection, tenant_id: str | None) -> Iterator[Connection]:
    """A transaction that is bound to a tenant and leaves nothing behind; None binds none."""
    with connection.transaction(force_rollback=True):
        if tenant_id is not None:
            connection.execute("SELECT set_config('app.tenant', %s, true)", [tenant_id])
        yield connection


def tenant_tables(connection: Connection) -> list[str]:
    """Every table with a column ``tenant_id``."""
    return _names(
        connection,
        "SELECT c.relname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid "
        "WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace "
        "AND a.attname = 'tenant_id' AND NOT a.attisdropped ORDER BY 1",
    )


def all_relations(connection: Connection) -> list[str]:
    """Every table, view and sequence there is in the schema."""
    return _names(
        connection,
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') "
        "AND relnamespace = 'public'::regnamespace ORDER BY 1",
    )


def columns_of(connection: Connection, table: str) -> list[str]:
    """The table's columns in their order, without generated ones."""
    return _names(
        connection,
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 "
        "AND NOT attisdropped AND attgenerated = '' AND attidentity <> 'a' ORDER BY attnum",
        [table],
    )


def links(connection: Connection) -> list[Link]:
    """Every foreign key between two tables that both have a tenant."""
    rows = connection.execute(
        """
        SELECT c.conname, c.conrelid::regclass::text, c.confrelid::regclass::text,
               (SELECT array_agg(a.attname::text ORDER BY k.n)
                FROM unnest(c.conkey) WITH ORDINALITY k (number, n)
                JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number) AS columns
        FROM pg_constraint c
        WHERE c.contype = 'f' AND c.connamespace = 'public'::regnamespace ORDER BY 1
        """
    ).fetchall()
    tables = set(tenant_tables(connection))
    return [
        Link(name, child, tuple(columns), parent)
        for name, child, parent, columns in rows
        if child in tables and parent in tables
    ]


def count(connection: Connection, table: str) -> int:
    """How many rows of the table this connection sees, whoever's."""
    question = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(table))
    row = connection.execute(question).fetchone()
    assert row is not None
    return int(row[0])


def _names(connection: Connection, question: str, words: Sequence[Any] = ()) -> list[str]:
    return [str(name) for (name,) in connection.execute(question.encode(), words).fetchall()]
