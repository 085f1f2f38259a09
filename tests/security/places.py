"""A tenant that may read its own prefix, and a worker that is watched while it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import select

from app.audit.read import list_entries
from app.db.session import Database
from app.jobs.states import ChunkTask
from app.jobs.tables import Item, Job
from app.locations import Locations
from app.storage.s3 import ObjectStore
from app.tenants.locations import set_locations
from tests.doors import ring
from tests.jobs import chunk_ids, look_at_job
from tests.retries import predict_chunks
from tests.sharing import PHOTOS, Side
from worker.process import WorkerProcess
from worker.tasks import predict
from worker.tasks.plan import plan_chunk


@dataclass
class World:
    """A worker in this process, a tenant that may read its own prefix, and a neighbour's photos."""

    db: Database
    store: ObjectStore
    process: WorkerProcess
    side: Side
    victim: str
    #: What the worker opened, and the buckets that it asked for.
    opened: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def mine(self) -> str:
        """Where the tenant may read."""
        return f"s3://{PHOTOS}/{self.side.tenant_id}/"

    @property
    def others(self) -> str:
        """Where it may not."""
        return f"s3://{PHOTOS}/{self.victim}/"

    def allow(self, locations: Locations | None) -> None:
        """What an operator says."""
        with self.db.system() as session:
            set_locations(session, self.side.tenant_id, locations)

    def put(self, name: str, body: str) -> str:
        """An object of the tenant's own; its location."""
        self.store.put(PHOTOS, f"{self.side.tenant_id}/{name}", body.encode())
        return f"{self.mine}{name}"

    def submit(self, source: dict[str, Any]) -> Any:
        """The answer to a job over this input."""
        body = {"kind": "predict", "model": "pets@1", "input": source}
        return self.side.api("POST", "/v1/jobs", json=body)

    def run(self, job_id: str) -> Job:
        """The job after this worker has answered all its bells."""
        self.plan(job_id)
        for chunk in predict_chunks(self.db, job_id):
            ring(self.process, self.side.tenant_id, chunk, predict.predict_chunk)
        return self.look(job_id)

    def plan(self, job_id: str) -> Job:
        """The job after its plan."""
        plan_id = chunk_ids(self.db, job_id)[0]
        ring(self.process, self.side.tenant_id, plan_id, plan_chunk, ChunkTask.PLAN)
        return self.look(job_id)

    def look(self, job_id: str) -> Job:
        """The job as it is."""
        return look_at_job(self.db, self.side.tenant_id, job_id)

    def ends(self, job_id: str) -> list[str]:
        """How each item ended, in order: a code or ``succeeded``."""
        with self.db.system() as session:
            rows = session.scalars(select(Item).where(Item.job_id == job_id).order_by(Item.ordinal))
            return [row.error["code"] if row.error else row.state for row in rows]

    def audited(self) -> list[tuple[str | None, Any]]:
        """Refusals in the tenant's audit log."""
        with self.db.system() as session:
            found, _ = list_entries(session, self.side.tenant_id, action="access.denied")
        return [(each.target, each.details) for each in found]
