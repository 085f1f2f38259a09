"""Teach a recogniser the classes of a dataset version and register what comes out."""

from __future__ import annotations

from collections.abc import Mapping
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
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.artifacts import add_artifacts
from worker.tasks.checkpoints import Checkpoints
from worker.tasks.event_file import store_event_file
from worker.tasks.splits import load_splits
from worker.tasks.starts import look_up_training
from worker.tasks.stopped import end_stopped
from worker.tasks.teach import Judged, fit_network, judge, store_network
from worker.tasks.versions import register_version
from worker.training.baselines import fit_baseline
from worker.training.data import TrainingImages, TrainingStoppedError
from worker.training.fit import EpochReport
from worker.training.state import TrainingState

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

    def keep_epoch(report: EpochReport, state: TrainingState) -> None:
        checkpoints.keep_epoch(state, lambda session: _log_epoch(session, lease, report))

    try:
        loaded = load_splits(process, held, spec, splits, on_progress=checkpoints.report)
        images = dict(zip(splits, loaded, strict=True))
        if find_architecture(recipe.arch).family == Family.BASELINE:
            module = _fit_baseline(held, spec, recipe, images[Split.TRAIN])
        else:
            module, lineage = fit_network(
                process, checkpoints, spec, recipe, images=images, on_epoch=keep_epoch
            )
    except TrainingStoppedError:
        end_stopped(process, held, spec, checkpoints.state)
        return
    judged = judge(process, held, spec, module, images[Split.TEST])
    unread = sum(len(split.failed) for split in loaded)
    _register(process, held, spec, judged, unread=unread, lineage=lineage)


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
    judged: Judged,
    *,
    unread: int,
    lineage: Mapping[str, Any],
) -> None:
    """Store weights and curves, then make version, alias and job's end true in one transaction."""
    lease, scores = held.lease, judged.scores
    made = store_network(process, held, spec, judged.module)
    curves = store_event_file(process, lease)
    result = {
        "model_version": str(lease.model_version_id),
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
        made.stored,
        parameter_count=made.parameters,
        macs=made.macs,
        result=result,
        scores=scores.as_dict(),
        tested=judged.tested,
        lineage=lineage,
        also=lambda session: add_artifacts(session, lease, curves),
    )
