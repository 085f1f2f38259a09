"""A step is what the recipe says, in whatever parts it is computed; and a training ends in time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import count, zip_longest
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from app.errors import InvalidInputError
from app.training.recipe import TrainingRecipe
from tests.unit.pictures import assert_same, one_torch_thread, small_spec, stripes
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module
from worker.training import fit as fit_module
from worker.training.checkpoint import restore_checkpoint, save_checkpoint
from worker.training.data import CachedImages, TrainingStoppedError
from worker.training.evaluate import evaluate
from worker.training.fit import EpochReport, Fitted, fit
from worker.training.state import TrainingState

RECIPE = TrainingRecipe(epochs=2, train_batch_size=12, seed=5)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def teach(
    recipe: TrainingRecipe, *, images: int = 48, **more: Any
) -> tuple[Fitted, list[EpochReport]]:
    reports: list[EpochReport] = []
    fitted = fit(
        small_spec(),
        recipe,
        stripes(images),
        stripes(12, seed=1),
        device="cpu",
        on_epoch=lambda report, _state: reports.append(report),
        **more,
    )
    return fitted, reports


def assert_close(first: nn.Module, second: nn.Module, *, atol: float = 1e-5) -> None:
    expected = second.state_dict()
    for name, tensor in first.state_dict().items():
        assert torch.allclose(tensor, expected[name], atol=atol, rtol=1e-4), name


def test_default_recipe_is_the_plain_loop_to_the_bit() -> None:
    recipe, images = replace(RECIPE, epochs=3, train_batch_size=10), stripes(48)
    torch.manual_seed(recipe.seed)
    order = torch.Generator().manual_seed(recipe.seed)
    module = build_module(small_spec())
    normalise = Normalise(small_spec().preprocess)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    schedule = LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / 15)) / 2)
    for _ in range(3):
        for rows in torch.split(torch.randperm(48, generator=order), 10):
            loss = cross_entropy(
                module(normalise(images.pixels[rows])), images.targets[rows], label_smoothing=0.1
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    assert_same(teach(recipe)[0].module.state_dict(), module.state_dict())


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_batches_added_up_are_one_large_batch(class_weights: str) -> None:
    recipe = replace(RECIPE, class_weights=class_weights)  # type: ignore[arg-type]
    # 50 images, so that the last step is smaller and its last batch smaller still.
    whole, reports = teach(recipe, images=50)
    parts, others = teach(replace(recipe, train_batch_size=4, accumulate_batches=3), images=50)
    assert_close(parts.module, whole.module)
    assert [r.learning_rate for r in reports] == [r.learning_rate for r in others]
    for report, other in zip(reports, others, strict=True):
        assert report.train_accuracy == other.train_accuracy
        if class_weights == "none":
            assert report.train_loss == pytest.approx(other.train_loss, rel=1e-4)


def test_long_gradients_are_cut_to_the_length_of_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths: list[float] = []
    step = torch.optim.SGD.step

    def measured(optimizer: torch.optim.SGD) -> None:
        gradients = [
            parameter.grad.flatten()
            for group in optimizer.param_groups
            for parameter in group["params"]
        ]
        lengths.append(torch.cat(gradients).norm().item())
        step(optimizer)

    monkeypatch.setattr(torch.optim.SGD, "step", measured)
    teach(replace(RECIPE, clip_norm=0.05))
    assert max(lengths) <= 0.05 * 1.001
    assert len(lengths) == 8
    assert lengths[0] == pytest.approx(0.05, rel=1e-3)
    lengths.clear()
    teach(RECIPE)
    assert max(lengths) > 0.05 * 2


def test_bf16_computes_layers_in_bfloat16_and_keeps_weights_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: set[torch.dtype] = set()

    def build(spec: Any) -> nn.Module:
        module = build_module(spec)
        module.get_submodule("features.0").register_forward_hook(
            lambda layer, _inputs, output: seen.add(output.dtype) if layer.training else None
        )
        return module

    monkeypatch.setattr(fit_module, "build_module", build)
    held: list[set[torch.dtype]] = []

    def look(state: TrainingState) -> None:
        remembered = [value for entry in state.optimizer.state.values() for value in entry.values()]
        held.append({tensor.dtype for tensor in [*state.module.parameters(), *remembered]})

    recipe = replace(RECIPE, epochs=6, train_batch_size=8)
    rounded, _ = teach(replace(recipe, precision="bf16"), before_step=look)
    assert seen == {torch.bfloat16}
    assert all(dtypes == {torch.float32} for dtypes in held)
    seen.clear()
    exact, _ = teach(recipe)
    assert seen == {torch.float32}
    assert_close(rounded.module, exact.module, atol=0.1)


class SmallDevice(nn.Module):
    """A network on a device that has memory for a few images at once."""

    def __init__(self, module: nn.Module, most: int) -> None:
        super().__init__()
        self.inner = module
        self.most = most
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        """As the network itself."""
        if self.training:
            self.sizes.append(len(images))
            if len(images) > self.most:
                raise torch.OutOfMemoryError("no memory")
        logits: Tensor = self.inner(images)
        return logits


def small_device(monkeypatch: pytest.MonkeyPatch, most: int) -> list[SmallDevice]:
    built: list[SmallDevice] = []

    def build(spec: Any) -> nn.Module:
        built.append(SmallDevice(build_module(spec), most))
        return built[-1]

    monkeypatch.setattr(fit_module, "build_module", build)
    return built


def test_automatic_batch_is_halved_until_it_fits_and_that_is_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    automatic = replace(RECIPE, train_batch_size=0)
    whole, _ = teach(automatic)
    built = small_device(monkeypatch, most=9)
    path = tmp_path / "checkpoint"

    def stop(state: TrainingState) -> None:
        if state.steps == 3:
            save_checkpoint(state, path)

    halved, _ = teach(automatic, before_step=stop)
    # 48 images: batches of 32 and 16; 32 and 16 do not fit, 8 does.
    assert built[0].sizes == [32, 16, 8, 8, 8, 8, 4, 4, 4, 4] + [8] * 4 + [4] * 4
    assert isinstance(halved.module, SmallDevice)
    assert_close(halved.module.inner, whole.module)

    teach(automatic, on_begin=lambda state: restore_checkpoint(state, path))
    assert built[1].sizes == [4] * 4


def test_batch_of_the_recipes_own_size_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small_device(monkeypatch, most=9)
    with pytest.raises(InvalidInputError, match="12 images") as caught:
        teach(RECIPE)
    assert caught.value.code == "out_of_device_memory"


def test_single_image_is_left_out_where_layers_normalise_over_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        fit_module,
        "build_module",
        lambda spec: nn.Sequential(build_module(spec), nn.BatchNorm1d(3)),
    )
    teach(RECIPE, images=49)
    with pytest.raises(InvalidInputError) as caught:
        teach(replace(RECIPE, train_batch_size=1))
    assert caught.value.code == "batch_too_small"


def test_frozen_body_rests_with_its_norms_until_its_epochs_are_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fit_module, "build_module", _with_norm)
    monkeypatch.setattr("worker.training.optim.head_parameters", lambda *_: HEAD)
    at_epochs: list[dict[str, Tensor]] = []

    def look(state: TrainingState) -> None:
        if not state.epoch_steps:
            at_epochs.append({k: v.clone() for k, v in state.module.state_dict().items()})

    ended, _ = teach(replace(RECIPE, frozen_epochs=1), before_step=look)
    first, second = at_epochs
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert changed == HEAD
    last = ended.module.state_dict()
    changed = {name for name in first if not torch.equal(last[name], second[name])}
    assert changed == set(first)

    probed, _ = teach(replace(RECIPE, train_layers="head"))
    last = probed.module.state_dict()
    assert {name for name in first if not torch.equal(last[name], first[name])} == HEAD


HEAD = {"1.classifier.5.weight", "1.classifier.5.bias"}


def _with_norm(spec: Any) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), build_module(spec))


class Clock:
    """Says that each look at it takes a second."""

    def __init__(self) -> None:
        self._ticks = count()

    def __call__(self) -> float:
        return float(next(self._ticks))


@pytest.mark.parametrize("validates", [False, True], ids=["last", "best"])
def test_time_budget_ends_at_a_step_and_what_was_learnt_is_judged(validates: bool) -> None:
    steps: list[int] = []
    validation = stripes(12, seed=2) if validates else None
    fitted, reports = teach(
        replace(RECIPE, epochs=100, max_seconds=28),
        clock=Clock(),
        validation=validation,
        before_step=lambda state: steps.append(state.epoch_steps),
    )
    assert fitted.ended_by == "max_seconds"
    assert 28 <= fitted.seconds < 38
    assert fitted.epochs == len(reports) < 30
    assert steps[-1] < 3, "the last epoch did not come to its end"
    judged = stripes(12, seed=1) if validation is None else validation
    found = evaluate(fitted.module, Normalise(small_spec().preprocess), judged, device="cpu")
    assert found.accuracy == reports[fitted.epoch - 1].held_out_accuracy


def test_time_budget_counts_the_time_before_an_interruption(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    recipe = replace(RECIPE, epochs=100, max_seconds=30)

    def stop(state: TrainingState) -> None:
        if state.steps == 6:
            save_checkpoint(state, path)
            raise TrainingStoppedError("the test has seen enough")

    with pytest.raises(TrainingStoppedError):
        teach(recipe, clock=Clock(), before_step=stop)
    whole, _ = teach(recipe, clock=Clock())
    resumed, _ = teach(
        recipe, clock=Clock(), on_begin=lambda state: restore_checkpoint(state, path)
    )
    assert resumed.seconds == pytest.approx(whole.seconds, abs=3)
    assert resumed.epochs == whole.epochs


def test_smallest_time_budget_still_takes_a_step() -> None:
    fitted, reports = teach(replace(RECIPE, max_seconds=1e-6))
    assert (fitted.epochs, fitted.ended_by) == (1, "max_seconds")
    assert len(reports) == 1


def results(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], losses: Sequence[float] = ()
) -> None:
    """Let the epochs have these accuracies and losses, whatever they learn."""
    left = zip_longest(accuracies, losses, fillvalue=1.0)

    def answer(*arguments: Any, **more: Any) -> Any:
        accuracy, loss = next(left)
        return replace(evaluate(*arguments, **more), loss=loss, accuracy=accuracy)

    monkeypatch.setattr(fit_module, "evaluate", answer)


def test_epoch_that_does_best_on_the_validation_split_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results(monkeypatch, [0.5, 0.8, 0.7, 0.8])
    ends: list[dict[str, Tensor]] = []
    recipe = replace(RECIPE, epochs=4)
    reports: list[EpochReport] = []

    def epoch_over(report: EpochReport, state: TrainingState) -> None:
        reports.append(report)
        ends.append({k: v.clone() for k, v in state.module.state_dict().items()})

    fitted = fit(
        small_spec(),
        recipe,
        stripes(48),
        stripes(12, seed=1),
        validation=stripes(12, seed=2),
        device="cpu",
        on_epoch=epoch_over,
    )
    assert (fitted.epoch, fitted.epochs, fitted.ended_by) == (2, 4, "epochs")
    assert_same(fitted.module.state_dict(), ends[1])
    assert {report.held_out for report in reports} == {"validation"}


def test_epoch_whose_loss_is_no_number_gives_way_to_one_as_accurate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results(monkeypatch, [0.5, 0.5, 0.5], [math.nan, 2.0, math.nan])
    fitted, _ = teach(replace(RECIPE, epochs=3), validation=stripes(12, seed=2))
    assert fitted.epoch == 2


def test_training_stops_early_once_the_validation_split_gets_no_better(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results(monkeypatch, [0.5, 0.8, 0.7, 0.8, 0.9, 0.9, 0.6])
    fitted, reports = teach(
        replace(RECIPE, epochs=50, early_stopping_epochs=2), validation=stripes(12, seed=2)
    )
    assert (fitted.epoch, fitted.epochs, fitted.ended_by) == (2, 4, "early_stopping")
    assert len(reports) == 4


def test_early_stopping_without_a_validation_split_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        teach(replace(RECIPE, early_stopping_epochs=2))
    assert caught.value.code == "early_stopping_needs_validation"


def test_moving_average_is_what_is_judged_and_kept() -> None:
    averages: list[dict[str, Tensor]] = []

    def look(state: TrainingState) -> None:
        assert state.ema is not None
        averages.append(state.ema.module.state_dict())

    images = stripes(12, seed=1)
    fitted, reports = teach(replace(RECIPE, ema_decay=0.9), before_step=look)
    plain, _ = teach(RECIPE)
    assert_same(fitted.module.state_dict(), averages[-1])
    assert not torch.equal(
        fitted.module.state_dict()["classifier.5.bias"],
        plain.module.state_dict()["classifier.5.bias"],
    )
    found = evaluate(fitted.module, Normalise(small_spec().preprocess), images, device="cpu")
    assert found.loss == pytest.approx(reports[-1].held_out_loss)


def test_empty_validation_split_is_refused() -> None:
    empty = CachedImages(torch.empty(0, 32, 32, 3, dtype=torch.uint8), torch.empty(0).long(), [])
    with pytest.raises(InvalidInputError, match="validation split"):
        teach(RECIPE, validation=empty)
