"""Searches trial by trial in the test's own process: what is asked, kept, pruned, resumed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text, update

from app.db.session import Database
from app.dispatch.cleanup_objects import tidy_checkpoints, tidy_jobs
from app.dispatch.sweep import sweep_once
from app.errors import InvalidInputError, NotFoundError
from app.jobs.cancel import cancel_job
from app.jobs.claim import Lease
from app.jobs.narrow import narrow_killed_chunk
from app.jobs.search import submit_search
from app.jobs.states import ChunkState, JobState
from app.jobs.tables import Chunk
from app.jobs.training_time import used_seconds
from app.jobs.trials import begin_trial
from app.models.resolve import get_version, resolve_version
from app.models.states import VersionState
from app.models.tables import Evaluation
from app.queues.names import Queue
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from app.training.metrics import read_metrics
from app.training.recipe import TrainingRecipe
from app.training.search import Search, Trial, read_space
from app.training.tables import TrialRow
from tests.api_client import Api, make_app, make_key
from tests.doors import worker_inside
from tests.factories import make_tenant
from tests.jobs import chunk_ids, lose_worker
from tests.races import racing
from tests.searches import BUCKET, EPOCHS, SPACE, SearchJob
from tests.service import end_open_work
from tests.shapes import put_shapes
from tests.unit.pictures import one_torch_thread
from worker.tasks import trial as trial_task
from worker.tasks.trial import trial_chunk


@pytest.fixture
def search(
    settings: Settings, quiet: Database, objects: ObjectStore, owner: str
) -> Iterator[SearchJob]:
    process = worker_inside(settings, Queue.TRAINING, quiet)
    with one_torch_thread():
        yield SearchJob(process, objects, owner)


def test_best_trial_becomes_the_version_and_the_others_weights_go(search: SearchJob) -> None:
    search.submit(trials=3, pruner="none", seed=3)
    search.run(0, 1)
    assert (search.job().state, search.job().succeeded) == (JobState.RUNNING, 2)
    assert len(search.weights()) == 1
    search.run(2)
    job, trials = search.job(), search.trials()
    assert job.state == JobState.SUCCEEDED, job.error
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert len({trial.parameters["learning_rate"] for trial in trials}) == 3
    assert all(1e-3 <= trial.parameters["learning_rate"] <= 5e-2 for trial in trials)
    best = max(trials, key=lambda trial: (trial.accuracy or 0, -(trial.loss or 0)))
    assert job.result is not None
    assert (job.result["trial"], job.result["validation_loss"]) == (best.number, best.loss)
    assert [each.epoch for each in best.epochs] == list(range(1, EPOCHS + 1))
    assert best.accuracy == max(each.accuracy or 0 for each in best.epochs)
    with search.db.tenant(search.tenant_id) as session:
        version = resolve_version(session, search.tenant_id, "shapes@production")
        evaluation = session.scalars(select(Evaluation).where(Evaluation.job_id == job.id)).one()
        points, _ = read_metrics(session, search.tenant_id, job.id, "best_validation_accuracy")
    assert (version.id, version.state) == (job.model_version_id, VersionState.READY)
    assert version.lineage["job"] == job.id
    assert version.lineage["dataset_version"] == job.dataset_version_id
    assert version.lineage["recipe"]["learning_rate"] == best.parameters["learning_rate"]
    assert version.lineage["recipe"]["epochs"] == EPOCHS
    assert version.lineage["search"]["trial"] == best.number
    assert search.weights() == [version.weights_key]
    assert (evaluation.split, evaluation.items) == ("test", job.result["test_images"])
    assert [point.value for point in points][-1] == best.accuracy
    tidy(search)
    assert search.weights() == [version.weights_key]


def tidy(search: SearchJob) -> None:
    """Let the clean-up go over the ended job, one of whose attempts left weights behind."""
    left = keys.weights(search.tenant_id, f"{search.job().model_version_id}.1.7")
    search.store.put(BUCKET, left, b"of a fenced attempt")
    with search.db.system() as session:
        session.execute(text("UPDATE jobs SET ended_at = now() - interval '2 hours'"))
    tidy_checkpoints(search.db, search.store, BUCKET)
    assert tidy_jobs(search.db, search.store, BUCKET) == 1
    prefix = keys.job_prefix(search.tenant_id, search.id)
    assert not list(search.store.list(BUCKET, prefix))


def test_trial_of_a_killed_worker_goes_on_with_its_recipe_and_its_epochs(
    search: SearchJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.submit(trials=1)
    held = search.claim(0)
    looks = iter([False])

    def die(*_: Any) -> bool:
        # Asked after the first epoch and after the second, whose checkpoint is kept by then.
        if next(looks, True):
            raise _KilledError
        return False

    with monkeypatch.context() as patched:
        patched.setattr(trial_task, "_is_hopeless", die)
        with pytest.raises(_KilledError):
            trial_chunk(search.process, held)
    (begun,) = search.trials()
    assert (begun.state, len(begun.epochs)) == ("running", 2)
    lose_worker(search.db, held.lease.chunk_id)
    assert search.trials()[0].state == "waiting"
    again = search.claim(0)
    assert again.lease.attempt == held.lease.attempt + 1
    trial_chunk(search.process, again)
    (ended,) = search.trials()
    assert ended.parameters == begun.parameters
    assert list(ended.epochs[:2]) == list(begun.epochs)
    assert (search.job().state, len(ended.epochs)) == (JobState.SUCCEEDED, EPOCHS)


class _KilledError(Exception):
    """Stands for a kill: nothing of ours runs after it."""


def test_trial_that_kills_its_workers_fails_alone(search: SearchJob) -> None:
    search.submit(trials=2)
    for _ in range(2):
        lose_worker(search.db, search.claim(0).lease.chunk_id)
    with search.db.system() as session:
        narrow_killed_chunk(session, search.tenant_id, chunk_ids(search.db, search.id)[0])
    search.run(1)
    job = search.job()
    assert (job.state, job.succeeded, job.failed) == (JobState.SUCCEEDED, 1, 1)


def test_recipe_that_diverges_is_a_failed_trial_and_the_search_goes_on(search: SearchJob) -> None:
    search.submit({"learning_rate": {"choices": [100.0]}}, trials=2, pruner="none")
    search.run(0)
    (failed,) = search.trials()
    assert (failed.state, (failed.error or {})["code"]) == ("failed", "training_diverged")
    assert search.job().state == JobState.RUNNING
    search.run(1)
    job = search.job()
    assert (job.state, (job.error or {})["code"]) == (JobState.FAILED, "no_trial_finished")
    with search.db.tenant(search.tenant_id) as session:
        version = get_version(session, search.tenant_id, str(job.model_version_id))
    assert version.state == VersionState.FAILED


def test_hopeless_trial_is_pruned_after_an_epoch(search: SearchJob) -> None:
    space = {"learning_rate": {"choices": [0.02, 1e-9]}}
    search.submit(space, trials=6, random_trials=1, metric="loss", seed=1)
    while search.job().state != JobState.SUCCEEDED:
        search.run(len(search.trials()))
    pruned = [trial for trial in search.trials() if trial.state == "pruned"]
    assert pruned
    assert all(trial.parameters["learning_rate"] == 1e-9 for trial in pruned)
    assert {len(trial.epochs) for trial in pruned} == {1}
    assert search.job().skipped == len(pruned)


def test_cancelled_search_keeps_the_best_so_far_without_an_alias(search: SearchJob) -> None:
    search.submit(trials=3)
    search.run(0)
    held = search.claim(1)
    with search.db.tenant(search.tenant_id) as session:
        cancel_job(session, search.tenant_id, search.id)
    held.cancelled.set()
    trial_chunk(search.process, held)
    sweep_once(search.db, max_kills=5)
    job = search.job()
    assert (job.state, job.succeeded, job.cancelled) == (JobState.CANCELLED, 1, 2)
    assert [trial.state for trial in search.trials()] == ["complete", "stopped"]
    with search.db.tenant(search.tenant_id) as session:
        version = get_version(session, search.tenant_id, "shapes@1")
        with pytest.raises(NotFoundError):
            get_version(session, search.tenant_id, "shapes@production")
    assert (version.state, version.lineage["search"]["trial"]) == (VersionState.READY, 0)


def test_no_trial_begins_once_the_time_is_up_and_one_under_way_ends_with_what_it_has(
    search: SearchJob,
) -> None:
    search.submit(trials=3, max_seconds=1000.0, pruner="none")
    held = search.claim(0)
    with search.db.system() as session:
        # All but the blink of an eye is over.
        session.execute(text("UPDATE jobs SET running_at = now() - interval '999.9 seconds'"))
    trial_chunk(search.process, held)
    with search.db.system() as session:
        session.execute(text("UPDATE jobs SET running_at = now() - interval '1001 seconds'"))
    search.run(1, 2)
    job, trials = search.job(), search.trials()
    assert (job.state, job.succeeded, job.skipped) == (JobState.SUCCEEDED, 1, 2)
    assert (job.result or {})["ended_by"] == "max_seconds"
    assert [(trial.number, len(trial.epochs)) for trial in trials] == [(0, 1)]


def test_two_workers_ask_one_after_the_other_and_know_of_each_other(search: SearchJob) -> None:
    search.submit(trials=2)
    leases = [search.claim(number).lease for number in (0, 1)]
    seen: dict[int, list[int]] = {}
    asked = threading.Barrier(2)

    def begin(lease: Lease) -> None:
        def suggest(trials: list[Trial]) -> dict[str, Any]:
            seen[lease.lo] = [trial.number for trial in trials]
            return {"learning_rate": 0.01 * (lease.lo + 1)}

        asked.wait()
        with search.db.tenant(search.tenant_id) as session:
            begin_trial(session, lease, suggest)

    with ThreadPoolExecutor() as pool:
        list(pool.map(begin, leases))
    assert sorted(map(len, seen.values())) == [0, 1]
    with search.db.tenant(search.tenant_id) as session:
        again = begin_trial(session, leases[0], lambda _: {"learning_rate": 9.0})
    assert again == {"learning_rate": 0.01}


def test_worker_whose_turn_to_ask_comes_late_waits_for_it(search: SearchJob) -> None:
    search.submit(trials=2)
    first, second = (search.claim(number).lease for number in (0, 1))

    def begin() -> dict[str, Any]:
        with search.db.tenant(search.tenant_id) as session:
            # A row would not be waited for so long.
            session.execute(text("SET LOCAL lock_timeout = '1ms'"))
            return begin_trial(session, second, lambda _: {"learning_rate": 0.02})

    with racing(search.db) as race:
        with search.db.tenant(search.tenant_id) as session:
            begin_trial(session, first, lambda _: {"learning_rate": 0.01})
            other = race(begin)
            other.waits()
        assert other.answer() == {"learning_rate": 0.02}


def test_trials_count_as_training_minutes(search: SearchJob) -> None:
    search.submit(trials=2)
    held = search.claim(0)
    with search.db.system() as session:
        session.execute(
            update(Chunk)
            .where(Chunk.id == held.lease.chunk_id)
            .values(running_at=func.now() - text("interval '100 seconds'"))
        )
        assert round(used_seconds(session, search.tenant_id)) == 100
        session.execute(
            update(Chunk)
            .where(Chunk.id == held.lease.chunk_id)
            .values(state=ChunkState.PENDING, lease_until=None, worker_id=None)
        )
    with search.db.system() as session:
        assert round(used_seconds(session, search.tenant_id)) == 100
    sweep_once(search.db, max_kills=5, max_training_minutes=1)
    search.claim(0)
    sweep_once(search.db, max_kills=5, max_training_minutes=1)
    assert search.job().state == JobState.CANCELLING


def test_dataset_without_a_validation_split_and_a_baseline_are_refused(search: SearchJob) -> None:
    with search.db.system() as session:
        session.execute(text("UPDATE dataset_versions SET counts = counts - 'validation'"))
    with pytest.raises(InvalidInputError) as refused:
        search.submit(trials=1)
    assert refused.value.code == "search_needs_validation"
    with search.db.tenant(search.tenant_id) as session, pytest.raises(InvalidInputError) as none:
        submit_search(
            session,
            search.tenant_id,
            dataset=search.dataset,
            model="shapes",
            recipe=TrainingRecipe(arch="linear_svm"),
            search=Search(read_space(SPACE), trials=1),
        )
    assert none.value.code == "search_impossible"


def test_search_is_asked_for_and_its_trials_are_read_through_the_api(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    api = Api(make_app(settings, objects), make_key(database, settings, tenant_id))
    body = {
        "kind": "search",
        "model": "shapes",
        "input": {"dataset": put_shapes(database, objects, settings.bucket, tenant_id)},
        "options": {"space": SPACE, "trials": 3, "recipe": {"preset": "quick", "epochs": 2}},
    }
    wrong = {**body, "options": {"space": {"momentum": {"low": 0.9, "high": 1.5}}}}
    refused = api("POST", "/v1/jobs", json=wrong)
    assert (refused.status_code, refused.json["code"]) == (422, "search_invalid")
    assert refused.json["errors"][0]["pointer"] == "/options/space/momentum"
    neither = {**body, "options": {"space": {"momentum": 0.9}}}
    refused = api("POST", "/v1/jobs", json=neither)
    assert (refused.status_code, refused.json["code"]) == (422, "request_invalid")
    accepted = api("POST", "/v1/jobs", json=body)
    assert accepted.status_code == 202, accepted.text
    job = accepted.json
    assert (job["counts"]["total"], job["progress"]["unit"]) == (3, "trial")
    assert job["options"]["space"] == SPACE
    assert job["options"]["recipe"]["epochs"] == 2
    with database.tenant(tenant_id) as session:
        for number in range(3):
            session.execute(
                insert(TrialRow).values(
                    job_id=job["id"],
                    number=number,
                    tenant_id=tenant_id,
                    parameters={"learning_rate": 0.01},
                    epochs={"10": [0.5, None], "9": [0.25, 1.5]},
                )
            )
    first = api("GET", job["links"]["trials"], query_string={"limit": 2}).json
    assert ([each["number"] for each in first["data"]], first["has_more"]) == ([0, 1], True)
    assert first["data"][0]["state"] == "waiting"
    assert first["data"][0]["epochs"] == [
        {"epoch": 9, "accuracy": 0.25, "loss": 1.5},
        {"epoch": 10, "accuracy": 0.5, "loss": None},
    ]
    rest = api("GET", job["links"]["trials"], query_string={"after": first["last_id"]}).json
    assert ([each["number"] for each in rest["data"]], rest["has_more"]) == ([2], False)
    stranger = Api(make_app(settings, objects), make_key(database, settings, make_tenant(database)))
    assert stranger("GET", job["links"]["trials"]).status_code == 404
    end_open_work(database)
