"""The demo's own small parts; the road it tells is tested elsewhere."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from app.cli.demo import confusion_lines, share_within, speed_of
from app.cli.demo_digits import write_digits
from app.cli.demo_families import RECIPES, Candidate, advice, recipe_of, table_lines
from app.cli.demo_stack import own_environment
from app.client.values import Job, Result, Score
from app.training.recipe import TrainingRecipe


def result(label: str | None, *names: str) -> Result:
    ranked = tuple(Score(name, 1 / place) for place, name in enumerate(names, start=1))
    return Result(ordinal=0, label=label, prediction=ranked or None)


def test_digits_archive_is_the_same_every_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert write_digits(first) == write_digits(second) == (1437, 360)
    assert first.read_bytes() == second.read_bytes()


def test_digits_are_grey_pictures_held_out_evenly(tmp_path: Path) -> None:
    path = tmp_path / "digits.zip"
    write_digits(path)
    with zipfile.ZipFile(path) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("labels.csv").decode())))
        with Image.open(io.BytesIO(archive.read(rows[0]["filename"]))) as image:
            assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
            assert image.getextrema() == (0, 239)
    assert len({row["filename"] for row in rows}) == len(rows) == 1797
    held_out = Counter(row["label"] for row in rows if row["split"] == "test")
    assert len(held_out) == 10
    assert set(held_out.values()) <= {35, 36, 37}


def test_share_counts_failed_and_leaves_out_unlabelled() -> None:
    results = [
        result("cat", "cat", "dog"),
        result("dog", "cat", "dog"),
        result("cat"),
        result(None),
    ]
    assert share_within(results, 1) == 1 / 3
    assert share_within(results, 2) == 2 / 3
    assert share_within([result(None, "cat")], 1) == 0.0


def test_confusion_has_a_row_per_label_and_a_column_per_class() -> None:
    lines = confusion_lines([result("a", "a"), result("a", "b"), result("b", "b"), result("b")])
    assert [line.split() for line in lines] == [["a", "b"], ["a", "1", "1"], ["b", "·", "1"]]


def test_demo_never_meets_a_running_service() -> None:
    given = {
        "DATABASE_URL": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "DARKROOM_DEVICE": "cpu",
        "HOME": "h",
    }
    assert own_environment(given) == {"DARKROOM_DEVICE": "cpu", "HOME": "h"}


def test_speed_of_a_job_without_times_is_zero() -> None:
    assert speed_of(Job(id="job_1", kind="predict", state="succeeded")) == 0.0


def candidate(family: str, accuracy: float, macs: int | None) -> Candidate:
    return Candidate(family, f"{family}@1", f"the_{family}", accuracy, macs, 1.0)


def test_best_network_is_advised_and_what_depth_is_worth() -> None:
    found = [
        candidate("cnn", 0.98, 100),
        candidate("rnn", 0.96, 10),
        candidate("baseline", 0.95, None),
    ]
    assert advice(found).startswith("Take the the_cnn (cnn@1, 98.00%): it is right most often.")
    assert "depth is worth 3.0 points" in advice(found)


def test_lightest_network_of_those_that_are_as_good_is_advised() -> None:
    found = [
        candidate("baseline", 0.981, None),
        candidate("rnn", 0.981, 1000),
        candidate("cnn", 0.979, 100),
        candidate("transformer", 0.95, 10),
    ]
    assert advice(found).startswith("Take the the_cnn (cnn@1, 97.90%)")
    assert "the fewest operations" in advice(found)
    assert "depth buys nothing" in advice(found)


def test_comparison_lists_the_best_first() -> None:
    lines = table_lines([candidate("rnn", 0.9, 5), candidate("cnn", 0.98, 1234)])
    assert [line.split()[0] for line in lines] == ["family", "cnn", "rnn"]
    assert "1,234" in lines[1]


@pytest.mark.parametrize("family", RECIPES)
def test_recipes_of_the_demo_are_recipes(family: str) -> None:
    assert TrainingRecipe.from_dict(recipe_of(family)).epochs
