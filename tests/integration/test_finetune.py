"""Fine-tuning on real workers: from an archive to a version that answers, and its refusals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.errors import InvalidInputError, NotFoundError
from app.jobs.artifacts import list_artifacts
from app.jobs.cancel import cancel_job
from app.jobs.evaluate import submit_evaluate
from app.jobs.results import page_results
from app.jobs.search import submit_search
from app.jobs.states import ChunkState, JobState
from app.jobs.submit import submit_finetune, submit_predict
from app.jobs.tables import Chunk, Item, Job
from app.jobs.trials import list_trials
from app.locations import ANYWHERE
from app.models.resolve import get_version, resolve_version
from app.models.states import VersionState
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.training.metrics import read_metrics
from app.training.recipe import TrainingRecipe
from app.training.search import Search, Trial, read_space
from app.training.start import spell_recipe
from tests.events import read_events
from tests.factories import add_upload, add_version, entry
from tests.service import Service, running_service, wait_until
from tests.shapes import SHAPES, freeze_shapes, put_shapes

EPOCHS = 5


@pytest.fixture(scope="module")
def service(
    settings: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A dispatcher and a worker of each role."""
    with running_service(settings, database, tmp_path_factory.mktemp("finetune")) as service:
        service.start_workers("io", "training", "inference")
        yield service


@pytest.fixture
def dataset(service: Service, database: Database, tenant_id: str) -> str:
    """``shapes@1``, a quarter of it for testing."""
    return freeze_shapes(service, database, tenant_id)


def submit(db: Database, tenant_id: str, dataset: str, **recipe: Any) -> Job:
    with db.tenant(tenant_id) as session:
        return submit_finetune(
            session, tenant_id, dataset=dataset, model="shapes", recipe=TrainingRecipe(**recipe)
        )


def test_finetuned_version_answers_as_well_as_its_scores_say(
    service: Service, database: Database, tenant_id: str, dataset: str
) -> None:
    job = submit(database, tenant_id, dataset, epochs=EPOCHS, train_batch_size=8)
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.SUCCEEDED, job.error
    assert job.result is not None
    assert job.result["accuracy"] > 0.8
    with database.tenant(tenant_id) as session:
        metrics, _ = read_metrics(session, tenant_id, job.id, "test_accuracy", limit=100)
        version = resolve_version(session, tenant_id, "shapes@production")
    assert [metric.step for metric in metrics] == list(range(1, EPOCHS + 1))
    assert metrics[-1].value == job.result["accuracy"]
    assert (version.id, version.state) == (job.model_version_id, VersionState.READY)
    assert version.scores is not None
    assert version.scores["accuracy"] == job.result["accuracy"]
    assert version.classes == list(SHAPES)
    assert version.lineage["job"] == job.id
    assert version.lineage["dataset_version"] == job.dataset_version_id
    assert version.lineage["recipe"]["epochs"] == EPOCHS
    rows = recognise(service, database, tenant_id, {"dataset": dataset, "split": "test"})
    right = [row for row in rows if row.prediction and row.prediction[0][0] == row.label]
    assert 15 <= len(rows) <= 50
    assert len(right) / len(rows) == job.result["accuracy"]
    evaluation = evaluate(service, database, tenant_id, dataset)
    assert evaluation.result is not None
    for name in ("accuracy", "precision", "recall", "f1"):
        assert evaluation.result[name] == pytest.approx(job.result[name]), name
    assert evaluation.result["counts"]["scored"] == len(rows)
    assert 0 < evaluation.result["auc"] <= 1
    with database.tenant(tenant_id) as session:
        files, _ = list_artifacts(session, tenant_id, evaluation.id)
        version = resolve_version(session, tenant_id, "shapes@production")
    assert [file.name for file in files] == ["report.html", "report.json", "report.csv"]
    assert version.calibration is not None
    assert version.calibration["on"] == f"{dataset}, test"
    assert_event_file_holds_the_metrics(service, database, tenant_id, job)
    go_on(service, database, tenant_id, dataset, job)


def assert_event_file_holds_the_metrics(
    service: Service, db: Database, tenant_id: str, job: Job
) -> None:
    """What TensorBoard reads of the job's artifact are the metrics, each epoch once."""
    with db.tenant(tenant_id) as session:
        points, _ = read_metrics(session, tenant_id, job.id)
        (artifact,), _ = list_artifacts(session, tenant_id, job.id)
    assert artifact.name.startswith("events.out.tfevents.")
    store = ObjectStore.from_settings(service.settings)
    content = store.read(service.settings.bucket, artifact.object_key)
    assert len(content) == artifact.size_bytes
    first, recipe, *events = read_events(content)
    assert first.file_version == "brain.Event:2"
    assert recipe.summary.value[0].tag == "recipe/text_summary"
    assert b"| epochs | `5` |" in recipe.summary.value[0].tensor.string_val[0]
    steps = {point.step: point.value for point in points if point.name == "steps"}
    expected = {
        (steps[point.step], tag_of(point.name), np.float32(point.value))
        for point in points
        if point.name != "steps"
    } | {(step, "epoch", np.float32(epoch)) for epoch, step in steps.items()}
    found = [
        (event.step, value.tag, np.float32(value.simple_value))
        for event in events
        for value in event.summary.value
    ]
    assert len(found) == len(set(found)) == EPOCHS * 8
    assert set(found) == expected


def tag_of(name: str) -> str:
    split, _, measure = name.partition("_")
    return f"{measure}/{split}" if split in ("train", "test") else name


def go_on(service: Service, database: Database, tenant_id: str, dataset: str, job: Job) -> None:
    """Another training starts from the version: the same network, and one gentle epoch."""
    assert job.result is not None
    with database.tenant(tenant_id) as session:
        recipe = spell_recipe(
            session,
            tenant_id,
            {"start": "shapes", "epochs": 1, "learning_rate": 1e-6, "seed": 1},
            preset="quick",
        )
        again = submit_finetune(
            session,
            tenant_id,
            dataset=dataset,
            model="more",
            recipe=recipe,
        )
    again = service.wait_for_end(tenant_id, again.id)
    assert again.result is not None, again.error
    assert again.result["accuracy"] == pytest.approx(job.result["accuracy"], abs=0.05)
    with database.tenant(tenant_id) as session:
        more = resolve_version(session, tenant_id, "more")
    assert more.lineage["parent"] == more.lineage["recipe"]["start"] == job.model_version_id
    assert more.lineage["transfer"]["tensors_drawn"] == []
    assert (more.lineage["ended_by"], more.lineage["epoch"]) == ("epochs", 1)


def evaluate(service: Service, db: Database, tenant_id: str, dataset: str) -> Job:
    with db.tenant(tenant_id) as session:
        job = submit_evaluate(
            session,
            tenant_id,
            source={"dataset": dataset, "split": "test"},
            model="shapes",
            options={
                "top_k": 2,
                "bootstrap_samples": 50,
                "hardest": 3,
                "seed": 0,
                "keep_temperature": True,
            },
            own_bucket="darkroom",
            locations=ANYWHERE,
        )
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.SUCCEEDED, job.error
    return job


def recognise(
    service: Service,
    db: Database,
    tenant_id: str,
    source: dict[str, Any],
    *,
    model: str = "shapes",
) -> list[Item]:
    with db.tenant(tenant_id) as session:
        job = submit_predict(
            session,
            tenant_id,
            source=source,
            model=model,
            options={"top_k": 1, "threshold": 0.0, "activation": "softmax"},
            own_bucket="darkroom",
            locations=ANYWHERE,
        )
    job = service.wait_for_end(tenant_id, job.id)
    assert job.state == JobState.SUCCEEDED, job.error
    with db.tenant(tenant_id) as session:
        return list(page_results(session, tenant_id, job, cursor=None, limit=100).items)


def test_cancelled_finetune_ends_soon_and_keeps_its_best_network_without_an_alias(
    service: Service, database: Database, tenant_id: str, dataset: str
) -> None:
    job = submit(database, tenant_id, dataset, epochs=10_000)

    def epochs() -> int:
        progress = service.look_at(tenant_id, job.id).progress or {}
        return int(progress["step"]) if progress.get("unit") == "epoch" else 0

    wait_until(epochs, "an epoch is over")
    with database.tenant(tenant_id) as session:
        cancel_job(session, tenant_id, job.id)
    ended = service.wait_for_end(tenant_id, job.id, seconds=10)
    assert ended.state == JobState.CANCELLED
    assert ended.model_version_id is not None
    with database.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, ended.model_version_id)
        with pytest.raises(NotFoundError):
            get_version(session, tenant_id, "shapes@production")
        files, _ = list_artifacts(session, tenant_id, job.id)
    assert [file.media_type for file in files] == ["application/octet-stream"]
    assert version.state == VersionState.READY
    assert version.scores is None
    assert version.lineage["ended_by"] == "stopped"
    assert version.lineage["epochs"] >= 1
    source = {"dataset": dataset, "split": "test"}
    assert recognise(service, database, tenant_id, source, model="shapes@1")


@pytest.mark.parametrize(
    ("labels", "splits", "code"),
    [
        (["cat", "cat"], ["train", "test"], "too_few_classes"),
        (["cat", "dog"], ["train", "train"], "empty_split"),
        (["cat", "dog"], ["test", "test"], "empty_split"),
        (["cat", "dog"], ["train", "test"], "one_class_split"),
    ],
)
def test_dataset_that_cannot_teach_is_refused_before_there_is_a_job(
    database: Database, tenant_id: str, labels: list[str], splits: list[str], code: str
) -> None:
    with database.tenant(tenant_id) as session:
        rows = [entry(n, labels[n], splits[n]) for n in range(2)]
        upload = add_upload(session, tenant_id, rows)
        freeze_dataset(session, tenant_id, name="poor", upload_id=upload.id)
    with pytest.raises(InvalidInputError) as caught:
        submit(database, tenant_id, "poor@1", epochs=1)
    assert caught.value.code == code
    with database.tenant(tenant_id) as session:
        assert session.scalar(select(Job.id).where(Job.tenant_id == tenant_id)) is None


def test_version_that_cannot_be_started_from_is_refused(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        rows = [
            entry(4 * n + m, label, split)
            for n, label in enumerate(("cat", "dog"))
            for m, split in enumerate(("train", "train", "train", "test"))
        ]
        upload = add_upload(session, tenant_id, rows)
        freeze_dataset(session, tenant_id, name="pets", upload_id=upload.id)
        ready = add_version(session, tenant_id, "net")
    for start, arch, error, code in (
        ("nothing@1", "small_cnn", NotFoundError, "model_not_found"),
        (ready.id, "resnet20", InvalidInputError, "start_mismatch"),
    ):
        with pytest.raises(error) as caught:
            submit(database, tenant_id, "pets@1", start=start, arch=arch)
        assert caught.value.code == code
    with pytest.raises(InvalidInputError, match="images of 32 pixels") as caught:
        submit(database, tenant_id, "pets@1", start=ready.id, input_px=64)
    assert caught.value.code == "start_mismatch"
    with pytest.raises(InvalidInputError) as caught:
        submit(database, tenant_id, "pets@1", arch="patch_transformer", input_px=30)
    assert caught.value.code == "preprocess_invalid"


def test_two_workers_try_recipes_at_once_and_one_finishes_what_the_other_left(
    service: Service, database: Database, objects: ObjectStore, tenant_id: str
) -> None:
    dataset = put_shapes(database, objects, service.settings.bucket, tenant_id)
    space = {"learning_rate": {"low": 1e-3, "high": 5e-2, "log": True}}
    doomed = service.start_worker("training")
    with database.tenant(tenant_id) as session:
        job = submit_search(
            session,
            tenant_id,
            dataset=dataset,
            model="shapes",
            recipe=TrainingRecipe(epochs=10, train_batch_size=8),
            search=Search(read_space(space), trials=3, seed=2),
        )

    def in_work() -> dict[str, Trial] | None:
        """Worker → its trial, once both have one."""
        with database.tenant(tenant_id) as session:
            trials = {trial.number: trial for trial in list_trials(session, tenant_id, job.id)}
            rows = session.execute(
                select(Chunk.worker_id, Chunk.lo).where(
                    Chunk.job_id == job.id, Chunk.state == ChunkState.RUNNING
                )
            ).all()
        found = {str(row.worker_id): trials[row.lo] for row in rows if row.lo in trials}
        return found if len(found) == 2 else None

    left = wait_until(in_work, "both workers try a recipe", seconds=60)[doomed.id]
    doomed.kill()
    ended = service.wait_for_end(tenant_id, job.id, seconds=120)
    assert ended.state == JobState.SUCCEEDED, ended.error
    with database.tenant(tenant_id) as session:
        trials = list_trials(session, tenant_id, job.id)
        version = resolve_version(session, tenant_id, "shapes@production")
        attempts = select(Chunk.attempt).where(Chunk.job_id == job.id, Chunk.lo == left.number)
        assert session.scalar(attempts) == 2
    assert [trial.state for trial in trials] == ["complete"] * 3
    assert trials[left.number].parameters == left.parameters
    assert version.lineage["search"]["trial"] == (ended.result or {})["trial"]
