"""The labelled answers of an evaluation, gathered from its items and their complete scores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from io import BufferedRandom

import numpy as np

from app.errors import InvalidInputError, ObjectMissingError
from app.jobs.answered import AnsweredItem, read_answered
from app.jobs.claim import Lease
from app.jobs.states import ItemState
from worker.evaluation.calibration import OnPart
from worker.evaluation.measure import (
    Evaluation,
    MeasureOptions,
    measure_choices,
    measure_logits,
)
from worker.evaluation.report import ItemCounts
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.scores import read_scores


class EvaluationStoppedError(Exception):
    """The work must stop."""


@dataclass(slots=True)
class GatheredAnswers:
    """The labelled answers of a job, and how many items cannot be measured, and why."""

    classes: tuple[str, ...]
    lease: Lease
    held: HeldLease
    ordinals: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    confidence: list[float] = field(default_factory=list)
    unknown: Counter[str] = field(default_factory=Counter)
    items: int = 0
    failed: int = 0
    unlabelled: int = 0
    #: Whether the complete scores of every one are known.
    complete: bool = False

    def gather(self, process: WorkerProcess, file: BufferedRandom | None) -> None:
        """Read all answers, and their logits into ``file`` where exact scores may be looked at.

        Raises:
            InvalidInputError: ``nothing_to_score``.
            StorageError: logits could not be read; trying again may help.
        """
        index = {name: position for position, name in enumerate(self.classes)}
        lease = self.lease
        for chunk_id, items in read_answered(process.db, lease.tenant_id, lease.job_id):
            if self.held.should_stop():
                raise EvaluationStoppedError
            scored = [item for item in items if self._take(item, index)]
            if file is None:
                continue
            try:
                for logits in read_scores(process, lease, chunk_id, scored):
                    file.write(np.ascontiguousarray(logits, dtype="<f4").data)
            except ObjectMissingError:
                # Of a shared model they are kept only while its owner shows exact scores.
                if not lease.is_shared:
                    raise
                file = None
        if not self.targets:
            raise self._nothing_to_score()
        self.complete = file is not None

    def _take(self, item: AnsweredItem, index: dict[str, int]) -> bool:
        """Count an item; whether it is measured."""
        self.items += 1
        if item.state != ItemState.SUCCEEDED or item.answered is None:
            self.failed += 1
        elif item.label is None:
            self.unlabelled += 1
        elif item.label not in index:
            self.unknown[item.label] += 1
        else:
            self.ordinals.append(item.ordinal)
            self.targets.append(index[item.label])
            self.predicted.append(index[item.answered])
            self.confidence.append(item.confidence or 0.0)
            return True
        return False

    def measure(self, file: BufferedRandom, on_part: OnPart) -> Evaluation:
        """Measure what was gathered."""
        asked = self.lease.options
        options = MeasureOptions(
            top_k=tuple(sorted({1, asked["top_k"]})),
            bootstrap_samples=asked["bootstrap_samples"],
            hardest=asked["hardest"],
            seed=asked["seed"],
        )
        targets = np.array(self.targets, dtype=np.int64)
        if not self.complete:
            predicted, confidence = np.array(self.predicted), np.array(self.confidence)
            return measure_choices(
                predicted, confidence, targets, self.classes, options=options, on_part=on_part
            )
        file.flush()
        shape = (len(targets), len(self.classes))
        # Some gigabytes where images and classes are many: they stay on disk.
        logits = np.memmap(file, dtype="<f4", mode="r", shape=shape)
        return measure_logits(logits, targets, self.classes, options=options, on_part=on_part)

    def counts(self) -> ItemCounts:
        """Items by whether they were measured."""
        return ItemCounts(
            items=self.items,
            scored=len(self.targets),
            failed=self.failed,
            unlabelled=self.unlabelled,
            unknown_label=self.unknown.total(),
        )

    def _nothing_to_score(self) -> InvalidInputError:
        labels = ", ".join(repr(label[:60]) for label, _ in self.unknown.most_common(5))
        return InvalidInputError(
            f"none of {self.items} images could be measured: {self.failed} failed, "
            f"{self.unlabelled} have no label, {self.unknown.total()} a label that is no class of "
            f"the version{f' ({labels})' if labels else ''}",
            code="nothing_to_score",
        )
