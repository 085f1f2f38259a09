"""Teach a recogniser the classes of a dataset version and register what comes out."""

from __future__ import annotations

from io import BufferedRandom

from sqlalchemy.orm import Session

from app.datasets.resolve import resolve_dataset
from app.datasets.tables import Split
from app.jobs.claim import Lease
from app.models.spec import ModelSpec
from app.training.metrics import log_metrics
from app.training.recipe import TrainingRecipe
from worker.evaluation.scores import Scores, score
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.recognisers.cost import count_macs
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import default_preprocess
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.checkpoints import Checkpoints
from worker.tasks.door import let_go
from worker.tasks.files import memory_file, path_of
from worker.tasks.splits import load_splits
from worker.tasks.versions import Tested, register_version, store_weights
from worker.training.data import TrainingStoppedError
from worker.training.fit import EpochReport, evaluate, fit


def finetune_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Train, evaluate on the test split, register; each epoch's numbers are rows at once.

    Goes on from the last whole checkpoint where a loss or a stop ended an earlier attempt.
    """
    lease = held.lease
    recipe = TrainingRecipe.from_dict(lease.options["recipe"])
    assert lease.dataset_version_id is not None
    with process.db.tenant(lease.tenant_id) as session:
        classes = resolve_dataset(session, lease.tenant_id, lease.dataset_version_id).classes
    spec = ModelSpec(recipe.arch, tuple(classes), default_preprocess(recipe.arch))
    checkpoints = Checkpoints(process, held)

    def alive(_answered: int) -> None:
        # No step of the training ends while a large split is answered.
        held.report(held.progress)

    try:
        train, test = load_splits(
            process, held, spec, (Split.TRAIN, Split.TEST), on_progress=checkpoints.report
        )
        module = fit(
            spec,
            recipe,
            train,
            test,
            device=process.device,
            on_begin=checkpoints.resume,
            before_batch=checkpoints.before_batch,
            on_answered=alive,
            on_epoch=lambda report, state: checkpoints.keep_epoch(
                state, lambda session: _log_epoch(session, lease, report)
            ),
        )
    except TrainingStoppedError:
        let_go(process, held)
        return
    normalise = Normalise(spec.preprocess).to(process.device)
    tested = evaluate(module, normalise, test, device=process.device, on_answered=alive)
    scores = score(tested.predicted, test.targets, spec.classes)
    with memory_file() as file:
        save_weights(module, path_of(file))
        _register(
            process,
            held,
            spec,
            file,
            scores,
            tested=Tested(lease.dataset_version_id, Split.TEST, len(test)),
            unread=len(train.failed) + len(test.failed),
        )


def _log_epoch(session: Session, lease: Lease, report: EpochReport) -> None:
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
    file: BufferedRandom,
    scores: Scores,
    *,
    tested: Tested,
    unread: int,
) -> None:
    """Store the weights, then make version, alias and job's end true in one transaction."""
    lease = held.lease
    version_id = str(lease.model_version_id)
    report = check_weights(path_of(file), spec)
    stored = store_weights(process, held, file)
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
        macs=count_macs(spec),
        result=result,
        scores=scores.as_dict(),
        tested=tested,
    )
