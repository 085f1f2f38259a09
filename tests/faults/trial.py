"""One family's trial: its load, its faults, and what it waits for."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from sqlalchemy import text

from app.clock import monotonic_seconds
from app.errors import UnavailableError
from app.jobs.states import TERMINAL_JOB_STATES, JobState
from tests.faults.crew import Orders, Role
from tests.faults.library import MODEL, Picture, draw_pictures, put_manifest
from tests.faults.oracle import SUCCEEDED, Accepted, right_ends
from tests.faults.plan import Happened, Plan, PlannedFault
from tests.faults.s3_proxy import Rule
from tests.faults.stage import Stage
from tests.faults.uploads import export_differs, make_archive, send_archive
from tests.faults.verdict import RECOVERY_SECONDS

OPTIONS = {"top_k": 4, "threshold": 0.0}
_TENANTS = 3


class Trial:
    """What a family works with. Everything random comes from ``rng``."""

    def __init__(self, stage: Stage, family: str, seed: int, *, quick: bool) -> None:
        self.stage = stage
        self.family = family
        self.quick = quick
        self.rng = random.Random(f"{seed}:{family}")
        self.accepted: list[Accepted] = []
        self.callers = [stage.new_caller() for _ in range(_TENANTS)]
        #: Faults that this process made itself, beside those in the ledger.
        self.made: Counter[str] = Counter()
        #: Seconds that a family measured itself.
        self.recovery_seconds: list[float] = []
        #: A family that takes away more than workers has no bound: it sets infinity.
        self.recovery_limit = RECOVERY_SECONDS
        #: What a family itself found wrong.
        self.complaints: list[str] = []
        self._ledger_from = stage.ledger.size
        self._submitted = 0
        self._lock = threading.Lock()

    # Load

    def size(self, full: int, quick: int) -> int:
        """The one or the other, as the run is."""
        return quick if self.quick else full

    def pictures(self, count: int) -> list[Picture]:
        """Fresh images, different from each other."""
        return draw_pictures(self.rng.randrange(2**32), count)

    def submit(
        self,
        pictures: Sequence[Picture],
        *,
        items: Sequence[tuple[str, frozenset[str]]] | None = None,
        ends: frozenset[JobState] = SUCCEEDED,
        **body: Any,
    ) -> Accepted:
        """Submit a job over a manifest of these images; ``items`` are other ends that are right."""
        with self._lock:
            number = self._submitted
            self._submitted += 1
        caller = self.callers[number % len(self.callers)]
        prefix = f"{self.family}/{caller.tenant_id}/{number}"
        manifest = put_manifest(self.stage.store, prefix, pictures)
        request = {
            "kind": "predict",
            "model": MODEL,
            "input": {"manifest": manifest},
            "options": OPTIONS,
        }
        return self.accept(
            number, request | body, right_ends(pictures) if items is None else items, ends
        )

    def accept(
        self,
        number: int,
        request: dict[str, Any],
        items: Sequence[tuple[str, frozenset[str]]],
        ends: frozenset[JobState] = SUCCEEDED,
    ) -> Accepted:
        """Submit any request as one of the tenants and remember what must become of it."""
        caller = self.callers[number % len(self.callers)]
        job_id = self.stage.client.submit(caller, self.family, request)
        accepted = Accepted(job_id, caller.tenant_id, items, ends)
        with self._lock:
            self.accepted.append(accepted)
        return accepted

    def load(self, items: int, jobs: int) -> None:
        """Submit so many items in so many jobs of different sizes, two clients at a time."""
        cuts = sorted(self.rng.sample(range(1, items), jobs - 1))
        sizes = [hi - lo for lo, hi in zip([0, *cuts], [*cuts, items], strict=True)]
        loads = [self.pictures(size) for size in sizes]
        with ThreadPoolExecutor(2) as clients:
            list(clients.map(self.submit, loads))

    def archive(self, pictures: Sequence[Picture]) -> bytes:
        """A zip of the images under their names."""
        return make_archive(pictures)

    def upload(self, archive: bytes, pictures: Sequence[Picture]) -> str:
        """Send the archive; the id of the upload, whose ingest job is accepted with it."""
        upload_id, job_id = send_archive(self, archive)
        # A packed image has no prediction: its end is that it is there.
        items = [(one.custom_id, frozenset({""})) for one in pictures]
        self.accepted.append(Accepted(job_id, self.callers[0].tenant_id, items))
        return upload_id

    def submit_upload(self, upload_id: str, pictures: Sequence[Picture]) -> Accepted:
        """Recognise an upload that is ready."""
        request = {
            "kind": "predict",
            "model": MODEL,
            "input": {"upload": upload_id},
            "options": OPTIONS,
        }
        return self.accept(0, request, right_ends(pictures))

    def export(self, source: Accepted) -> Accepted:
        """Write the results of a job to a file."""
        request = {"kind": "export", "input": {"job": source.job_id}, "options": {}}
        number = [one.tenant_id for one in self.callers].index(source.tenant_id)
        return self.accept(number, request, [])

    def require_export(self, source: Accepted, export: Accepted) -> None:
        """The export's file holds the rows of its source, each once and in order."""
        self.complaints += filter(None, [export_differs(self, source, export)])

    def key_of(self, job: Accepted) -> str:
        """The key of the tenant that submitted a job."""
        return next(one.key for one in self.callers if one.tenant_id == job.tenant_id)

    # Faults

    def muster(self, orders: Orders | None = None, **wanted: int) -> None:
        """Fresh processes under these orders: two for inference, one of each other role."""
        self.stage.crew.orders = orders or Orders()
        self.stage.crew.muster(**({"inference": 2, "io": 1, "dispatcher": 1} | wanted))

    def plans(
        self, role: Role, faults: Sequence[PlannedFault], **more: Any
    ) -> Callable[[Role], Plan]:
        """Orders that give each new process of ``role`` the next of these faults."""
        left = list(faults)
        ledger = str(self.stage.ledger.path)

        def plan(asked: Role) -> Plan:
            if asked != role:
                return Plan(ledger=ledger)
            taken = (left.pop(0),) if left else ()
            return Plan(faults=taken, ledger=ledger, **more)

        return plan

    def strike_until_done(
        self,
        role: Role,
        times: int,
        *,
        number: signal.Signals = signal.SIGKILL,
        between: tuple[float, float] = (0.1, 0.6),
    ) -> None:
        """Signal processes of a role at random while jobs are open, at most so many times."""
        struck = 0
        while struck < times and not self.is_over():
            threading.Event().wait(self.rng.uniform(*between))
            struck += self.stage.crew.strike(role, number) is not None

    def kill_pid(self, pid: int, what: str) -> bool:
        """kill -9 a process that no crew keeps, and count it; False where it has ended."""
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        self.made[what] += 1
        return True

    def happened(self) -> list[Happened]:
        """The faults of this trial that processes wrote down."""
        return self.stage.ledger.since(self._ledger_from)

    @contextmanager
    def misbehaving(self, *rules: Rule) -> Iterator[None]:
        """Let the object store spoil requests by these rules, and count them."""
        with self.stage.proxy.misbehaving(*rules):
            yield
        for rule in rules:
            self.made[f"S3 {rule.kind}"] += rule.done

    # Waiting

    def has_begun(self, job_id: str) -> bool:
        """Whether something of the job is recorded."""
        with self.stage.db.system() as session:
            query = text("SELECT seq > 2 AND succeeded > 0 FROM jobs WHERE id = :job")
            return bool(session.scalar(query, {"job": job_id}))

    def job_ids(self) -> list[str]:
        """Ids of the accepted jobs."""
        return [job.job_id for job in self.accepted]

    def is_over(self) -> bool:
        """Whether every accepted job is terminal; not where the database does not answer."""
        try:
            return not self.open_jobs()
        except UnavailableError:
            return False

    def open_jobs(self) -> list[str]:
        """``id state`` of accepted jobs that are not terminal."""
        with self.stage.db.system() as session:
            rows = session.execute(
                text("SELECT id, state FROM jobs WHERE id = ANY(:ids) AND state <> ALL(:ended)"),
                {"ids": self.job_ids(), "ended": [state.value for state in TERMINAL_JOB_STATES]},
            )
            return [f"{row.id} {row.state}" for row in rows]

    def open_chunks(self, count: int) -> list[tuple[str, str, str]]:
        """(id, tenant, task) of some chunks that have not ended."""
        with self.stage.db.system() as session:
            rows = session.execute(
                text(
                    "SELECT id, tenant_id, task FROM chunks WHERE job_id = ANY(:ids) "
                    "AND state IN ('pending', 'running') ORDER BY lo LIMIT :count"
                ),
                {"ids": self.job_ids(), "count": count},
            )
            return [(row.id, row.tenant_id, row.task) for row in rows]

    def count(self, table: str, where: str) -> int:
        """Rows of this trial's tenants."""
        query = text(f"SELECT count(*) FROM {table} WHERE {where} AND tenant_id = ANY(:tenants)")
        with self.stage.db.system() as session:
            found = session.scalar(query, {"tenants": [one.tenant_id for one in self.callers]})
        return int(found or 0)

    def pause(self, low: float, high: float) -> None:
        """Let the service work for a while, as long as the seed says."""
        threading.Event().wait(self.rng.uniform(low, high))

    def require(self, holds: object, complaint: str) -> None:
        """Fail the family where what it promises itself does not hold."""
        if not holds:
            self.complaints.append(complaint)

    def wait(self, look: Callable[[], object], what: str, seconds: float = 120.0) -> None:
        """Look until there is something. Raises TimeoutError."""
        until = monotonic_seconds() + seconds
        while not look():
            if monotonic_seconds() > until:
                raise TimeoutError(f"waited {seconds:g} s in vain until {what}")
            threading.Event().wait(0.05)

    def wait_for_end(self, seconds: float = 120.0) -> None:
        """Wait until every accepted job is terminal; what is not is the oracle's to tell."""
        try:
            self.wait(self.is_over, "all jobs end", seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.open_jobs()[:5]}") from None


def now() -> float:
    """Seconds since the epoch, as PostgreSQL on this machine counts them."""
    return time.time()
