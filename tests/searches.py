"""A small search whose recipes are tried in the test's own process, one by one."""

from __future__ import annotations

from typing import Any

from app.jobs.search import submit_search
from app.jobs.states import ChunkTask
from app.jobs.tables import Job
from app.jobs.trials import list_trials
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.training.recipe import TrainingRecipe
from app.training.search import Search, Trial, read_space
from tests.jobs import chunk_ids, claim, look_at_job
from tests.shapes import put_shapes
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.trial import trial_chunk

BUCKET = "darkroom"
EPOCHS = 3
SPACE = {"learning_rate": {"low": 1e-3, "high": 5e-2, "log": True}}


class SearchJob:
    """A search of a small network on a small dataset, and a worker that tries its recipes."""

    def __init__(self, process: WorkerProcess, store: ObjectStore, tenant_id: str) -> None:
        self.process, self.db, self.store = process, process.db, store
        self.tenant_id = tenant_id
        self.dataset = put_shapes(self.db, store, BUCKET, tenant_id)
        self.id = ""

    def submit(self, space: dict[str, Any] | None = None, **options: Any) -> None:
        """Submit the search; its chunks wait."""
        with self.db.tenant(self.tenant_id) as session:
            job = submit_search(
                session,
                self.tenant_id,
                dataset=self.dataset,
                model="shapes",
                recipe=TrainingRecipe(epochs=EPOCHS, train_batch_size=8),
                search=Search(read_space(space or SPACE), **options),
            )
            self.id = job.id

    def claim(self, number: int) -> HeldLease:
        """The lease of a trial, as a worker holds it."""
        chunk_id = chunk_ids(self.db, self.id)[number]
        lease = claim(self.db, self.tenant_id, chunk_id, task=ChunkTask.TRIAL)
        return HeldLease(lease, self.process.stopping)

    def run(self, *numbers: int) -> None:
        """Try these recipes, one after the other."""
        for number in numbers:
            trial_chunk(self.process, self.claim(number))

    def trials(self) -> list[Trial]:
        """What was tried."""
        with self.db.tenant(self.tenant_id) as session:
            return list_trials(session, self.tenant_id, self.id)

    def job(self) -> Job:
        """The job's row now."""
        return look_at_job(self.db, self.tenant_id, self.id)

    def weights(self) -> list[str]:
        """Keys of all weights that lie in the store for the job's version."""
        prefix = keys.weights_prefix(self.tenant_id, str(self.job().model_version_id))
        return [found.key for found in self.store.list(BUCKET, prefix)]
