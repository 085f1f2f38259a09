"""The report of an evaluation: whole and plain as JSON, safe as CSV and as a page."""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Sequence
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from worker.evaluation.calibration import fit_temperature, weigh_logits
from worker.evaluation.measure import Evaluation, MeasureOptions, measure_choices, measure_logits
from worker.evaluation.page import write_page
from worker.evaluation.report import (
    ItemCounts,
    NotableItem,
    Report,
    Subject,
    summarise,
    write_csv,
)

HOSTILE = ("<script>alert(1)</script>", "$\\frac{broken$", "=cmd()", "a & b", "猫")
OPTIONS = MeasureOptions(bootstrap_samples=20, hardest=3)


def answers(classes: int, images: int) -> tuple[Any, Any]:
    """Logits that favour the target, and targets; the last class has no image."""
    random = np.random.default_rng(0)
    targets = random.integers(0, classes - 1, images)
    logits = random.normal(0, 1.5, (images, classes)).astype(np.float32)
    logits[np.arange(images), targets] += 3
    return logits, targets


def report_of(evaluation: Evaluation) -> Report:
    notables = evaluation.hardest + evaluation.confidently_wrong
    subject = Subject("job_1", "pets@3", "mdv_1", "ab", "cd", "the dataset pets@1", None, "2026")
    return Report(
        subject,
        ItemCounts(evaluation.images + 6, evaluation.images, 1, 2, 3),
        {"<i>zebra": 3},
        evaluation,
        {each.index: NotableItem(f"<b>{each.index}.jpg", "=x") for each in notables},
    )


def report(classes: Sequence[str], images: int = 60) -> Report:
    logits, targets = answers(len(classes), images)
    return report_of(measure_logits(logits, targets, classes, options=OPTIONS))


def test_json_report_holds_no_nan_and_every_class_and_cell() -> None:
    made = report(HOSTILE)
    body = json.loads(json.dumps(made.as_dict(), allow_nan=False))
    assert [row["name"] for row in body["per_class"]] == list(HOSTILE)
    assert body["per_class"][-1]["auc"] is None
    assert sum(count for _, _, count in body["confusion"]["cells"]) == 60
    assert body["scores"]["top_k"].keys() == {"1", "5"}
    assert body["scores"]["accuracy"] == body["scores"]["top_k"]["1"]
    assert body["counts"]["unknown_label"] == 3
    first = body["hardest"][0]
    assert first["true_probability"] == min(row["true_probability"] for row in body["hardest"])
    assert first["custom_id"].endswith(".jpg")
    assert summarise(made)["accuracy"] == body["scores"]["accuracy"]


def test_logits_on_disk_are_measured_like_those_in_memory() -> None:
    logits, targets = answers(5, 80)
    with tempfile.TemporaryFile() as file:
        on_disk = np.memmap(file, np.float32, "w+", shape=logits.shape)
        on_disk[:] = logits
        parts: list[None] = []
        found = measure_logits(
            on_disk, targets, HOSTILE, options=OPTIONS, on_part=lambda: parts.append(None)
        )
    assert parts
    plain = measure_logits(logits, targets, HOSTILE, options=OPTIONS)
    assert report_of(found).as_dict() == report_of(plain).as_dict()
    assert found.calibration is not None
    assert found.calibration.temperature == fit_temperature(logits, targets)
    assert found.calibration.log_loss == weigh_logits(logits, targets).loss.mean()


def test_answers_without_complete_scores_have_no_auc_and_no_calibration() -> None:
    logits, targets = answers(5, 40)
    predicted = logits.argmax(axis=1)
    found = measure_choices(predicted, np.full(40, 0.9), targets, HOSTILE, options=OPTIONS)
    assert (found.auc, found.calibration, found.hardest) == (None, None, [])
    assert found.scores == measure_logits(logits, targets, HOSTILE, options=OPTIONS).scores
    body = json.dumps(report_of(found).as_dict(), allow_nan=False)
    assert json.loads(body)["calibration"] is None
    assert "does not show exact scores" in write_page(report_of(found)).decode()


def test_csv_has_a_safe_line_for_each_class() -> None:
    rows = list(csv.DictReader(io.StringIO(write_csv(report(HOSTILE)).decode(), newline="")))
    assert [row["class"] for row in rows] == [*HOSTILE[:2], "'=cmd()", *HOSTILE[3:]]
    assert sum(int(row["images"]) for row in rows) == 60
    assert rows[-1]["auc"] == ""


class _Page(HTMLParser):
    """Which elements stand in a page, with their attributes, and all its text."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_runs_nothing_and_fetches_nothing_whatever_classes_are_called() -> None:
    body = write_page(report(HOSTILE))
    page = _Page(body)
    assert page.tags.isdisjoint({"script", "b", "img", "iframe", "link", "object", "image"})
    names = {name for name, _ in page.attributes}
    assert not [name for name in names if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value is not None and value.startswith("#") for value in links)
    assert not re.search(r"url\((?!#)", body.decode())
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    text = " ".join(page.words)
    assert all(name in text for name in HOSTILE)
    assert "<i>zebra (3)" in text
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {f"#{each}" for each in ids} >= set(links)


@pytest.mark.parametrize("classes", [1, 3000])
def test_page_stays_readable_with_one_class_and_with_thousands(classes: int) -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 1, (50, classes)).astype(np.float32)
    targets = random.integers(0, classes, 50)
    names = [f"class {index}" for index in range(classes)]
    made = report_of(measure_logits(logits, targets, names, options=OPTIONS))
    page = write_page(made)
    assert len(page) < 250_000
    assert page.count(b"<tr>") < 100
    assert len(write_csv(made).splitlines()) == classes + 1


def test_same_evaluation_gives_the_same_page() -> None:
    assert write_page(report(HOSTILE)) == write_page(report(HOSTILE))
