"""Teach a recogniser the classes of a dataset version and register what comes out."""

from __future__ import annotations

import tempfile
from pathlib import Path

from app.datasets.resolve import iter_samples, resolve_dataset
from app.datasets.tables import Split
from app.errors import InvalidInputError
from app.jobs.record import record_part
from app.models.spec import ModelSpec
from app.training.metrics import log_metrics
from app.training.recipe import TrainingRecipe
from worker.evaluation.scores import Scores, score
from worker.heartbeat import HeldLease
from worker.pipeline.values import ItemRef
from worker.process import WorkerProcess
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import default_preprocess
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.door import let_go
from worker.tasks.versions import register_version, store_weights
from worker.training.data import ImageSet, TrainingStoppedError, load_images
from worker.training.fit import EpochReport, evaluate, fit


def finetune_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Train, evaluate on the test split, register; each epoch's numbers are rows at once."""
    lease = held.lease
    recipe = TrainingRecipe.from_dict(lease.options["recipe"])
    assert lease.dataset_version_id is not None
    with process.db.tenant(lease.tenant_id) as session:
        classes = resolve_dataset(session, lease.tenant_id, lease.dataset_version_id).classes
    spec = ModelSpec(recipe.arch, tuple(classes), default_preprocess(recipe.arch))
    try:
        train = _load_split(process, held, spec, Split.TRAIN)
        test = _load_split(process, held, spec, Split.TEST)
        module = fit(
            spec,
            recipe,
            train,
            test,
            device=process.device,
            on_epoch=lambda report: _log_epoch(process, held, recipe, report),
            should_stop=held.should_stop,
        )
    except TrainingStoppedError:
        let_go(process, held)
        return
    normalise = Normalise(spec.preprocess).to(process.device)
    tested = evaluate(module, normalise, test, device=process.device)
    scores = score(tested.predicted, test.targets, spec.classes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_weights(module, path)
        _register(process, held, spec, path, scores, unread=len(train.failed) + len(test.failed))


def _load_split(process: WorkerProcess, held: HeldLease, spec: ModelSpec, split: Split) -> ImageSet:
    """All images of a split as tensors; those that cannot be read are left out and counted."""
    lease = held.lease
    index = {name: position for position, name in enumerate(spec.classes)}
    refs: list[ItemRef] = []
    targets: list[int] = []
    with process.db.tenant(lease.tenant_id) as session:
        for sample in iter_samples(
            session, lease.tenant_id, str(lease.dataset_version_id), split=split, limit=None
        ):
            refs.append(
                ItemRef(
                    sample.ordinal,
                    process.settings.bucket,
                    sample.object_key,
                    sample.offset_bytes,
                    sample.length_bytes,
                )
            )
            targets.append(index[sample.label])
    images = load_images(
        refs,
        targets,
        store=process.store,
        decoder=process.decoder,
        preprocess=spec.preprocess,
        should_stop=held.should_stop,
    )
    if not len(images):
        raise InvalidInputError(
            f"none of the {len(refs)} images of the {split.value} split could be read",
            code="split_unreadable",
        )
    return images


def _log_epoch(
    process: WorkerProcess, held: HeldLease, recipe: TrainingRecipe, report: EpochReport
) -> None:
    lease = held.lease
    held.report(report.epoch)
    with process.db.tenant(lease.tenant_id) as session:
        record_part(
            session,
            lease,
            cursor={"epoch": report.epoch},
            progress={"step": report.epoch, "steps": recipe.epochs, "unit": "epoch"},
            lease_seconds=process.settings.lease_seconds,
        )
        log_metrics(
            session,
            lease.tenant_id,
            lease.job_id,
            report.epoch,
            {
                "train_loss": report.train_loss,
                "train_accuracy": report.train_accuracy,
                "test_loss": report.test_loss,
                "test_accuracy": report.test_accuracy,
                "learning_rate": report.learning_rate,
                "epoch_seconds": report.seconds,
            },
        )


def _register(
    process: WorkerProcess,
    held: HeldLease,
    spec: ModelSpec,
    path: Path,
    scores: Scores,
    *,
    unread: int,
) -> None:
    """Store the weights, then make version, alias and job's end true in one transaction."""
    lease = held.lease
    version_id = str(lease.model_version_id)
    report = check_weights(path, spec)
    stored = store_weights(process, lease, path)
    result = {
        "model_version": version_id,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
        "unreadable_images": unread,
    }
    register_version(
        process,
        lease,
        spec,
        stored,
        parameter_count=report.parameters,
        result=result,
        scores=scores.as_dict(),
    )
