"""Families: Valkey and PostgreSQL that forget, die, refuse and drop connections."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import text

from tests.faults.crew import Orders
from tests.faults.families import family
from tests.faults.kills import slow
from tests.faults.plan import Plan
from tests.faults.trial import Trial
from tests.faults.verdict import FLUSH_RECOVERY_SECONDS

_BACKENDS = """
SELECT pid FROM pg_stat_activity
WHERE application_name = 'darkroom' AND pid <> pg_backend_pid()
"""
#: Ends the backend itself while it works on COMMIT, where deferred triggers run. Its number
#: comes from a sequence, which no rollback takes back.
_KILL_AT_COMMIT = """
CREATE SEQUENCE audit.commits;
CREATE SEQUENCE audit.killed_commits;
CREATE FUNCTION audit.kill_at_commit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF nextval('audit.commits') % 5 = 0 THEN
        PERFORM nextval('audit.killed_commits');
        PERFORM pg_terminate_backend(pg_backend_pid());
        PERFORM pg_sleep(0.01);
    END IF;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER audit_commit AFTER UPDATE ON public.chunks
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW
    WHEN (OLD.state = 'running' AND NEW.state = 'done')
    EXECUTE FUNCTION audit.kill_at_commit();
"""
_KILL_NO_MORE = """
DROP TRIGGER audit_commit ON public.chunks;
DROP FUNCTION audit.kill_at_commit;
DROP SEQUENCE audit.commits;
DROP SEQUENCE audit.killed_commits;
"""


@family(quick=True)
def flush_valkey(trial: Trial) -> None:
    """FLUSHALL while bells are on their way; the time to the next claim by a bell rung later."""
    trial.muster(slow(trial))
    trial.load(trial.size(12_000, 1_000), 4)
    for _ in range(trial.size(6, 1)):
        trial.pause(0.3, 1.0)
        if trial.is_over():
            break
        with trial.stage.redis() as redis:
            flushed = time.time()
            redis.flushall()
        trial.made["FLUSHALL"] += 1
        recovered = _next_claim(trial, flushed)
        if recovered is not None:
            trial.recovery_seconds.append(recovered - flushed)
    trial.wait_for_end()
    trial.require(trial.recovery_seconds, "no claim followed a FLUSHALL, so nothing was measured")
    trial.recovery_limit = FLUSH_RECOVERY_SECONDS


def _next_claim(trial: Trial, since: float) -> float | None:
    """When a chunk was claimed whose bell was rung after ``since``; None where work ran out."""
    query = text(
        "SELECT extract(epoch FROM min(at)) FROM audit.chunks "
        "WHERE state = 'running' AND was = 'pending' AND last_rung_at > to_timestamp(:since)"
    )
    while True:
        over = trial.is_over()
        with trial.stage.db.system() as session:
            found = session.scalar(query, {"since": since})
        if found is not None or over:
            return None if found is None else float(found)
        trial.pause(0.02, 0.05)


@family(quick=True)
def kill_valkey(trial: Trial) -> None:
    """kill -9 of Valkey, away for a second, then back with the last second missing."""
    trial.muster(slow(trial))
    trial.load(trial.size(12_000, 1_000), 4)
    for _ in range(trial.size(4, 1)):
        trial.pause(0.5, 1.5)
        assert trial.stage.valkey.pid is not None
        trial.kill_pid(trial.stage.valkey.pid, "kill of Valkey")
        trial.pause(0.5, 1.0)
        trial.stage.valkey.start()
        back = time.time()
        claimed = _next_claim(trial, back)
        if claimed is not None:
            trial.recovery_seconds.append(claimed - back)
    trial.wait_for_end()
    trial.recovery_limit = FLUSH_RECOVERY_SECONDS


@family()
def fill_valkey(trial: Trial) -> None:
    """Valkey out of memory: every write is refused for some seconds."""
    trial.muster(slow(trial))
    trial.load(8_000, 4)
    for _ in range(4):
        trial.pause(0.3, 0.8)
        with trial.stage.redis() as redis:
            redis.config_set("maxmemory", "1")
            trial.made["out of memory"] += 1
            trial.pause(1.0, 2.0)
            redis.config_set("maxmemory", "0")
    trial.wait_for_end()


@family(quick=True)
def restart_postgres(trial: Trial) -> None:
    """PostgreSQL stopped at once, as by a power cut, and started again."""
    trial.muster(slow(trial))
    trial.load(trial.size(12_000, 800), 4)
    for _ in range(trial.size(4, 1)):
        trial.pause(0.5, 1.5)
        process = trial.stage.postgres.process
        assert process is not None
        process.send_signal(signal.SIGQUIT)
        process.wait(60)
        trial.made["restart of PostgreSQL"] += 1
        trial.stage.postgres.start()
    trial.wait_for_end()


@family()
def kill_backend(trial: Trial) -> None:
    """Connections ended by the database at random, whatever they do."""
    trial.muster(slow(trial))
    trial.load(12_000, 4)
    with psycopg.connect(trial.stage.admin_url, autocommit=True) as admin:
        while trial.made["killed backend"] < 60 and not trial.is_over():
            trial.pause(0.02, 0.2)
            pids = [pid for (pid,) in admin.execute(_BACKENDS).fetchall()]
            if pids:
                admin.execute("SELECT pg_terminate_backend(%s)", (trial.rng.choice(pids),))
                trial.made["killed backend"] += 1
    trial.wait_for_end()


@family(quick=True)
def kill_backend_at_commit(trial: Trial) -> None:
    """The database ends a recording's connection in the middle of its COMMIT."""
    ledger = str(trial.stage.ledger.path)
    trial.muster(Orders(plan=lambda _role: Plan(ledger=ledger)))
    with _killing_commits(trial):
        trial.load(trial.size(6_000, 900), 3)
        trial.wait_for_end()


@contextmanager
def _killing_commits(trial: Trial) -> Iterator[None]:
    with psycopg.connect(trial.stage.admin_url, autocommit=True) as admin:
        admin.execute(_KILL_AT_COMMIT)
        try:
            yield
        finally:
            row = admin.execute("SELECT last_value, is_called FROM audit.killed_commits").fetchone()
            assert row is not None
            trial.made["killed at COMMIT"] += row[0] if row[1] else 0
            admin.execute(_KILL_NO_MORE)


@family()
def postgres_away(trial: Trial) -> None:
    """PostgreSQL away for longer than a lease, with work in everybody's hands."""
    trial.muster(slow(trial))
    trial.load(6_000, 3)
    for _ in range(2):
        trial.pause(0.3, 0.8)
        process = trial.stage.postgres.process
        assert process is not None
        process.send_signal(signal.SIGQUIT)
        process.wait(60)
        trial.made["PostgreSQL away"] += 1
        trial.pause(4.0, 5.0)
        trial.stage.postgres.start()
    trial.wait_for_end()
