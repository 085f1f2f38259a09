"""Teach a recogniser the classes of a dataset version and register what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import torch
from sqlalchemy.orm import Session
from torch import nn

from app.datasets.tables import Split
from app.jobs.claim import Lease
from app.models.architectures import Family, find_architecture
from app.models.spec import ModelSpec
from app.training.metrics import log_metrics
from app.training.recipe import TrainingRecipe
from worker.evaluation.scores import Scores, score
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.recognisers.cost import count_macs
from worker.recognisers.preprocess import Normalise
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.artifacts import add_artifacts
from worker.tasks.checkpoints import Checkpoints
from worker.tasks.event_file import store_event_file
from worker.tasks.files import memory_file, path_of
from worker.tasks.splits import load_splits
from worker.tasks.starts import load_start, look_up_training
from worker.tasks.stopped import end_stopped
from worker.tasks.versions import Tested, register_version, store_weights
from worker.training.baselines import fit_baseline
from worker.training.data import TrainingImages, TrainingStoppedError
from worker.training.evaluate import evaluate
from worker.training.fit import EpochReport, fit

#: Images of which a baseline's features are computed at once.
_BASELINE_BATCH = 256


def finetune_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Train, evaluate on the test split, register; each epoch's numbers are rows at once.

    Goes on from the last whole checkpoint where a loss or a stop ended an earlier attempt.
    """
    lease = held.lease
    recipe = TrainingRecipe.from_dict(lease.options["recipe"])
    spec, splits = look_up_training(process, lease, recipe)
    checkpoints = Checkpoints(process, held)
    lineage: dict[str, Any] = {}

    def alive(_answered: int) -> None:
        # No step of the training ends while a large split is answered.
        held.report(held.progress)

    try:
        loaded = load_splits(process, held, spec, splits, on_progress=checkpoints.report)
        images = dict(zip(splits, loaded, strict=True))
        if find_architecture(recipe.arch).family == Family.BASELINE:
            module = _fit_baseline(held, spec, recipe, images[Split.TRAIN])
        else:
            module, lineage = _fit_network(
                process, checkpoints, spec, recipe, images=images, on_answered=alive
            )
    except TrainingStoppedError:
        end_stopped(process, held, spec, checkpoints.state)
        return
    test = images[Split.TEST]
    module = module.to(process.device)
    normalise = Normalise(spec.preprocess).to(process.device)
    tested = evaluate(module, normalise, test, device=process.device, on_answered=alive)
    scores = score(tested.predicted, test.targets, spec.classes)
    _register(
        process,
        held,
        spec,
        module,
        scores=scores,
        tested=Tested(str(lease.dataset_version_id), Split.TEST, len(test)),
        unread=sum(len(split.failed) for split in loaded),
        lineage=lineage,
    )


def _fit_network(
    process: WorkerProcess,
    checkpoints: Checkpoints,
    spec: ModelSpec,
    recipe: TrainingRecipe,
    *,
    images: Mapping[Split, TrainingImages],
    on_answered: Callable[[int], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network, and what its lineage tells of the training."""
    lease = checkpoints.lease
    lineage: dict[str, Any] = {}

    def start(module: nn.Module) -> None:
        if recipe.start is not None:
            lineage["transfer"] = load_start(process, lease, recipe.start, module, spec)

    fitted = fit(
        spec,
        recipe,
        images[Split.TRAIN],
        images[Split.TEST],
        validation=images.get(Split.VALIDATION),
        start=start,
        device=process.device,
        on_begin=checkpoints.resume,
        before_step=checkpoints.before_step,
        on_answered=on_answered,
        on_epoch=lambda report, state: checkpoints.keep_epoch(
            state, lambda session: _log_epoch(session, lease, report)
        ),
    )
    lineage |= {"epoch": fitted.epoch, "epochs": fitted.epochs, "ended_by": fitted.ended_by}
    return fitted.module, lineage


def _fit_baseline(
    held: HeldLease, spec: ModelSpec, recipe: TrainingRecipe, train: TrainingImages
) -> nn.Module:
    def on_step() -> None:
        if held.should_stop():
            raise TrainingStoppedError("training was told to stop")

    with closing(train.batches(torch.arange(len(train)), _BASELINE_BATCH)) as batches:
        return fit_baseline(spec, batches, seed=recipe.seed, on_step=on_step)


def _log_epoch(session: Session, lease: Lease, report: EpochReport) -> None:
    log_metrics(
        session,
        lease.tenant_id,
        lease.job_id,
        report.epoch,
        {
            "train_loss": report.train_loss,
            "train_accuracy": report.train_accuracy,
            f"{report.held_out}_loss": report.held_out_loss,
            f"{report.held_out}_accuracy": report.held_out_accuracy,
            "steps": report.steps,
            "learning_rate": report.learning_rate,
            "images_per_second": report.images_per_second,
            "epoch_seconds": report.seconds,
        },
    )


def _register(
    process: WorkerProcess,
    held: HeldLease,
    spec: ModelSpec,
    module: nn.Module,
    *,
    scores: Scores,
    tested: Tested,
    unread: int,
    lineage: Mapping[str, Any],
) -> None:
    """Store weights and curves, then make version, alias and job's end true in one transaction."""
    lease = held.lease
    version_id = str(lease.model_version_id)
    with memory_file() as file:
        save_weights(module, path_of(file))
        report = check_weights(path_of(file), spec)
        stored = store_weights(process, held, file)
    curves = store_event_file(process, lease)
    result = {
        "model_version": version_id,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
        "unreadable_images": unread,
        **{name: lineage[name] for name in ("epoch", "ended_by") if name in lineage},
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
        lineage=lineage,
        also=lambda session: add_artifacts(session, lease, curves),
    )
