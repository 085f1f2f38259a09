"""A PostgreSQL whose clock the test turns: no statement of ours asks any other clock.

``now()`` and ``clock_timestamp()`` are functions like any other, found by ``search_path``. In a
database of its own, a schema ``fake`` that stands before ``pg_catalog`` gives them another
meaning, so the statements under test run as they are and time passes only when told to.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql

from app.db.session import Database
from app.stack.postgres import ADMIN, LocalPostgres
from tests.local_parts import build_database

_SCHEMA = """
CREATE SCHEMA fake;
CREATE TABLE fake.clock (moment timestamptz NOT NULL);
INSERT INTO fake.clock VALUES ('2030-01-01 00:00:00+00');
CREATE FUNCTION fake.now() RETURNS timestamptz
    LANGUAGE sql STABLE AS 'SELECT moment FROM fake.clock';
CREATE FUNCTION fake.clock_timestamp() RETURNS timestamptz
    LANGUAGE sql STABLE AS 'SELECT moment FROM fake.clock';
-- Every change of a state, whoever makes it: what a look at the rows alone would not show.
CREATE TABLE fake.moves (
    number bigint GENERATED ALWAYS AS IDENTITY,
    kind text NOT NULL, id text NOT NULL, source text NOT NULL, target text NOT NULL);
CREATE FUNCTION fake.note_move() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO fake.moves (kind, id, source, target)
    VALUES (TG_TABLE_NAME, NEW.id, OLD.state, NEW.state);
    RETURN NEW;
END $$;
CREATE TRIGGER note_move AFTER UPDATE OF state ON jobs
    FOR EACH ROW EXECUTE FUNCTION fake.note_move();
CREATE TRIGGER note_move AFTER UPDATE OF state ON chunks
    FOR EACH ROW EXECUTE FUNCTION fake.note_move();
GRANT USAGE ON SCHEMA fake TO darkroom_api, darkroom_system;
GRANT SELECT ON fake.clock TO darkroom_api, darkroom_system;
GRANT INSERT, SELECT, DELETE ON fake.moves TO darkroom_api, darkroom_system;
"""
# Defaults were bound to the real clock when the tables were made.
_BIND_DEFAULTS = """
DO $$
DECLARE found record;
BEGIN
    FOR found IN SELECT table_name, column_name FROM information_schema.columns
                 WHERE table_schema = 'public' AND column_default = 'now()'
    LOOP
        EXECUTE format('ALTER TABLE public.%I ALTER COLUMN %I SET DEFAULT fake.now()',
                       found.table_name, found.column_name);
    END LOOP;
END $$;
"""


class TimedDatabase:
    """The migrated database ``name`` under a clock that stands still until it is advanced."""

    def __init__(self, postgres: LocalPostgres, name: str) -> None:
        urls = build_database(postgres, name)
        self._admin = psycopg.connect(
            postgres.url(ADMIN, postgres.secrets.admin_password, database=name), autocommit=True
        )
        self._admin.execute(_SCHEMA)
        self._admin.execute(_BIND_DEFAULTS)
        # It would let nobody forget a row, and games are forgotten.
        self._admin.execute("ALTER TABLE audit_entries DISABLE TRIGGER USER")
        self._admin.execute(
            sql.SQL("ALTER DATABASE {} SET search_path = fake, pg_catalog, public").format(
                sql.Identifier(name)
            )
        )
        self.db = Database(*urls, pool_size=3)

    def clear(self) -> None:
        """Forget every row; the clock goes on from where it stands."""
        tables = self.read(
            "SELECT table_schema, table_name FROM information_schema.tables "
            "WHERE table_type = 'BASE TABLE' AND (table_schema, table_name) = ('fake', 'moves') "
            "OR (table_schema = 'public' AND table_name <> 'alembic_version')"
        )
        names = sql.SQL(", ").join(sql.Identifier(*table) for table in tables)
        self._admin.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(names))

    def now(self) -> float:
        """Seconds since 1970 on the fake clock."""
        row = self._admin.execute("SELECT extract(epoch FROM moment) FROM fake.clock").fetchone()
        assert row is not None
        return float(row[0])

    def advance(self, seconds: float) -> None:
        """Let so much time pass; the workers show themselves meanwhile."""
        self._admin.execute(
            "UPDATE fake.clock SET moment = moment + make_interval(secs => %s)", (seconds,)
        )
        # Workers show themselves by a thread of their own, whatever their chunks do.
        self._admin.execute("UPDATE workers SET last_seen_at = fake.now()")

    def read(self, query: str) -> list[tuple[Any, ...]]:
        """All rows of a query that looks past roles and tenants."""
        return self._admin.execute(query.encode()).fetchall()

    def close(self) -> None:
        """Close all connections; the database stays until its server ends."""
        self._admin.close()
        self.db.close()
