"""Teaching repeats by its seed, learns what can be learnt, and stops when told."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.nn.functional import cross_entropy

from app.errors import InvalidInputError
from app.training.recipe import TrainingRecipe
from tests.unit.pictures import (
    LIMITS,
    MAX_BYTES,
    one_torch_thread,
    small_spec,
    stripes,
)
from worker.pipeline.decode import DecodePool
from worker.recognisers.preprocess import Normalise
from worker.training.data import CachedImages, TrainingStoppedError
from worker.training.evaluate import evaluate
from worker.training.fit import EpochReport, fit
from worker.training.seed import seeded
from worker.training.state import TrainingState


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodePool]:
    with DecodePool.start(1, MAX_BYTES, LIMITS) as pool:
        yield pool


def teach(recipe: TrainingRecipe, stop_after: int | None = None) -> list[EpochReport]:
    reports: list[EpochReport] = []

    def before_step(_state: TrainingState) -> None:
        if stop_after is not None and len(reports) >= stop_after:
            raise TrainingStoppedError("the test has seen enough")

    fit(
        small_spec(),
        recipe,
        stripes(96),
        stripes(48, seed=1),
        device="cpu",
        on_epoch=lambda report, _state: reports.append(report),
        before_step=before_step,
    )
    return reports


def test_network_learns_what_the_images_show() -> None:
    reports = teach(TrainingRecipe(epochs=15, train_batch_size=8))
    assert [report.epoch for report in reports] == list(range(1, 16))
    assert reports[-1].held_out_accuracy == 1.0
    assert reports[-1].train_accuracy == 1.0
    assert reports[-1].train_loss < reports[0].train_loss
    assert all(report.seconds > 0 for report in reports)


def test_same_seed_gives_the_same_network_to_the_bit() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        module = fit(
            small_spec(),
            TrainingRecipe(epochs=2, seed=seed),
            stripes(48),
            stripes(12),
            device="cpu",
            on_epoch=lambda _report, _state: None,
        ).module
        assert not module.training
        return module.state_dict()

    first, again, other = weights(5), weights(5), weights(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_training_leaves_torchs_own_generator_as_it_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with seeded(99, "cpu"):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rate_follows_its_schedule(schedule: str) -> None:
    recipe = TrainingRecipe(epochs=4, learning_rate=0.01, schedule=schedule)  # type: ignore[arg-type]
    rates = [report.learning_rate for report in teach(recipe)]
    expected = [0.01] * 4 if schedule == "constant" else [0.01, 0.00853553, 0.005, 0.00146447]
    assert rates == pytest.approx(expected, rel=1e-4)


def test_training_that_is_told_to_stop_gives_no_network() -> None:
    with pytest.raises(TrainingStoppedError):
        teach(TrainingRecipe(epochs=50), stop_after=2)


def test_loss_that_is_no_number_is_told() -> None:
    with pytest.raises(InvalidInputError) as caught:
        teach(TrainingRecipe(epochs=5, learning_rate=100))
    assert caught.value.code == "training_diverged"


def test_empty_split_is_refused() -> None:
    empty = CachedImages(torch.empty(0, 32, 32, 3, dtype=torch.uint8), torch.empty(0).long(), [])
    with pytest.raises(InvalidInputError, match="test split"):
        fit(
            small_spec(),
            TrainingRecipe(),
            stripes(3),
            empty,
            device="cpu",
            on_epoch=lambda _report, _state: None,
        )


def test_evaluation_is_the_plain_mean_over_all_images() -> None:
    images = stripes(300)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    normalise = Normalise(small_spec().preprocess)
    answered: list[int] = []
    found = evaluate(module, normalise, images, device="cpu", on_answered=answered.append)
    assert answered == [256, 44]
    with torch.inference_mode():
        logits = module(normalise(images.pixels))
    assert found.loss == pytest.approx(float(cross_entropy(logits, images.targets)), rel=1e-5)
    assert torch.equal(found.predicted, logits.argmax(dim=1))
    assert found.accuracy == int((logits.argmax(dim=1) == images.targets).sum()) / 300
