"""An evaluation from its last item to its report: once, whatever ends its workers."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, log_loss, roc_auc_score
from sqlalchemy import select, update

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.dispatch.drift import close_forgotten_jobs
from app.dispatch.offers import read_offers
from app.dispatch.stops import end_stopped_jobs
from app.errors import FencedError, InvalidInputError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease
from app.jobs.evaluate import submit_evaluate
from app.jobs.events import page_events
from app.jobs.item_rows import ItemRow
from app.jobs.pause import pause_job
from app.jobs.record import record_chunk, record_prefix
from app.jobs.states import ChunkState, ChunkTask, ItemState, JobKind, JobState
from app.jobs.tables import Artifact, Chunk, Job
from app.locations import ANYWHERE
from app.models.evaluations import list_evaluations
from app.models.grants import give_grant
from app.models.resolve import get_version
from app.models.shared import shared_version
from app.queues.names import Queue
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from tests.doors import ring, worker_inside
from tests.factories import add_upload, add_version, entry, make_tenant, name_of_tenant
from tests.jobs import (
    add_planned_job,
    assert_closed,
    chunk_ids,
    claim,
    look_at_chunk,
    look_at_job,
    lose_worker,
    make_due,
)
from worker.evaluation.calibration import softmax
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks import predict
from worker.tasks.evaluate import evaluate_chunk
from worker.tasks.scores import ScoreKeeper

CLASSES = ("cat", "dog")
OPTIONS = {
    "top_k": 2,
    "bootstrap_samples": 20,
    "hardest": 3,
    "seed": 0,
    "keep_temperature": True,
}


@pytest.fixture
def process(settings: Settings, quiet: Database, objects: ObjectStore) -> WorkerProcess:
    objects.ensure_bucket(settings.bucket)
    process = worker_inside(settings, Queue.INFERENCE, quiet)
    process.store = objects
    return process


class Trial:
    """An evaluation whose answers are known: item n is labelled as ``labels`` say."""

    def __init__(
        self, db: Database, process: WorkerProcess, tenant_id: str, labels: Sequence[str | None]
    ) -> None:
        self.db, self.process, self.tenant_id = db, process, tenant_id
        self.labels = list(labels)
        random = np.random.default_rng(0)
        self.logits = random.normal(0, 2, (len(labels), 2)).astype(np.float32)
        half = len(labels) // 2
        with db.tenant(tenant_id) as session:
            self.version_id = add_version(session, tenant_id).id
            sizes = (half, len(labels) - half)
            self.job_id = add_planned_job(session, tenant_id, *sizes, kind=JobKind.EVALUATE)
            session.execute(
                update(Job)
                .where(Job.id == self.job_id)
                .values(
                    options=OPTIONS, input={"upload": "upl_x"}, model_version_id=self.version_id
                )
            )

    def answer(
        self,
        lease: Lease,
        count: int | None = None,
        failed: Sequence[int] = (),
        *,
        keeps_scores: bool = True,
    ) -> None:
        """What a worker does that recognises the first items of a chunk, or all."""
        hi = lease.hi if count is None else lease.lo + count
        keeper = ScoreKeeper()
        answered = [ordinal for ordinal in range(lease.lo, hi) if ordinal not in failed]
        keeper.add(answered, self.logits[answered])
        if keeps_scores:
            keeper.store(self.process, lease)
        rows = [self._row(ordinal, ordinal in failed) for ordinal in range(lease.lo, hi)]
        with self.db.tenant(self.tenant_id) as session:
            if hi < lease.hi:
                record_prefix(session, lease, rows)
            else:
                record_chunk(session, lease, rows)

    def _row(self, ordinal: int, failed: bool) -> ItemRow:
        shares = softmax(self.logits[[ordinal]])[0]
        best = int(shares.argmax())
        return ItemRow(
            ordinal,
            f"item {ordinal}",
            f"{ordinal}.png",
            ItemState.FAILED if failed else ItemState.SUCCEEDED,
            prediction=None if failed else [[CLASSES[best], float(shares[best])]],
            error={"code": "undecodable"} if failed else None,
            label=self.labels[ordinal],
        )

    def answer_all(self, failed: Sequence[int] = ()) -> str:
        """Recognise every item; the chunk of the report."""
        for chunk_id in chunk_ids(self.db, self.job_id):
            self.answer(claim(self.db, self.tenant_id, chunk_id), failed=failed)
        return self.report_chunk()

    def report_chunk(self) -> str:
        with self.db.system() as session:
            return session.scalars(
                select(Chunk.id).where(
                    Chunk.job_id == self.job_id, Chunk.task == ChunkTask.EVALUATE
                )
            ).one()

    def measure(self, chunk_id: str) -> None:
        """Answer a bell for the report."""
        make_due(self.db, chunk_id)
        ring(self.process, self.tenant_id, chunk_id, evaluate_chunk, ChunkTask.EVALUATE)

    def files(self) -> dict[str, bytes]:
        """The artifacts by name."""
        with self.db.tenant(self.tenant_id) as session:
            rows = session.scalars(select(Artifact).where(Artifact.job_id == self.job_id)).all()
        assert len({row.name for row in rows}) == len(rows)
        bucket = self.process.settings.bucket
        return {row.name: self.process.store.read(bucket, row.object_key) for row in rows}

    def job(self) -> Job:
        return look_at_job(self.db, self.tenant_id, self.job_id)


@pytest.fixture
def trial(quiet: Database, process: WorkerProcess, owner: str) -> Trial:
    """Twelve labelled items in two chunks."""
    return Trial(quiet, process, owner, ["cat", "dog", "dog"] * 4)


def test_report_is_measured_once_all_items_are_done_and_ends_the_job(
    trial: Trial, quiet: Database, owner: str
) -> None:
    chunk_id = trial.answer_all()
    assert trial.job().state == JobState.FINALIZING
    with quiet.system() as session:
        (offer,) = read_offers(session, Queue.INFERENCE, 5)
        assert [job.id for job in offer.jobs] == [trial.job_id]
    trial.measure(chunk_id)
    job = assert_closed(quiet, owner, trial.job_id, JobState.SUCCEEDED)
    shares = softmax(trial.logits)
    targets = [CLASSES.index(str(label)) for label in trial.labels]
    predicted = shares.argmax(axis=1)
    files = trial.files()
    assert set(files) == {"report.html", "report.json", "report.csv"}
    report = json.loads(files["report.json"])
    assert report["scores"]["accuracy"] == pytest.approx(accuracy_score(targets, predicted))
    assert report["scores"]["f1"] == pytest.approx(f1_score(targets, predicted, average="macro"))
    assert report["scores"]["auc"] == pytest.approx(roc_auc_score(targets, shares[:, 1]))
    assert report["calibration"]["log_loss"] == pytest.approx(log_loss(targets, shares))
    assert report["counts"] == {
        "items": 12, "scored": 12, "failed": 0, "unlabelled": 0, "unknown_label": 0,
    }  # fmt: skip
    assert len(report["hardest"]) == 3
    assert report["hardest"][0]["custom_id"].startswith("item ")
    rows = list(csv.DictReader(io.StringIO(files["report.csv"].decode())))
    assert [row["class"] for row in rows] == list(CLASSES)
    assert b"<!doctype html>" in files["report.html"]
    assert job.result is not None
    assert job.result["accuracy"] == report["scores"]["accuracy"]
    with quiet.tenant(owner) as session:
        version = get_version(session, owner, trial.version_id)
        events, _ = page_events(session, owner, trial.job_id, after=0, limit=100)
    assert version.calibration is not None
    assert version.calibration["temperature"] == report["calibration"]["temperature"]
    assert version.calibration["job"] == trial.job_id
    assert [each.type for each in events if each.type != "job.progress"][-1] == "job.succeeded"


def test_report_that_killed_its_worker_is_made_again_and_registered_once(
    trial: Trial, quiet: Database, owner: str
) -> None:
    chunk_id = trial.answer_all()
    lease = claim(quiet, owner, chunk_id, task=ChunkTask.EVALUATE)
    lose_worker(quiet, chunk_id)
    trial.measure(chunk_id)
    assert_closed(quiet, owner, trial.job_id, JobState.SUCCEEDED)
    before = trial.files()
    # The first one was only slow: it comes to its end after all.
    with pytest.raises(FencedError):
        evaluate_chunk(trial.process, HeldLease(lease, trial.process.stopping))
    assert trial.files() == before


def test_scores_of_every_attempt_that_recorded_items_are_used(
    trial: Trial, quiet: Database, owner: str
) -> None:
    first, second = chunk_ids(quiet, trial.job_id)
    lease = claim(quiet, owner, first)
    # A worker that died stored its scores and recorded none of them.
    keeper = ScoreKeeper()
    keeper.add(list(range(lease.lo, lease.hi)), trial.logits[lease.lo : lease.hi] * -9)
    keeper.store(trial.process, lease)
    lose_worker(quiet, first)
    trial.answer(claim(quiet, owner, first), count=2)
    trial.answer(claim(quiet, owner, first))
    trial.answer(claim(quiet, owner, second))
    trial.measure(trial.report_chunk())
    report = json.loads(trial.files()["report.json"])
    targets = [CLASSES.index(str(label)) for label in trial.labels]
    assert report["calibration"]["log_loss"] == pytest.approx(
        log_loss(targets, softmax(trial.logits))
    )


def test_scores_that_are_gone_or_damaged_fail_the_report_and_keep_the_items(
    trial: Trial, quiet: Database, owner: str
) -> None:
    chunk_id = trial.answer_all()
    first, _ = chunk_ids(quiet, trial.job_id)[:2]
    attempt = look_at_chunk(quiet, first).attempt
    key = keys.scores(owner, trial.job_id, first, attempt)
    trial.process.store.put(trial.process.settings.bucket, key, b"not those")
    for _ in range(trial.process.settings.max_kills):
        trial.measure(chunk_id)
    job = assert_closed(quiet, owner, trial.job_id, JobState.FAILED)
    assert job.error is not None
    assert key in job.error["detail"]
    assert (job.succeeded, trial.files()) == (12, {})


def test_items_that_cannot_be_measured_are_counted_by_their_reason(
    quiet: Database, process: WorkerProcess, owner: str
) -> None:
    trial = Trial(
        quiet, process, owner, ["cat", None, "zebra", "dog", "dog", "zebra", "gnu", "cat"]
    )
    trial.measure(trial.answer_all(failed=[3]))
    job = assert_closed(quiet, owner, trial.job_id, JobState.PARTIALLY_SUCCEEDED)
    assert job.result is not None
    assert job.result["counts"] == {
        "items": 8, "scored": 3, "failed": 1, "unlabelled": 1, "unknown_label": 3,
    }  # fmt: skip
    report = json.loads(trial.files()["report.json"])
    assert report["unknown_labels"] == {"zebra": 2, "gnu": 1}


def test_evaluation_without_a_known_label_fails_and_says_why(
    quiet: Database, process: WorkerProcess, owner: str
) -> None:
    trial = Trial(quiet, process, owner, [None, "zebra"])
    trial.measure(trial.answer_all())
    job = assert_closed(quiet, owner, trial.job_id, JobState.FAILED)
    assert job.error is not None
    assert job.error["code"] == "nothing_to_score"
    assert "'zebra'" in job.error["detail"]


def test_evaluation_whose_items_all_failed_ends_without_a_report(
    quiet: Database, process: WorkerProcess, owner: str
) -> None:
    trial = Trial(quiet, process, owner, ["cat", "dog"])
    for chunk_id in chunk_ids(quiet, trial.job_id):
        trial.answer(claim(quiet, owner, chunk_id), failed=[0, 1])
    job = assert_closed(quiet, owner, trial.job_id, JobState.FAILED)
    assert job.error is not None
    assert job.error["code"] == "all_items_failed"


def test_report_can_be_cancelled_and_pausing_it_changes_nothing(
    trial: Trial, quiet: Database, owner: str
) -> None:
    chunk_id = trial.answer_all()
    with quiet.tenant(owner) as session:
        assert pause_job(session, owner, trial.job_id).state == JobState.FINALIZING
        assert cancel_job(session, owner, trial.job_id).state == JobState.CANCELLING
    trial.measure(chunk_id)
    assert trial.files() == {}
    end_stopped_jobs(quiet)
    job = assert_closed(quiet, owner, trial.job_id, JobState.CANCELLED)
    assert (job.succeeded, look_at_chunk(quiet, chunk_id).state) == (12, ChunkState.CANCELLED)


def test_report_that_is_cancelled_while_it_is_made_lets_go(
    trial: Trial, quiet: Database, owner: str
) -> None:
    lease = claim(quiet, owner, trial.answer_all(), task=ChunkTask.EVALUATE)
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, trial.job_id)
    held = HeldLease(lease, trial.process.stopping)
    held.learn(JobState.CANCELLING)
    evaluate_chunk(trial.process, held)
    assert_closed(quiet, owner, trial.job_id, JobState.CANCELLED)
    assert trial.files() == {}


def test_finalizing_job_whose_report_was_forgotten_gets_another(
    trial: Trial, quiet: Database, owner: str
) -> None:
    chunk_id = trial.answer_all()
    assert close_forgotten_jobs(quiet) == 0
    with quiet.system() as session:
        session.execute(
            update(Chunk).where(Chunk.id == chunk_id).values(state=ChunkState.CANCELLED)
        )
    assert close_forgotten_jobs(quiet) == 1
    with quiet.system() as session:
        again = session.scalars(
            select(Chunk.id).where(Chunk.job_id == trial.job_id, Chunk.state == ChunkState.PENDING)
        ).one()
    trial.measure(again)
    assert_closed(quiet, owner, trial.job_id, JobState.SUCCEEDED)


def test_evaluation_on_a_dataset_stands_in_the_catalogue(
    trial: Trial, quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        upload = add_upload(session, owner, [entry(0, "cat"), entry(1, "dog")])
        data = freeze_dataset(session, owner, name="zoo", upload_id=upload.id)
        session.execute(
            update(Job)
            .where(Job.id == trial.job_id)
            .values(dataset_version_id=data.id, input={"dataset": data.id, "split": "test"})
        )
    trial.measure(trial.answer_all())
    job = assert_closed(quiet, owner, trial.job_id, JobState.SUCCEEDED)
    with quiet.tenant(owner) as session:
        (found,), _ = list_evaluations(session, owner, trial.version_id)
    assert (found.dataset, found.split, found.items) == ("zoo@1", "test", 12)
    assert found.job_id == trial.job_id
    assert job.result is not None
    assert found.metrics["accuracy"] == job.result["accuracy"]
    assert json.loads(trial.files()["report.json"])["images"] == "zoo@1, test"


def test_report_on_a_shared_model_tells_no_more_than_its_answers(
    trial: Trial, quiet: Database, owner: str
) -> None:
    other = make_tenant(quiet)
    with quiet.tenant(other) as session:
        version = add_version(session, other)
        give_grant(
            session,
            other,
            "pets",
            name_of_tenant(quiet, owner),
            rights=["run"],
            answers="rounded",
            max_items_per_day=None,
        )
    with quiet.tenant(owner) as session:
        shared = shared_version(session, version.id)
        assert shared is not None
        session.execute(
            update(Job)
            .where(Job.id == trial.job_id)
            .values(
                model_version_id=None,
                shared_version_id=version.id,
                shared_version=shared.as_kept(),
            )
        )
    for chunk_id in chunk_ids(quiet, trial.job_id):
        lease = claim(quiet, owner, chunk_id)
        assert predict.keeper_of(lease, shared) is None
        assert predict.keeper_of(lease, replace(shared, answers="full")) is not None
        trial.answer(lease, keeps_scores=False)
    trial.measure(trial.report_chunk())
    assert_closed(quiet, owner, trial.job_id, JobState.SUCCEEDED)
    report = json.loads(trial.files()["report.json"])
    assert report["model"] == shared.reference
    assert (report["scores"]["auc"], report["calibration"], report["hardest"]) == (None, None, [])
    assert {row["true_probability"] for row in report["confidently_wrong"]} == {None}
    with quiet.tenant(other) as session:
        assert get_version(session, other, version.id).calibration is None


def submit(db: Database, tenant_id: str, source: dict[str, Any]) -> Job:
    with db.tenant(tenant_id) as session:
        return submit_evaluate(
            session,
            tenant_id,
            source=source,
            model="pets@1",
            options=OPTIONS,
            own_bucket="darkroom",
            locations=ANYWHERE,
        )


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"prefix": "s3://photos/a/"}, "input_unlabelled"),
        ({"items": [{"key": "s3://photos/a.png"}]}, "input_unlabelled"),
        ({"dataset": "zoo@1"}, "classes_differ"),
    ],
)
def test_what_surely_cannot_be_measured_is_refused_before_there_is_a_job(
    quiet: Database, owner: str, source: dict[str, Any], code: str
) -> None:
    with quiet.tenant(owner) as session:
        add_version(session, owner)
        upload = add_upload(session, owner, [entry(0, "zebra"), entry(1, "gnu")])
        freeze_dataset(session, owner, name="zoo", upload_id=upload.id)
    with pytest.raises(InvalidInputError) as caught:
        submit(quiet, owner, source)
    assert caught.value.code == code


def test_evaluation_of_labelled_items_is_planned_like_any_input(
    quiet: Database, owner: str
) -> None:
    with quiet.tenant(owner) as session:
        add_version(session, owner)
    job = submit(quiet, owner, {"items": [{"key": "s3://photos/a.png", "label": "cat"}]})
    assert (job.kind, job.state) == (JobKind.EVALUATE, JobState.VALIDATING)
