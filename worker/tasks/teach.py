"""What fine-tunings and the trials of searches share: fit a network, judge it, store it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from app.datasets.tables import Split
from app.log import get_logger
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.evaluation.scores import Scores, score
from worker.exits import ExitCode, leave
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.recognisers.cost import count_macs
from worker.recognisers.preprocess import Normalise
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.checkpoints import Checkpoints
from worker.tasks.files import memory_file, path_of
from worker.tasks.sealed import SealedFile
from worker.tasks.starts import load_start
from worker.tasks.versions import Tested, store_weights
from worker.training.data import TrainingImages
from worker.training.evaluate import evaluate
from worker.training.fit import EpochReport, fit
from worker.training.lead import lead_ranks
from worker.training.state import TrainingState

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Judged:
    """A network and how it did on the test split."""

    module: nn.Module
    scores: Scores
    tested: Tested


@dataclass(frozen=True, slots=True)
class StoredNetwork:
    """The weights of a network in the object store, and what they weigh."""

    stored: SealedFile
    parameters: int
    macs: int


def fit_network(
    process: WorkerProcess,
    checkpoints: Checkpoints,
    spec: ModelSpec,
    recipe: TrainingRecipe,
    *,
    images: Mapping[Split, TrainingImages],
    on_epoch: Callable[[EpochReport, TrainingState], None],
    on_begin: Callable[[TrainingState], None] = lambda _: None,
) -> tuple[nn.Module, dict[str, Any]]:
    """The trained network, and what its lineage tells of the training.

    It goes on from the newest checkpoint; ``on_begin`` is called once that is restored, and
    ``on_epoch`` keeps the next.

    Raises:
        TrainingStoppedError: the work must stop.
        RankDiedError: another process of the training ended; trying again may help.
        DarkroomError: as :func:`worker.training.fit.fit` and :func:`load_start`.
    """
    lease = checkpoints.lease
    lineage: dict[str, Any] = {}

    def start(module: nn.Module) -> None:
        if recipe.start is not None:
            lineage["transfer"] = load_start(process, lease, recipe.start, module, spec)

    def resume(state: TrainingState) -> None:
        checkpoints.resume(state)
        on_begin(state)

    devices = process.train_devices
    with lead_ranks(spec, recipe, devices, on_death=_leave) as ranks:
        fitted = fit(
            spec,
            recipe,
            images[Split.TRAIN],
            images[Split.TEST],
            validation=images.get(Split.VALIDATION),
            start=start,
            device=process.device,
            on_begin=resume,
            before_step=checkpoints.before_step,
            on_answered=checkpoints.alive,
            on_epoch=on_epoch,
            ranks=ranks,
        )
    if len(devices) > 1:
        lineage["devices"] = len(devices)
    lineage |= {"epoch": fitted.epoch, "epochs": fitted.epochs, "ended_by": fitted.ended_by}
    return fitted.module, lineage


def _leave(how: str) -> None:
    """End this worker, whose GPU may wait for one of another rank for ever."""
    log.critical("rank_died", detail=how)
    leave(ExitCode.DEVICE_BROKEN)


def judge(
    process: WorkerProcess,
    held: HeldLease,
    spec: ModelSpec,
    module: nn.Module,
    test: TrainingImages,
) -> Judged:
    """How the network does on the images of the test split."""
    module = module.to(process.device)
    found = evaluate(
        module,
        Normalise(spec.preprocess).to(process.device),
        test,
        device=process.device,
        on_answered=lambda _answered: held.report(held.progress),
    )
    return Judged(
        module,
        score(found.predicted, test.targets, spec.classes),
        Tested(str(held.lease.dataset_version_id), Split.TEST, len(test)),
    )


def store_network(
    process: WorkerProcess, held: HeldLease, spec: ModelSpec, module: nn.Module
) -> StoredNetwork:
    """Seal the network's weights into their place in the object store.

    Raises:
        SealError: the version's data key does not open.
        UnavailableError: they could not be written; trying again may help.
    """
    with memory_file() as file:
        save_weights(module, path_of(file))
        report = check_weights(path_of(file), spec)
        stored = store_weights(process, held, file)
    return StoredNetwork(stored, report.parameters, count_macs(spec))
