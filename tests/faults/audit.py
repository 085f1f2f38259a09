"""Triggers that write down every move of jobs, chunks and items, for the oracle alone.

The tables show how things ended; this shows how often, in which order and by whom.
"""

from __future__ import annotations

import psycopg

_INSTALL = """
CREATE SCHEMA audit;
CREATE TABLE audit.jobs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id text NOT NULL, was text, state text NOT NULL
);
CREATE TABLE audit.chunks (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    chunk_id text NOT NULL, job_id text NOT NULL, was text, state text NOT NULL,
    attempt integer NOT NULL, worker_id text, last_rung_at timestamptz, task text NOT NULL
);
CREATE TABLE audit.items (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    job_id text NOT NULL, attempt integer NOT NULL, rows bigint NOT NULL
);
CREATE TABLE audit.undone (
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    job_id text NOT NULL, what text NOT NULL, rows bigint NOT NULL
);
CREATE INDEX ON audit.jobs (job_id);
CREATE INDEX ON audit.chunks (job_id);
CREATE INDEX ON audit.chunks (chunk_id, id);
CREATE INDEX ON audit.items (job_id);

-- SECURITY DEFINER: the roles whose doings are written down may neither read nor forge it.
CREATE FUNCTION audit.on_job() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO audit.jobs (job_id, was, state)
    VALUES (NEW.id, CASE TG_OP WHEN 'UPDATE' THEN OLD.state END, NEW.state);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_insert AFTER INSERT ON public.jobs
    FOR EACH ROW EXECUTE FUNCTION audit.on_job();
CREATE TRIGGER audit_update AFTER UPDATE ON public.jobs
    FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state OR OLD.ended_at <> NEW.ended_at)
    EXECUTE FUNCTION audit.on_job();

CREATE FUNCTION audit.on_chunk() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO audit.chunks (chunk_id, job_id, was, state, attempt, worker_id, last_rung_at, task)
    VALUES (NEW.id, NEW.job_id, OLD.state, NEW.state, NEW.attempt,
            coalesce(NEW.worker_id, OLD.worker_id), OLD.last_rung_at, NEW.task);
    RETURN NULL;
END $$;
CREATE TRIGGER audit_update AFTER UPDATE ON public.chunks
    FOR EACH ROW WHEN (OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt OR OLD.lo <> NEW.lo
                       OR OLD.hi <> NEW.hi OR OLD.cursor IS DISTINCT FROM NEW.cursor)
    EXECUTE FUNCTION audit.on_chunk();

CREATE FUNCTION audit.on_items() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO audit.items (job_id, attempt, rows)
    SELECT job_id, attempt, count(*) FROM added GROUP BY job_id, attempt;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_insert AFTER INSERT ON public.items REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION audit.on_items();

CREATE FUNCTION audit.on_undone() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    INSERT INTO audit.undone (job_id, what, rows)
    SELECT job_id, lower(TG_OP), count(*) FROM gone GROUP BY job_id;
    RETURN NULL;
END $$;
CREATE TRIGGER audit_update AFTER UPDATE ON public.items REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION audit.on_undone();
CREATE TRIGGER audit_delete AFTER DELETE ON public.items REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION audit.on_undone();
"""

_REMOVE = """
DROP TRIGGER audit_insert ON public.jobs;
DROP TRIGGER audit_update ON public.jobs;
DROP TRIGGER audit_update ON public.chunks;
DROP TRIGGER audit_insert ON public.items;
DROP TRIGGER audit_update ON public.items;
DROP TRIGGER audit_delete ON public.items;
DROP SCHEMA audit CASCADE;
"""


def install_audit(system_url: str) -> None:
    """Begin to write down what happens; as the tables' owner."""
    with psycopg.connect(system_url) as connection:
        connection.execute(_INSTALL)


def remove_audit(system_url: str) -> None:
    """Leave the database as the migrations made it."""
    with psycopg.connect(system_url) as connection:
        connection.execute(_REMOVE)
