"""An evaluation as a report: what it was made of, as JSON and as CSV with a line a class."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from app.spreadsheet import safe_cell
from worker.evaluation.confusion import Confusion
from worker.evaluation.measure import Evaluation, Notable

REPORT_VERSION = 1
_COLUMNS = ("class", "images", "answered", "precision", "recall", "f1", "auc")


@dataclass(frozen=True, slots=True)
class Subject:
    """What was evaluated on what, in words and ids."""

    job_id: str
    #: ``name@3``.
    model: str
    model_version_id: str
    weights_sha256: str
    preprocess_sha256: str
    #: ``the dataset pets@2 (split test)``.
    images: str
    dataset_version_id: str | None
    made_at: str


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """Items by whether they were measured, and if not, why."""

    items: int
    scored: int
    #: They could not be answered.
    failed: int
    #: Answered, but nobody says what they are.
    unlabelled: int
    #: Answered, but their label is no class of the version.
    unknown_label: int


@dataclass(frozen=True, slots=True)
class NotableItem:
    """An image that stands out, by its names."""

    custom_id: str
    source: str


@dataclass(frozen=True, slots=True)
class Report:
    """An evaluation with all that a reader needs to place it."""

    subject: Subject
    counts: ItemCounts
    #: Labels that are no class of the version, and their images: the most frequent ones.
    unknown_labels: Mapping[str, int]
    evaluation: Evaluation
    #: Of every notable image of the evaluation, by its index.
    items: Mapping[int, NotableItem]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, without NaN."""
        found = self.evaluation
        scores = found.scores.as_dict()
        per_class = scores.pop("per_class")
        for row, area in zip(per_class, aucs(found), strict=True):
            row["auc"] = area
        return {
            "report_version": REPORT_VERSION,
            **asdict(self.subject),
            "counts": asdict(self.counts),
            "unknown_labels": dict(self.unknown_labels),
            "scores": {
                **scores,
                "top_k": {str(k): value for k, value in found.top_k.items()},
                "auc": found.macro_auc,
            },
            "intervals": asdict(found.intervals),
            "calibration": None if found.calibration is None else asdict(found.calibration),
            "per_class": per_class,
            "confusion": _confusion_dict(found.confusion),
            "hardest": [self._notable_dict(each) for each in found.hardest],
            "confidently_wrong": [self._notable_dict(each) for each in found.confidently_wrong],
        }

    def _notable_dict(self, notable: Notable) -> dict[str, Any]:
        classes = self.evaluation.classes
        return {
            **asdict(self.items[notable.index]),
            "label": classes[notable.target],
            "answered": classes[notable.predicted],
            "confidence": notable.confidence,
            "true_probability": notable.true_probability,
        }


def summarise(report: Report) -> dict[str, Any]:
    """The few numbers by which versions are compared, as a job's result shows them."""
    found = report.evaluation
    calibration = found.calibration
    return {
        "accuracy": found.scores.accuracy,
        "balanced_accuracy": found.scores.balanced_accuracy,
        **{f"top_{k}_accuracy": value for k, value in found.top_k.items() if k > 1},
        "precision": found.scores.precision,
        "recall": found.scores.recall,
        "f1": found.scores.f1,
        "auc": found.macro_auc,
        "log_loss": None if calibration is None else calibration.log_loss,
        "ece": None if calibration is None else calibration.ece,
        "temperature": None if calibration is None else calibration.temperature,
        "accuracy_interval": list(found.intervals.bounds["accuracy"]),
        "counts": asdict(report.counts),
    }


def write_csv(report: Report) -> bytes:
    """One line a class, as :mod:`app.exports.csv` writes its files: safe in a spreadsheet."""
    found = report.evaluation
    taken = taken_for(found.confusion, found.classes)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow((*_COLUMNS, "most_taken_for", "most_taken_for_images"))
    for index, (row, area) in enumerate(zip(found.scores.per_class, aucs(found), strict=True)):
        name, images = taken.get(index, (None, None))
        writer.writerow(
            (
                safe_cell(row.name),
                *(row.support, row.answered, row.precision, row.recall, row.f1),
                *(area, safe_cell(name), images),
            )
        )
    return text.getvalue().encode()


def aucs(found: Evaluation) -> list[float | None]:
    """The AUC of each class; None where it has none."""
    if found.auc is None:
        return [None] * len(found.classes)
    return [None if math.isnan(area) else area for area in found.auc.tolist()]


def taken_for(confusion: Confusion, classes: Sequence[str]) -> dict[int, tuple[str, int]]:
    """For each class with wrong answers the one that it was taken for most often, and how often."""
    worst: dict[int, tuple[str, int]] = {}
    cells = zip(
        confusion.true.tolist(), confusion.answered.tolist(), confusion.counts.tolist(), strict=True
    )
    for true, answered, count in cells:
        if true != answered and count > worst.get(true, ("", 0))[1]:
            worst[true] = (classes[answered], count)
    return worst


def _confusion_dict(confusion: Confusion) -> dict[str, Any]:
    """The cells that are not empty: indices into ``per_class``, and images."""
    cells = zip(
        confusion.true.tolist(), confusion.answered.tolist(), confusion.counts.tolist(), strict=True
    )
    return {"cells": [list(cell) for cell in cells], "columns": ["true", "answered", "images"]}
