"""A training that was interrupted anywhere goes on to the same bits, or refuses what is foreign."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from app.errors import InvalidInputError
from app.training.augment import AugmentSpec
from app.training.recipe import TrainingRecipe
from tests.unit.pictures import assert_same, one_torch_thread, small_spec, stripes
from worker.recognisers.registry import build_module
from worker.training import fit as fit_module
from worker.training.checkpoint import (
    CheckpointRefusedError,
    restore_checkpoint,
    save_checkpoint,
)
from worker.training.data import TrainingStoppedError
from worker.training.fit import EpochReport, fit
from worker.training.state import TrainingState

#: 48 images in batches of 10: five steps in an epoch, the last one smaller.
RECIPE = TrainingRecipe(epochs=3, train_batch_size=10, seed=7)
STEPS = 15
RECIPES = {
    "momentum": RECIPE,
    "plain": replace(RECIPE, momentum=0.0, schedule="constant"),
    "adamw-ema": replace(
        RECIPE,
        optimizer="adamw",
        learning_rate=1e-3,
        ema_decay=0.9,
        clip_norm=1.0,
        warmup_epochs=0.5,
        decay_norms=False,
    ),
    "accumulation": replace(
        RECIPE,
        accumulate_batches=2,
        schedule="step",
        step_epochs=1,
        sampler="balanced",
        class_weights="balanced",
    ),
    "augmentation": replace(
        RECIPE,
        schedule="one_cycle",
        optimizer="adamw",
        learning_rate=1e-3,
        augment=AugmentSpec(
            crop_padding_px=2,
            flip=True,
            policy="trivialaugment",
            colour_jitter=0.2,
            erase_probability=0.5,
            mixup_alpha=0.5,
            cutmix_alpha=1.0,
        ),
    ),
    "frozen": replace(RECIPE, frozen_epochs=1, layer_decay=0.5, ema_decay=0.5),
    "probe": replace(RECIPE, train_layers="head", optimizer="adamw"),
    "bf16": replace(RECIPE, precision="bf16", train_batch_size=0),
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


class Run:
    """One training from its beginning or a checkpoint, to its end or to a step."""

    def __init__(
        self, recipe: TrainingRecipe, start: Path | None = None, *, validates: bool = False
    ) -> None:
        self.recipe = recipe
        self.start = start
        self.validation = stripes(12, seed=2) if validates else None
        self.reports: list[EpochReport] = []
        self.steps: list[int] = []

    def to_the_end(self) -> dict[str, Tensor]:
        return self._fit(lambda _: None)

    def to_step(self, steps: int, path: Path) -> None:
        """Write a checkpoint after so many steps, then stop."""

        def stop(state: TrainingState) -> None:
            if state.steps == steps:
                save_checkpoint(state, path)
                raise TrainingStoppedError("the test has seen enough")

        with pytest.raises(TrainingStoppedError):
            self._fit(stop)

    def _fit(self, look: Callable[[TrainingState], None]) -> dict[str, Tensor]:
        def begin(state: TrainingState) -> None:
            if self.start is not None:
                restore_checkpoint(state, self.start)

        def before_step(state: TrainingState) -> None:
            look(state)
            self.steps.append(state.steps)

        def epoch_over(report: EpochReport, state: TrainingState) -> None:
            self.reports.append(report)
            look(state)

        fitted = fit(
            small_spec(),
            self.recipe,
            stripes(48),
            stripes(12, seed=1),
            validation=self.validation,
            device="cpu",
            on_begin=begin,
            on_epoch=epoch_over,
            before_step=before_step,
        )
        return fitted.module.state_dict()


def numbers(reports: list[EpochReport]) -> list[EpochReport]:
    return [replace(report, seconds=0.0) for report in reports]


@pytest.mark.parametrize("steps", [1, 5, 7, 14, 15])
def test_resumed_training_ends_with_the_bits_of_an_undisturbed_one(
    tmp_path: Path, steps: int
) -> None:
    undisturbed, path = Run(RECIPE), tmp_path / "checkpoint"
    expected = undisturbed.to_the_end()
    first = Run(RECIPE)
    first.to_step(steps, path)
    second = Run(RECIPE, path)
    assert_same(second.to_the_end(), expected)
    assert first.steps + second.steps == list(range(STEPS))
    assert numbers(first.reports + second.reports) == numbers(undisturbed.reports)


@pytest.mark.parametrize("validates", [False, True], ids=["last", "best"])
@pytest.mark.parametrize("name", RECIPES)
def test_training_may_be_interrupted_again_and_again(
    tmp_path: Path, name: str, validates: bool
) -> None:
    undisturbed = Run(RECIPES[name], validates=validates)
    expected = undisturbed.to_the_end()
    last = len(undisturbed.steps)
    epoch = last // 3
    reports = []
    start = None
    # In an epoch, at its end, at its begin, and where there is nothing left to do.
    for steps in sorted({1, epoch, epoch + 1, 2 * epoch - 1, last}):
        path = tmp_path / str(steps)
        run = Run(RECIPES[name], start, validates=validates)
        run.to_step(steps, path)
        reports += run.reports
        start = path
    run = Run(RECIPES[name], start, validates=validates)
    assert_same(run.to_the_end(), expected)
    assert numbers(reports + run.reports) == numbers(undisturbed.reports)


def test_network_that_draws_while_it_learns_draws_the_same_after_a_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        fit_module, "build_module", lambda spec: nn.Sequential(nn.Dropout(0.5), build_module(spec))
    )
    expected = Run(RECIPE).to_the_end()
    assert not torch.equal(expected["1.classifier.1.bias"], torch.zeros(120))
    Run(RECIPE).to_step(8, tmp_path / "checkpoint")
    assert_same(Run(RECIPE, tmp_path / "checkpoint").to_the_end(), expected)


def test_seconds_of_an_interrupted_epoch_count_on(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    Run(RECIPE).to_step(7, path)
    rewrite(path, lambda header, _: header.update(seconds=1000.0))
    run = Run(RECIPE, path)
    run.to_the_end()
    assert [report.seconds > 1000 for report in run.reports] == [True, False]


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> None:
    """Change a checkpoint's header and tensors in place."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["checkpoint"])
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, metadata={"checkpoint": json.dumps(header)})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A checkpoint in the middle of the second epoch."""
    path = tmp_path_factory.mktemp("checkpoint") / "whole"
    Run(RECIPE).to_step(7, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        lambda header, _: header.update(format=1),
        lambda header, _: header.update(run="0" * 64),
        lambda header, _: header.update(epoch=4),
        lambda header, _: header.update(epoch=3, epoch_steps=1),
        lambda header, _: header.update(epoch=-1),
        lambda header, _: header.update(epoch=True),
        lambda header, _: header.update(epoch_steps=5),
        lambda header, _: header.update(epoch_steps="2"),
        lambda header, _: header.update(seconds=-1),
        lambda header, _: header.update(seconds=None),
        lambda header, _: header.update(batch_size=9),
        lambda header, _: header.update(parts=0),
        lambda header, _: header.update(best={"epoch": 1, "loss": 0.5, "accuracy": 0.5}),
        lambda header, _: header.update(best={"epoch": 2, "loss": 0.5, "accuracy": 0.5}),
        lambda header, _: header.update(best=[1]),
        lambda header, _: header.clear(),
        lambda _, tensors: tensors.pop("optimizer.classifier.1.bias:momentum_buffer"),
        lambda _, tensors: tensors.pop("random.order"),
        lambda _, tensors: tensors.update(more=torch.zeros(1)),
        lambda _, tensors: tensors.update({"module.classifier.1.bias": torch.zeros(121)}),
        lambda _, tensors: tensors.update({"module.classifier.1.bias": torch.zeros(120).double()}),
        lambda _, tensors: tensors["random.order"].fill_(255),
        lambda _, tensors: tensors["random.cpu"].fill_(255),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(
    tmp_path: Path, whole: bytes, change: Callable[[dict[str, Any], dict[str, Tensor]], None]
) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(whole)
    rewrite(path, change)
    assert_refused(path)


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_checkpoint_that_is_cut_off_is_refused(tmp_path: Path, whole: bytes, cut: int) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(whole[:cut])
    assert_refused(path)


def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_file({"a": torch.zeros(1)}, path)
    assert_refused(path)


def assert_refused(path: Path) -> None:
    """The checkpoint is refused, and the training that tried it is as if it had not."""

    def begin(state: TrainingState) -> None:
        with pytest.raises(CheckpointRefusedError):
            restore_checkpoint(state, path)

    expected = Run(RECIPE).to_the_end()
    fitted = fit(
        small_spec(),
        RECIPE,
        stripes(48),
        stripes(12, seed=1),
        device="cpu",
        on_begin=begin,
        on_epoch=lambda _report, _state: None,
    )
    assert_same(fitted.module.state_dict(), expected)


@pytest.mark.parametrize(
    ("recipe", "images"),
    [
        (replace(RECIPE, seed=8), 48),
        (replace(RECIPE, epochs=4), 48),
        (RECIPE, 51),
    ],
    ids=["seed", "epochs", "images"],
)
def test_checkpoint_of_another_run_is_refused(
    tmp_path: Path, whole: bytes, recipe: TrainingRecipe, images: int
) -> None:
    path = tmp_path / "checkpoint"
    path.write_bytes(whole)

    def begin(state: TrainingState) -> None:
        restore_checkpoint(state, path)

    with pytest.raises(CheckpointRefusedError, match="another run"):
        fit(
            small_spec(),
            recipe,
            stripes(images),
            stripes(12),
            device="cpu",
            on_begin=begin,
            on_epoch=lambda _report, _state: None,
        )


def test_training_that_diverged_says_so_after_a_resumption_too(tmp_path: Path) -> None:
    recipe = replace(RECIPE, learning_rate=100.0)
    path = tmp_path / "checkpoint"
    Run(recipe).to_step(4, path)
    with pytest.raises(InvalidInputError) as caught:
        Run(recipe, path).to_the_end()
    assert caught.value.code == "training_diverged"
