"""What a training begins with: the network's spec, and the weights of another version."""

from __future__ import annotations

from typing import Any

from torch import nn

from app.datasets.resolve import resolve_dataset
from app.datasets.tables import DatasetVersion, Split
from app.jobs.claim import Lease
from app.models.resolve import get_version, spec_of
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.process import WorkerProcess
from worker.recognisers.registry import default_preprocess
from worker.recognisers.transfer import load_body
from worker.tasks.files import memory_file, path_of
from worker.tasks.versions import open_version


def look_up_training(
    process: WorkerProcess, lease: Lease, recipe: TrainingRecipe
) -> tuple[ModelSpec, list[Split]]:
    """What the network is, and which splits the dataset has for it.

    It sees images as the version does that it starts from, or as is usual for its architecture.
    """
    assert lease.dataset_version_id is not None
    with process.db.tenant(lease.tenant_id) as session:
        data = resolve_dataset(session, lease.tenant_id, lease.dataset_version_id)
        if recipe.start is None:
            preprocess = default_preprocess(recipe.arch)
        else:
            preprocess = spec_of(get_version(session, lease.tenant_id, recipe.start)).preprocess
    if recipe.input_px is not None:
        preprocess = preprocess.at_size(recipe.input_px)
    spec = ModelSpec(recipe.arch, tuple(data.classes), preprocess, recipe.arch_options)
    return spec, _splits(data)


def load_start(
    process: WorkerProcess, lease: Lease, version_id: str, module: nn.Module, spec: ModelSpec
) -> dict[str, Any]:
    """Put a version's weights into a network; what was taken, as the lineage tells it.

    The head is taken too where the classes are the same in the same order.

    Raises:
        DarkroomError: as :func:`open_version` and :func:`load_body`.
    """
    with process.db.tenant(lease.tenant_id) as session:
        classes = spec_of(get_version(session, lease.tenant_id, version_id)).classes
    with memory_file() as file:
        open_version(process, lease.tenant_id, version_id, file)
        taken = load_body(
            module, path_of(file), spec.arch, same_classes=tuple(classes) == spec.classes
        )
    return taken.as_dict()


def _splits(data: DatasetVersion) -> list[Split]:
    has_validation = any((data.counts.get(Split.VALIDATION) or {}).values())
    return [Split.TRAIN, Split.TEST, *([Split.VALIDATION] if has_validation else [])]
