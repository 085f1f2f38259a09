"""Rates, groups, losses and averages are those that torch and the papers define."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    SequentialLR,
    StepLR,
)
from torch.optim.optimizer import Optimizer

from app.training.recipe import Schedule, TrainingRecipe
from tests.unit.pictures import small_spec
from worker.recognisers.registry import build_module
from worker.training.augment import TrainingBatch
from worker.training.ema import Ema
from worker.training.loss import batch_loss
from worker.training.optim import build_optimizer, rate_factor

RECIPE = TrainingRecipe(epochs=4, learning_rate=0.5)
STEPS_PER_EPOCH = 5
STEPS = 20


def warmed(optimizer: Optimizer, schedule: LRScheduler) -> LRScheduler:
    """Eight steps of warm-up, then the other schedule."""
    rise = LinearLR(optimizer, start_factor=1 / 9, total_iters=8)
    return SequentialLR(optimizer, [rise, schedule], milestones=[8])


SCHEDULES: dict[str, tuple[TrainingRecipe, Callable[[Optimizer], LRScheduler]]] = {
    "constant": (
        replace(RECIPE, schedule="constant"),
        lambda optimizer: ConstantLR(optimizer, factor=1.0),
    ),
    "cosine": (RECIPE, lambda optimizer: CosineAnnealingLR(optimizer, STEPS)),
    "step": (
        replace(RECIPE, schedule="step", step_epochs=2, step_factor=0.3),
        lambda optimizer: StepLR(optimizer, 2 * STEPS_PER_EPOCH, 0.3),
    ),
    "one_cycle": (
        replace(RECIPE, schedule="one_cycle"),
        lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=STEPS, cycle_momentum=False),
    ),
    "one_cycle-rise": (
        replace(RECIPE, schedule="one_cycle", warmup_epochs=2),
        lambda optimizer: OneCycleLR(
            optimizer, 0.5, total_steps=STEPS, pct_start=0.5, cycle_momentum=False
        ),
    ),
    "warmup-cosine": (
        replace(RECIPE, warmup_epochs=1.6),
        lambda optimizer: warmed(optimizer, CosineAnnealingLR(optimizer, STEPS - 8)),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rates_are_those_of_torchs_own_schedule(name: str) -> None:
    recipe, build = SCHEDULES[name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = build(optimizer)
    expected = []
    for _ in range(STEPS):
        expected.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    found = [0.5 * rate_factor(recipe, step, STEPS_PER_EPOCH) for step in range(STEPS)]
    assert found == pytest.approx(expected, rel=1e-9)
    assert len(set(found)) > 1 or name == "constant"


def test_training_of_one_step_has_a_rate() -> None:
    for schedule in get_args(Schedule):
        recipe = replace(RECIPE, epochs=1, schedule=schedule)
        assert rate_factor(recipe, 0, 1) == 1.0


def test_layers_learn_the_slower_the_further_they_are_from_the_head() -> None:
    module = build_module(small_spec())
    optimizer = build_optimizer(module, replace(RECIPE, layer_decay=0.5))
    rates = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    by_name = {name: rates[id(parameter)] for name, parameter in module.named_parameters()}
    assert by_name["classifier.5.weight"] == by_name["classifier.5.bias"] == 0.5
    assert by_name["classifier.3.weight"] == 0.25
    assert by_name["features.0.weight"] == 0.5 * 0.5**4


def test_norms_and_biases_decay_only_if_they_should() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    recipe = replace(RECIPE, weight_decay=0.1)
    assert [len(g["params"]) for g in build_optimizer(module, recipe).param_groups] == [6]
    groups = build_optimizer(module, replace(recipe, decay_norms=False)).param_groups
    decays = {
        id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]
    }
    names = {name: decays[id(parameter)] for name, parameter in module.named_parameters()}
    assert {name for name, decay in names.items() if decay} == {"0.weight", "2.weight"}


def test_adamw_has_the_betas_of_the_recipe() -> None:
    recipe = replace(RECIPE, optimizer="adamw", momentum=0.8, beta2=0.95)
    optimizer = build_optimizer(build_module(small_spec()), recipe)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.95)


def batch(targets: Tensor, other: Tensor | None = None, mix: Tensor | None = None) -> TrainingBatch:
    return TrainingBatch(torch.empty(len(targets), 0), targets, other, mix)


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator)
    targets = torch.tensor([0, 1, 2, 3, 1, 1])
    return logits, targets, targets.flip(0), torch.rand(6, generator=generator)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 4.0])], ids=["even", "own"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_torchs_cross_entropy(smoothing: float, weights: Tensor | None) -> None:
    logits, targets, _, _ = drawn()
    recipe = replace(RECIPE, label_smoothing=smoothing)
    expected = cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)
    assert torch.equal(batch_loss(logits, batch(targets), recipe, weights), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_of_mixed_images_is_that_of_their_mixed_targets(smoothing: float) -> None:
    logits, targets, other, mix = drawn()
    shares = mix[:, None] * one_hot(targets, 4) + (1 - mix[:, None]) * one_hot(other, 4)
    found = batch_loss(
        logits, batch(targets, other, mix), replace(RECIPE, label_smoothing=smoothing), None
    )
    expected = cross_entropy(logits, shares, label_smoothing=smoothing)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_moving_average_keeps_its_share_of_itself() -> None:
    linear, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1)
    module, weight = nn.Sequential(linear, norm), linear.weight
    assert norm.running_mean is not None
    with torch.no_grad():
        weight.fill_(8.0)
    ema = Ema(module, decay=0.5)
    expected = 8.0
    for steps in range(1, 12):
        with torch.no_grad():
            weight.fill_(float(steps))
            norm.running_mean.fill_(steps)
        ema.update(module, steps)
        keeps = min(0.5, (1 + steps) / (10 + steps))
        expected = keeps * expected + (1 - keeps) * steps
        averages = ema.module.state_dict()
        assert averages["0.weight"].item() == pytest.approx(expected, rel=1e-6)
        assert averages["1.running_mean"].item() == steps
    assert weight.item() == 11.0, "the network itself is left alone"
