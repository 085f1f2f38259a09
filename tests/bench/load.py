"""Many clients at once: a hundred submissions a second, then five hundred pollers.

``make bench ONLY=load [SECONDS=60] [RATE=100] [POLLERS=500] [WORKERS=1]``. Submissions come at
fixed moments whether the service keeps up or not, and their time counts from that moment, so a
service that stalls cannot hide it. Workers run meanwhile as on any machine, with only forward
faked; ``WORKERS=0`` leaves the inference workers out.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from app.db.session import Database
from app.log import configure_logging
from app.storage.s3 import ObjectStore
from tests.api_client import make_key
from tests.bench.service import BenchService, local_parts, running_processes, say
from tests.factories import make_tenant
from tests.faults.images import FEW_CLASSES, make_image
from tests.faults.library import BUCKET, MODEL, register_model
from tests.faults.plan import Plan
from tests.local_parts import scratch_folder

SECONDS = int(os.environ.get("SECONDS") or 60)
RATE = int(os.environ.get("RATE") or 100)
POLLERS = int(os.environ.get("POLLERS") or 500)
POLL_SECONDS = min(SECONDS, 30)
WORKERS = int(os.environ.get("WORKERS") or 1)
ITEMS = 10
#: One answer may take so long; more is an error.
_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, ETag and body of an answer."""

    status: int
    etag: str
    body: bytes


@dataclass(slots=True)
class Figures:
    """Times of the answers that were right, and what the others were."""

    milliseconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def p(self, percent: int) -> float:
        """A percentile in milliseconds; NaN where there is nothing to take it of."""
        if len(self.milliseconds) < 2:
            return float("nan")
        return statistics.quantiles(self.milliseconds, n=100)[percent - 1]

    def line(self, what: str, seconds: float) -> str:
        """What a person wants to know."""
        bad = f"  {dict(self.errors)}" if self.errors else ""
        return (
            f"  {what:<9} {len(self.milliseconds) / seconds:6.1f} a second   "
            f"p50 {self.p(50):6.1f}  p95 {self.p(95):6.1f}  p99 {self.p(99):6.1f} ms   "
            f"errors {self.errors.total()}{bad}"
        )


class Connection:
    """One kept-alive HTTP/1.1 connection, written by hand: the client must not be the load."""

    def __init__(self, host: str, port: int, key: str) -> None:
        self._address = (host, port)
        self._always = f"Host: {host}\r\nAuthorization: Bearer {key}\r\n"
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", headers: str = "") -> Answer:
        """Send a request and read its answer; a connection that was idle may be closed by now."""
        head = f"{method} {path} HTTP/1.1\r\n{self._always}{headers}"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        message = head.encode() + b"\r\n" + body
        kept = self._streams is not None
        try:
            return await self._ask(message)
        except (OSError, EOFError):
            self.close()
            # The server ends idle connections; only a fresh one that fails is an error.
            if not kept:
                raise
            return await self._ask(message)

    async def _ask(self, message: bytes) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(message)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        fields = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        body = await reader.readexactly(int(fields.get("content-length", 0)))
        if fields.get("connection", "").lower() == "close":
            self.close()
        return Answer(int(first.split(" ")[1]), fields.get("etag", ""), body)

    def close(self) -> None:
        """Drop the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Crowd:
    """The clients of one tenant; connections are shared, as a client library pools them."""

    def __init__(self, service: BenchService, key: str) -> None:
        split = urlsplit(service.url)
        self._host, self._port = split.hostname or "", split.port or 0
        self._key = key
        self._idle: list[Connection] = []
        self.submits = Figures()
        self.polls = Figures()
        self.jobs: list[str] = []

    async def submit_all(self, body: bytes) -> None:
        """``RATE`` submissions a second, each at its moment."""
        began = time.perf_counter() + 0.1
        running = []
        for number in range(RATE * SECONDS):
            due = began + number / RATE
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            running.append(asyncio.create_task(self._submit(body, due)))
        await asyncio.gather(*running)

    async def _submit(self, body: bytes, due: float) -> None:
        connection = self._idle.pop() if self._idle else self._connection()
        answer = await self._timed(self.submits, 202, due, connection, "POST", "/v1/jobs", body)
        if answer is not None:
            self.jobs.append(json.loads(answer.body)["id"])
        self._idle.append(connection)

    async def poll_all(self) -> None:
        """``POLLERS`` clients, each asking once a second for a job of its own."""
        began = time.perf_counter() + 0.1
        await asyncio.gather(*(self._poll(number, began) for number in range(POLLERS)))

    async def _poll(self, number: int, began: float) -> None:
        connection = self._connection()
        path = f"/v1/jobs/{self.jobs[number % len(self.jobs)]}"
        etag = ""
        for second in range(POLL_SECONDS):
            due = began + second + number / POLLERS
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            known = f"If-None-Match: {etag}\r\n" if etag else ""
            answer = await self._timed(
                self.polls, 304 if known else 200, due, connection, "GET", path, b"", known
            )
            etag = answer.etag if answer is not None else etag
        connection.close()

    async def _timed(
        self, figures: Figures, expected: int, due: float, connection: Connection, *request: object
    ) -> Answer | None:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                answer = await connection.ask(*request)  # type: ignore[arg-type]
        except (OSError, EOFError, TimeoutError) as error:
            connection.close()
            figures.errors[type(error).__name__] += 1
            return None
        # A job that has moved on since the last poll answers 200: as right as 304.
        if answer.status not in (expected, 200):
            figures.errors[str(answer.status)] += 1
            return None
        figures.milliseconds.append((time.perf_counter() - due) * 1000)
        return answer

    def _connection(self) -> Connection:
        return Connection(self._host, self._port, self._key)


def make_body(store: ObjectStore) -> bytes:
    """A submission of ten images that lie there."""
    store.ensure_bucket(BUCKET)
    for number in range(ITEMS):
        store.put(BUCKET, f"load/{number}.bin", make_image(number + 1))
    items = [{"key": f"s3://{BUCKET}/load/{number}.bin"} for number in range(ITEMS)]
    return json.dumps({"kind": "predict", "model": MODEL, "input": {"items": items}}).encode()


def make_client(service: BenchService, store: ObjectStore, db: Database) -> Crowd:
    """A tenant with its model and a key."""
    tenant_id = make_tenant(db)
    register_model(db, store, service.settings.bucket, tenant_id, classes=FEW_CLASSES)
    return Crowd(service, make_key(db, service.settings, tenant_id))


def measure(service: BenchService) -> Crowd:
    """Both phases, one after the other, and where the processor's time went."""
    store = ObjectStore.from_settings(service.settings)
    crowd = make_client(service, store, service.db)
    body = make_body(store)
    for what, figures, seconds, phase in (
        ("submits", crowd.submits, SECONDS, lambda: crowd.submit_all(body)),
        ("polls", crowd.polls, POLL_SECONDS, crowd.poll_all),
    ):
        before, own = service.processor_seconds(), time.process_time()
        asyncio.run(phase())
        say(figures.line(what, seconds))
        used = {
            name: (total - before.get(name, 0)) / seconds
            for name, total in service.processor_seconds().items()
        }
        used["client"] = (time.process_time() - own) / seconds
        shares = sorted(used.items(), key=lambda item: -item[1])
        say(
            "    cores: "
            + "  ".join(f"{name} {share:.2f}" for name, share in shares if share > 0.005)
        )
    return crowd


def main() -> None:
    """Run the bench; ends 1 where a request failed."""
    configure_logging("ERROR")
    with (
        scratch_folder() as folder,
        local_parts(folder, log_level="INFO") as parts,
        running_processes(parts, folder, inference_workers=WORKERS, plan=Plan()) as service,
    ):
        say(
            f"{RATE} submissions a second of {ITEMS} items for {SECONDS} s, then {POLLERS} "
            f"pollers for {POLL_SECONDS} s; {WORKERS} inference workers, "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        crowd = measure(service)
    submits, polls = crowd.submits, crowd.polls
    say(
        f"load submits={len(submits.milliseconds)} submit_p95_ms={submits.p(95):.1f} "
        f"submit_errors={submits.errors.total()} polls={len(polls.milliseconds)} "
        f"poll_p95_ms={polls.p(95):.1f} poll_errors={polls.errors.total()}"
    )
    sys.exit(bool(submits.errors or polls.errors))


if __name__ == "__main__":
    main()
