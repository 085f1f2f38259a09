"""The complete scores of an evaluation's items, on their way from its chunks to its report.

Answers keep the best few classes, but AUC and calibration need the score of every class. They
lie in the object store, one object for each attempt that recorded items, until the job's
leftovers are deleted: four bytes for each class and image, and nothing of them in the database.
See docs/decisions/0014-complete-scores-are-objects.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from app.errors import StorageError
from app.jobs.answered import AnsweredItem
from app.jobs.claim import Lease
from app.storage import keys
from worker.process import WorkerProcess

_MEDIA_TYPE = "application/octet-stream"

Logits = npt.NDArray[np.float32]


class ScoreKeeper:
    """Takes the logits of a chunk's images as they are answered, and stores them."""

    def __init__(self) -> None:
        self._ordinals: list[int] = []
        self._logits: list[Logits] = []

    def add(self, ordinals: list[int], logits: Logits) -> None:
        """Keep the logits [n, classes] of images in ascending order of their ordinals."""
        self._ordinals += ordinals
        self._logits.append(logits)

    def store(self, process: WorkerProcess, lease: Lease) -> None:
        """Store what was kept, before it is recorded; nothing where no image was answered.

        The attempt is part of the key: one that lost its lease overwrites nothing.

        Raises:
            StorageError: it could not be written; trying again may help.
        """
        if not self._ordinals:
            return
        body = save(
            {
                "ordinals": np.array(self._ordinals, dtype=np.int64),
                "logits": np.concatenate(self._logits),
            }
        )
        key = keys.scores(lease.tenant_id, lease.job_id, lease.chunk_id, lease.attempt)
        process.store.put(process.settings.bucket, key, body, _MEDIA_TYPE)


def read_scores(
    process: WorkerProcess, lease: Lease, chunk_id: str, items: Sequence[AnsweredItem]
) -> Iterator[Logits]:
    """The logits of the items of one chunk, in their order, in parts [n, classes].

    Raises:
        ObjectMissingError: they were not kept.
        StorageError: they could not be read, or are not those of these items.
    """
    for attempt, group in groupby(items, lambda item: item.attempt):
        key = keys.scores(lease.tenant_id, lease.job_id, chunk_id, attempt)
        wanted = np.array([item.ordinal for item in group], dtype=np.int64)
        try:
            found = load(process.store.read(process.settings.bucket, key))
            place = np.searchsorted(found["ordinals"], wanted)
            if not np.array_equal(found["ordinals"][place], wanted):
                raise IndexError
        except (SafetensorError, KeyError, IndexError):
            raise StorageError(f"{key} does not hold the scores of its items") from None
        yield found["logits"][place]
