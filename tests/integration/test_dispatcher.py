"""The dispatcher's loop: it goes on whichever part is lost, and stops when told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from app.clock import utc_now
from app.db.session import Database
from app.dispatch import run
from app.dispatch.relay import relay_once
from app.jobs.cancel import cancel_job
from app.jobs.states import JobState
from app.jobs.tables import Chunk, WorkerRow
from app.queues.celery import make_celery
from app.settings import Settings
from app.stack.valkey import LocalValkey
from tests.factories import make_tenant
from tests.jobs import add_planned_job, add_worker, assert_closed, chunk_ids, look_at_job
from tests.service import wait_until

NOWHERE = SecretStr("redis+socket:///nonexistent/valkey.sock")


@contextmanager
def dispatching(settings: Settings, db: Database) -> Iterator[threading.Thread]:
    """A dispatcher in a thread; it must be alive when the block ends, and end when told."""
    stopping = threading.Event()
    celery = make_celery(settings)
    thread = threading.Thread(target=run.run_loop, args=(settings, db, celery, stopping))
    thread.start()
    try:
        yield thread
        assert thread.is_alive()
    finally:
        stopping.set()
        thread.join(10)
        celery.close()
    assert not thread.is_alive()


def test_cancelled_job_ends_although_redis_is_down(
    quiet: Database, settings: Settings, tmp_path: Path
) -> None:
    owner = make_tenant(quiet)
    with quiet.system() as session:
        add_worker(session)
    with quiet.tenant(owner) as session:
        cancelled = add_planned_job(session, owner, 3)
        cancel_job(session, owner, cancelled)
        add_planned_job(session, owner, 3)
    alone = settings.model_copy(update={"redis_url": NOWHERE, "alive_file": tmp_path / "alive"})
    with dispatching(alone, quiet):
        wait_until(
            lambda: look_at_job(quiet, owner, cancelled).ended_at, "the job ends", seconds=10
        )
        wait_until((tmp_path / "alive").exists, "the dispatcher shows that it is alive")
    assert_closed(quiet, owner, cancelled, JobState.CANCELLED)


def test_dispatcher_outlives_the_loss_of_the_database_and_unknown_faults(
    quiet: Database, settings: Settings, valkey: LocalValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = make_tenant(quiet)
    with quiet.system() as session:
        worker_id = add_worker(session)
        # Seen all the time, however long the dispatcher takes to get over its troubles.
        session.get_one(WorkerRow, worker_id).last_seen_at = utc_now() + timedelta(hours=1)
    with quiet.tenant(owner) as session:
        job_id = add_planned_job(session, owner, 3)
    monkeypatch.setattr(run, "_PAUSE_SECONDS", 0.05)
    nowhere = Database("postgresql://nobody@127.0.0.1:1/x", "postgresql://nobody@127.0.0.1:1/x")
    tried: list[str] = []

    def relay(db: Database, *args: object, **kwargs: object) -> int:
        tried.append("relay")
        if len(tried) < 4:
            return relay_once(nowhere, *args, **kwargs)  # type: ignore[arg-type]
        if len(tried) < 6:
            raise ZeroDivisionError("a fault nobody thought of")
        return relay_once(db, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(run, "relay_once", relay)
    with redis.Redis.from_url(valkey.client_url) as client:
        client.flushdb()
        with dispatching(settings, quiet):
            wait_until(lambda: rung(quiet, job_id), "the chunk is rung", seconds=10)
            wait_until(lambda: client.llen("inference"), "its bell waits", seconds=10)
    assert len(tried) >= 6
    nowhere.close()


def rung(db: Database, job_id: str) -> bool:
    (chunk_id,) = chunk_ids(db, job_id)
    with db.system() as session:
        return session.get_one(Chunk, chunk_id).last_rung_at is not None
