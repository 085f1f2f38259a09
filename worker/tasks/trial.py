"""One trial of a search: its recipe is asked for, trained by, and ended early if it is hopeless."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.datasets.tables import Split
from app.db.hold import deletions_held
from app.errors import DarkroomError, InvalidInputError, UnavailableError
from app.jobs.claim import Lease
from app.jobs.item_rows import ItemRow
from app.jobs.record import record_chunk
from app.jobs.states import ItemState
from app.jobs.tables import Job
from app.jobs.trials import (
    begin_trial,
    best_trial,
    complete_trial,
    list_trials,
    note_epoch,
    seconds_left,
)
from app.log import get_logger
from app.models.register import fill_version
from app.models.spec import ModelSpec
from app.training.metrics import log_metrics
from app.training.recipe import TrainingRecipe
from app.training.search import Search, Trial, TrialEpoch, vary
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.checkpoints import Checkpoints
from worker.tasks.door import let_go
from worker.tasks.splits import load_splits
from worker.tasks.starts import look_up_training
from worker.tasks.teach import Judged, StoredNetwork, fit_network, judge, store_network
from worker.training.data import TrainingStoppedError
from worker.training.fit import EpochReport
from worker.training.search import should_prune, suggest
from worker.training.state import TrainingState

log = get_logger(__name__)

#: What a trial still gets that goes on after the search's time was up: one step.
_LEAST_SECONDS = 0.001


class TrialPrunedError(DarkroomError):
    """The trial does worse than others did by then; its end is not waited for."""

    code = "trial_pruned"


def trial_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Try one recipe of a search; the best network so far fills the job's pending version.

    A recipe that cannot be trained by is a failed trial, and no failed search.
    """
    lease = held.lease
    search = Search.from_dict(lease.options)
    with process.db.tenant(lease.tenant_id) as session:
        left = seconds_left(session, lease, search)
        # What an earlier attempt has learnt is worth its end.
        if left is not None and left <= 0 and not (lease.cursor or {}).get("checkpoints"):
            record_chunk(session, lease, [_row(lease, ItemState.SKIPPED)])
            return
        parameters = begin_trial(session, lease, lambda trials: suggest(search, trials, lease.lo))
    log.info("trial_begun", trial=lease.lo, parameters=parameters)
    try:
        _try_recipe(process, held, search, parameters)
    except TrainingStoppedError:
        let_go(process, held)
    except TrialPrunedError:
        log.info("trial_pruned", trial=lease.lo)
        with process.db.tenant(lease.tenant_id) as session:
            record_chunk(session, lease, [_row(lease, ItemState.SKIPPED)])
    except InvalidInputError as error:
        log.warning("trial_failed", trial=lease.lo, code=error.code, detail=error.detail)
        with process.db.tenant(lease.tenant_id) as session:
            record_chunk(session, lease, [_row(lease, ItemState.FAILED, error.as_dict())])


def _try_recipe(
    process: WorkerProcess, held: HeldLease, search: Search, parameters: dict[str, Any]
) -> None:
    lease = held.lease
    recipe = vary(TrainingRecipe.from_dict(lease.options["recipe"]), parameters)
    spec, splits = look_up_training(process, lease, recipe)
    checkpoints = Checkpoints(process, held)

    def limit_time(state: TrainingState) -> None:
        # Not in the recipe that checkpoints are of: it is another one at each attempt.
        with process.db.tenant(lease.tenant_id) as session:
            left = seconds_left(session, lease, search)
        if left is not None:
            until = state.past_seconds + state.seconds + max(left, _LEAST_SECONDS)
            limit = min(until, recipe.max_seconds or until)
            state.recipe = replace(recipe, max_seconds=limit)

    def keep_epoch(report: EpochReport, state: TrainingState) -> None:
        shown = TrialEpoch(report.epoch, report.held_out_accuracy, report.held_out_loss)
        checkpoints.keep_epoch(state, lambda session: note_epoch(session, lease, shown))
        if report.epoch < recipe.epochs and _is_hopeless(process, lease, search):
            raise TrialPrunedError("others did better by then")

    loaded = load_splits(process, held, spec, splits, on_progress=checkpoints.report)
    images = dict(zip(splits, loaded, strict=True))
    module, lineage = fit_network(
        process,
        checkpoints,
        spec,
        recipe,
        images=images,
        on_epoch=keep_epoch,
        on_begin=limit_time,
    )
    best = checkpoints.state.best if checkpoints.state is not None else None
    if best is None or not math.isfinite(best.loss):
        raise InvalidInputError(
            "the loss on the validation split is not a finite number; try a smaller learning_rate",
            code="training_diverged",
        )
    kept = TrialEpoch(best.epoch, best.accuracy, best.loss)

    def complete(session: Session) -> None:
        _complete(session, lease, search, kept)

    trial = Trial(lease.lo, "complete", parameters, accuracy=best.accuracy, loss=best.loss)
    if not _leads(process, lease, search, trial):
        _record(process, lease, complete)
        return
    judged = judge(process, held, spec, module, images[Split.TEST])
    scores = judged.scores
    # What the job tells of its best trial so far.
    result = {
        "trial": lease.lo,
        "parameters": parameters,
        "validation_accuracy": kept.accuracy,
        "validation_loss": kept.loss,
        "accuracy": scores.accuracy,
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
        "test_images": judged.tested.items,
        "unreadable_images": sum(len(split.failed) for split in loaded),
        "epoch": lineage["epoch"],
        "ended_by": lineage["ended_by"],
    }
    lineage |= {
        "recipe": recipe.as_dict(),
        "search": {"trial": lease.lo, "trials": search.trials, "parameters": parameters},
    }
    made = store_network(process, held, spec, judged.module)
    dropped = [made.stored.key]

    def lead(session: Session) -> None:
        if _complete(session, lease, search, kept) == lease.lo:
            before = _fill(session, lease, spec, judged, made, lineage=lineage, result=result)
            dropped[:] = [before] if before is not None else []

    _record(process, lease, lead)
    _delete(process, dropped)


def _is_hopeless(process: WorkerProcess, lease: Lease, search: Search) -> bool:
    if search.pruner == "none":
        return False
    with process.db.tenant(lease.tenant_id) as session:
        trials = list_trials(session, lease.tenant_id, lease.job_id)
    return should_prune(search, trials, lease.lo)


def _leads(process: WorkerProcess, lease: Lease, search: Search, trial: Trial) -> bool:
    """Whether the trial did better than all that are complete by now.

    One that does not never will: the best only becomes better.
    """
    with process.db.tenant(lease.tenant_id) as session:
        trials = list_trials(session, lease.tenant_id, lease.job_id)
    return best_trial([*trials, trial], search.metric) is trial


def _record(process: WorkerProcess, lease: Lease, before_close: Callable[[Session], None]) -> None:
    with process.db.tenant(lease.tenant_id) as session:
        record_chunk(session, lease, [_row(lease, ItemState.SUCCEEDED)], before_close=before_close)


def _complete(session: Session, lease: Lease, search: Search, kept: TrialEpoch) -> int:
    """Write how the trial did; the number of the one that leads now.

    The caller holds the job's row, so nobody else completes one meanwhile.
    """
    complete_trial(session, lease, kept)
    trials = list_trials(session, lease.tenant_id, lease.job_id)
    best = best_trial(trials, search.metric)
    assert best is not None
    values = {
        "validation_accuracy": kept.accuracy,
        "validation_loss": kept.loss,
        f"best_validation_{search.metric}": getattr(best, search.metric),
    }
    log_metrics(session, lease.tenant_id, lease.job_id, lease.lo, values)
    log.info("trial_complete", trial=lease.lo, accuracy=kept.accuracy, best=best.number)
    return best.number


def _fill(
    session: Session,
    lease: Lease,
    spec: ModelSpec,
    judged: Judged,
    made: StoredNetwork,
    *,
    lineage: dict[str, Any],
    result: dict[str, Any],
) -> str | None:
    """Make the trial's network the version to be; the key of the weights that were it before."""
    session.execute(
        update(Job)
        .where(Job.id == lease.job_id, Job.tenant_id == lease.tenant_id)
        .values(result=result)
        .execution_options(synchronize_session=False)
    )
    return fill_version(
        session,
        lease.tenant_id,
        str(lease.model_version_id),
        spec=spec,
        weights_key=made.stored.key,
        weights_sha256=made.stored.sha256,
        weights_bytes=made.stored.size_bytes,
        sealed_sha256=made.stored.sealed_sha256,
        parameter_count=made.parameters,
        macs=made.macs,
        scores=judged.scores.as_dict(),
        lineage=lineage,
    )


def _row(lease: Lease, state: ItemState, error: dict[str, Any] | None = None) -> ItemRow:
    name = f"trial-{lease.lo}"
    return ItemRow(lease.lo, custom_id=name, source=name, state=state, error=error)


def _delete(process: WorkerProcess, dropped: list[str]) -> None:
    """Delete weights that no committed row names any more."""
    if not dropped:
        return
    try:
        if deletions_held(process.db):
            # A backup's snapshot may still name them; they go after the job has ended.
            return
        process.store.delete(process.settings.bucket, dropped)
    except UnavailableError as error:
        log.warning("weights_not_deleted", keys=dropped, code=error.code, detail=error.detail)
