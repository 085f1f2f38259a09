"""What the dispatcher tells Prometheus: the state of all work, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from redis import Redis
from redis.exceptions import RedisError
from sqlalchemy import text

from app.db.session import Database
from app.dispatch.cleanup import Cleaned
from app.dispatch.sweep import Swept
from app.errors import UnavailableError
from app.gauges import make_registry
from app.queues.address import redis_py_url
from app.queues.names import Queue
from app.settings import Settings

# Chunks of open jobs only, by the indexes that the relay uses.
_QUEUES = text(
    """
    SELECT c.queue,
           count(*) FILTER (WHERE c.state = 'pending' AND c.due_at <= now()
               AND j.state IN ('validating', 'queued', 'running')) AS runnable,
           count(*) FILTER (WHERE c.state = 'running') AS running,
           count(*) FILTER (WHERE c.state = 'pending' AND c.kills > 0) AS suspects,
           coalesce(extract(epoch FROM now() - min(c.due_at) FILTER (
               WHERE c.state = 'pending' AND c.due_at <= now() AND c.last_rung_at IS NULL
               AND j.state IN ('validating', 'queued', 'running'))), 0) AS oldest
    FROM jobs j JOIN chunks c ON c.job_id = j.id AND c.state IN ('pending', 'running')
    WHERE j.state IN ('validating', 'queued', 'running', 'paused', 'cancelling')
    GROUP BY c.queue
    """
)
_SLOTS = text(
    """
    SELECT queue, sum(slots) AS slots, count(*) AS workers
    FROM workers
    WHERE gone_at IS NULL AND last_seen_at > now() - make_interval(secs => :alive_seconds)
    GROUP BY queue
    """
)
_JOBS = text(
    """
    SELECT state, count(*) AS jobs FROM jobs
    WHERE state NOT IN ('succeeded', 'partially_succeeded', 'failed', 'expired', 'cancelled')
    GROUP BY state
    """
)
# By the partial indexes of what is owed: rows that are done are not looked at.
_OWED = text(
    """
    SELECT (SELECT count(*) FROM events WHERE state = 'pending') AS events,
           count(*) AS deliveries,
           coalesce(extract(epoch FROM now() - min(created_at)), 0) AS oldest
    FROM webhook_deliveries WHERE state IN ('pending', 'sending')
    """
)


class DispatcherGauges:
    """Counters of this dispatcher, and gauges of the whole service."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self.registry = make_registry()
        self.registry.register(_Service(settings, db))
        count = _counter_in(self.registry)
        self._sweeps = count("sweeps", "Sweeps that ended well.")
        self.bells = count("bells_rung", "Bells rung.")
        self._swept = {
            "freed": count("leases_freed", "Leases that ended without a word: each a kill."),
            "narrowed": count("chunks_narrowed", "Chunks that were cut in two for their kills."),
            "poisonous": count("items_worker_killed", "Items that failed with worker_killed."),
            "killed": count("jobs_worker_killed", "Jobs that failed with worker_killed."),
            "repaired": count("jobs_forgotten", "Jobs that nothing would have closed any more."),
        }
        self._cleaned = {
            "repaired": count("drift_repaired", "Jobs whose counters were off and were set right."),
            "torn": count("drift_torn", "Findings of jobs of which items are missing."),
            "rows": count("rows_cleaned", "Old keys, events, deliveries and workers deleted."),
            "uploads": count("uploads_cleaned", "Failed uploads whose objects were deleted."),
            "jobs": count("jobs_cleaned", "Ended jobs whose leftovers were deleted."),
            "multiparts": count("multiparts_cleaned", "Open multiparts that were discarded."),
        }

    def add_sweep(self, swept: Swept) -> None:
        """Count what one sweep did."""
        self._sweeps.inc()
        for name, counter in self._swept.items():
            counter.inc(getattr(swept, name))

    def add_round(self, cleaned: Cleaned) -> None:
        """Count what one round of the clean-up did."""
        for name, counter in self._cleaned.items():
            counter.inc(getattr(cleaned, name))


def _counter_in(registry: CollectorRegistry) -> Callable[[str, str], Counter]:
    def count(name: str, meaning: str) -> Counter:
        return Counter(f"darkroom_{name}", meaning, registry=registry)

    return count


class _Service(Collector):
    """Asks database and Redis at each scrape; a part that is away is a gauge of its own."""

    def __init__(self, settings: Settings, db: Database) -> None:
        self._db = db
        self._alive_seconds = 3 * settings.heartbeat_seconds
        self._redis_url = redis_py_url(settings.redis_url.get_secret_value())

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering asks no part yet."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families; those of the database are left out while it is away."""
        try:
            found = self._from_database()
        except UnavailableError:
            found = []
        yield _gauge("database_up", "Whether the database answers.", float(bool(found)))
        yield _gauge("redis_up", "Whether Redis answers.", float(self._redis_answers()))
        yield from found

    def _redis_answers(self) -> bool:
        try:
            with Redis.from_url(
                self._redis_url, socket_timeout=2, socket_connect_timeout=2
            ) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def _from_database(self) -> list[Metric]:
        with self._db.system() as session:
            queues = {row.queue: row for row in session.execute(_QUEUES)}
            alive = {"alive_seconds": self._alive_seconds}
            workers = {row.queue: row for row in session.execute(_SLOTS, alive)}
            jobs = {row.state: row.jobs for row in session.execute(_JOBS)}
            owed = session.execute(_OWED).one()
        runnable = _by("queue", "chunks_runnable", "Chunks that a worker could take now.")
        suspects = _by("queue", "chunks_suspect", "Waiting chunks that have killed a worker.")
        oldest = _by("queue", "wait_seconds", "Seconds the oldest of them waits for its bell.")
        leases = _by("queue", "leases_running", "Chunks that a worker has the lease of.")
        alive_workers = _by("queue", "workers_alive", "Workers seen within three heartbeats.")
        free = _by("queue", "slots_free", "Chunks that living workers could take besides.")
        for queue in Queue:
            row, worker = queues.get(queue.value), workers.get(queue.value)
            running = row.running if row else 0
            runnable.add_metric([queue.value], row.runnable if row else 0)
            suspects.add_metric([queue.value], row.suspects if row else 0)
            oldest.add_metric([queue.value], float(row.oldest) if row else 0)
            leases.add_metric([queue.value], running)
            alive_workers.add_metric([queue.value], worker.workers if worker else 0)
            free.add_metric([queue.value], max((worker.slots if worker else 0) - running, 0))
        open_jobs = _by("state", "jobs_open", "Jobs that have not ended.")
        for state in ("validating", "queued", "running", "finalizing", "paused", "cancelling"):
            open_jobs.add_metric([state], jobs.get(state, 0))
        return [
            *(runnable, suspects, oldest, leases, alive_workers, free, open_jobs),
            _gauge("events_pending", "Events that webhooks have not had yet.", owed.events),
            _gauge("webhooks_undelivered", "Deliveries that wait or are sent.", owed.deliveries),
            _gauge("webhooks_oldest_seconds", "Age of the oldest of them.", float(owed.oldest)),
        ]


def _gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"darkroom_{name}", meaning, value=value)


def _by(label: str, name: str, meaning: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"darkroom_{name}", meaning, labels=[label])
