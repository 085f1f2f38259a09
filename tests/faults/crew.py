"""The service's processes on the stage: kept alive as a supervisor would, killed by the faults."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import psycopg

from app.settings import Settings
from app.stack.processes import free_port
from tests.faults.acts import note
from tests.faults.plan import Plan
from tests.nursery import Child, Nursery
from tests.service import environment, wait_until

Role = Literal["inference", "io", "dispatcher"]


@dataclass(eq=False, slots=True)
class Post:
    """A place that is to be filled by one living process."""

    role: Role
    number: int
    #: Counts the processes that had this place under another name, see ``Crew.renamed``.
    renamed: int = 0
    child: Child | None = None

    @property
    def name(self) -> str:
        """Name of the worker on its host."""
        return f"{self.role}-{self.number}" + (f"-{self.renamed}" if self.renamed else "")


@dataclass(slots=True)
class Orders:
    """How processes are started from now on; a family sets what it needs."""

    #: The plan of the next process of a role.
    plan: Callable[[Role], Plan] = field(default=lambda _role: Plan())
    #: Further settings by role, as environment variables.
    variables: Mapping[Role, Mapping[str, str]] = field(default_factory=dict)
    #: The odds that a successor takes another name, so that only the end of the lease frees
    #: what its predecessor held.
    renamed: float = 0.0
    #: The plan of the first worker for inference where no fault strikes that one: work goes on
    #: while others die, so that the time to take up theirs is the service's own.
    spared: Plan | None = None


class Crew:
    """Workers and dispatchers; whoever dies is replaced at once."""

    def __init__(
        self, nursery: Nursery, settings: Settings, folder: Path, ledger: Path, rng: random.Random
    ) -> None:
        self._nursery = nursery
        self._settings = settings
        self._folder = folder
        self._ledger = ledger
        self._rng = rng
        self._posts: list[Post] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self.orders = Orders()
        #: When each process that had a post died, in seconds since the epoch.
        self.deaths: dict[int, float] = {}
        self._keeper = threading.Thread(target=self._keep, name="crew", daemon=True)
        self._keeper.start()

    def muster(self, **wanted: int) -> None:
        """Have so many processes of each role, fresh ones under the present orders."""
        with self._lock:
            for post in self._posts:
                self._end(post)
            self._posts = [
                Post(role, number)  # type: ignore[arg-type]
                for role, count in wanted.items()
                for number in range(1, count + 1)
            ]
            for post in self._posts:
                self._fill(post)

    def living(self, role: Role, *, spared: bool = False) -> list[Child]:
        """The processes of a role that run, or are stopped, now; ``spared`` leaves those out."""
        with self._lock:
            return [
                post.child
                for post in self._posts
                if post.role == role
                and post.child is not None
                and post.child.poll() is None
                and not (spared and self._is_spared(post))
            ]

    def strike(self, role: Role, number: signal.Signals = signal.SIGKILL) -> Child | None:
        """Signal one process of a role, chosen by the seed, and write it down."""
        with self._lock:
            living = self.living(role, spared=True)
            if not living:
                return None
            child = self._rng.choice(living)
            note(Plan(ledger=str(self._ledger)), "anywhere", number.name.lower(), pid=child.pid)
            child.send_signal(number)
            return child

    def close(self) -> None:
        """End all of them."""
        self._closing.set()
        self._keeper.join()
        with self._lock:
            for post in self._posts:
                self._end(post)

    def _keep(self) -> None:
        while not self._closing.wait(0.02):
            with self._lock:
                for post in self._posts:
                    if post.child is not None and post.child.poll() is not None:
                        self.deaths[post.child.pid] = time.time()
                        post.renamed += self._rng.random() < self.orders.renamed
                        self._fill(post)

    def _is_spared(self, post: Post) -> bool:
        return self.orders.spared is not None and (post.role, post.number) == ("inference", 1)

    def _fill(self, post: Post) -> None:
        spared = self.orders.spared if self._is_spared(post) else None
        plan = spared or self.orders.plan(post.role)
        system_url = self._settings.system_url if post.role == "dispatcher" else None
        variables = {
            **environment(self._settings, worker_name=post.name, system_database_url=system_url),
            **self.orders.variables.get(post.role, {}),
            **plan.as_environment(),
        }
        if system_url is None:
            variables.pop("SYSTEM_DATABASE_URL", None)
        name = "dispatcher" if post.role == "dispatcher" else "worker"
        arguments = [] if post.role == "dispatcher" else ["--role", post.role]
        log = self._folder / f"{post.role}-{post.number}.log"
        post.child = self._nursery.start(f"tests.faults.{name}", arguments, variables, log)

    def _end(self, post: Post) -> None:
        if post.child is not None:
            post.child.kill()
            post.child.wait(10)
            post.child = None


class ApiServer:
    """gunicorn as ``darkroom up`` runs it, on a port that stays."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, plan: Plan | None = None) -> None:
        """Start it and wait until it answers."""
        variables = environment(self._settings, database_pool=8) | (plan or Plan()).as_environment()
        variables.pop("SYSTEM_DATABASE_URL", None)
        with (self._folder / "api.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn"),
                    *("--worker-class", "app.api.server.ApiWorker"),
                    *("--threads", "16", "--bind", f"127.0.0.1:{self.port}", "--timeout", "120"),
                    *("--graceful-timeout", "5", "--no-control-socket"),
                    "tests.faults.api:create_app()",
                ],
                env=variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers, "the API answers", seconds=120)

    def worker_pids(self) -> list[int]:
        """The processes that serve requests now."""
        assert self._process is not None
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def kill_worker(self) -> int | None:
        """Kill the serving process; gunicorn starts another. Returns its pid."""
        for pid in self.worker_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        return None

    def kill(self) -> None:
        """End the whole server without a word."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def lives(url: str) -> bool:
    """Whether PostgreSQL takes a connection now."""
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
