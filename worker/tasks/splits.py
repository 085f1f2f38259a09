"""The splits of a dataset version as tensors, with the job's progress while they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from app.clock import monotonic_seconds
from app.datasets.resolve import iter_samples
from app.datasets.tables import Split
from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from worker.heartbeat import HeldLease
from worker.pipeline.values import ItemRef
from worker.process import WorkerProcess
from worker.training.data import TrainingImages, load_images

#: Time between two updates of the job's progress.
_SHOWN_SECONDS = 1.0


def load_splits(
    process: WorkerProcess,
    held: HeldLease,
    spec: ModelSpec,
    splits: Sequence[Split],
    *,
    on_progress: Callable[[dict[str, Any]], None],
) -> list[TrainingImages]:
    """All images of each split; those that cannot be read are left out and counted.

    The first splits whose pixels fit into ``training_cache_bytes`` together stay in memory, the
    others are read again in each epoch.

    ``on_progress`` gets the job's progress in images over all splits: at the beginning, and
    about each second.

    Raises:
        TrainingStoppedError: the work must stop.
        InvalidInputError: ``split_unreadable``: no image of a split could be read.
    """
    index = {name: position for position, name in enumerate(spec.classes)}
    listed = [_list_split(process, held, split, index) for split in splits]
    progress = _Progress(held, sum(len(refs) for refs, _ in listed), on_progress)
    loaded: list[TrainingImages] = []
    room = process.settings.training_cache_bytes
    for split, (refs, targets) in zip(splits, listed, strict=True):
        images = load_images(
            refs,
            targets,
            store=process.store,
            decoder=process.decoder,
            preprocess=spec.preprocess,
            should_stop=held.should_stop,
            on_progress=progress.one_more,
            max_cache_bytes=room,
            pin_memory=process.device.startswith("cuda"),
        )
        if not len(images):
            raise InvalidInputError(
                f"none of the {len(refs)} images of the {split.value} split could be read",
                code="split_unreadable",
            )
        room -= images.cached_bytes
        loaded.append(images)
    return loaded


def _list_split(
    process: WorkerProcess, held: HeldLease, split: Split, index: Mapping[str, int]
) -> tuple[list[ItemRef], list[int]]:
    """Where the images of a split lie, and the index of each one's class."""
    lease = held.lease
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
    return refs, targets


class _Progress:
    """Counts images, for each heartbeat and, now and then, for the job."""

    def __init__(
        self, held: HeldLease, images: int, on_progress: Callable[[dict[str, Any]], None]
    ) -> None:
        self._held = held
        self._images = images
        self._on_progress = on_progress
        self._over = 0
        self._show()

    def one_more(self, _over_in_split: int) -> None:
        self._over += 1
        self._held.report(self._over)
        if monotonic_seconds() - self._shown_at >= _SHOWN_SECONDS:
            self._show()

    def _show(self) -> None:
        self._on_progress({"step": self._over, "steps": self._images, "unit": "image"})
        self._shown_at = monotonic_seconds()
