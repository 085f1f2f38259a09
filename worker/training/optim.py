"""The optimizer of a recipe: which parameters learn, how fast, and how that changes by steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.optimizer import Optimizer

from app.training.recipe import TrainingRecipe
from worker.recognisers.layers import depth_groups, head_parameters

#: Of one-cycle: share of the steps that the rate rises, from 1/25 of the highest, and what it
#: ends at, as a share of where it began. torch's OneCycleLR has the same.
_RISE = 0.3
_RISE_FROM = 1 / 25
_FALL_TO = 1e-4


def build_optimizer(module: nn.Module, recipe: TrainingRecipe) -> Optimizer:
    """The recipe's optimizer over all parameters that ever learn, in groups of equal rates."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    scales = _layer_scales(module, recipe)
    learning = learning_parameters(module, recipe, epoch=recipe.epochs)
    for name, parameter in module.named_parameters():
        if name not in learning:
            continue
        decays = recipe.decay_norms or parameter.ndim > 1
        facts = (scales.get(name, 1.0), recipe.weight_decay if decays else 0.0)
        groups.setdefault(facts, []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "lr": recipe.learning_rate * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    for group in listed:
        group["initial_lr"] = group["lr"]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(
            listed, lr=recipe.learning_rate, betas=(recipe.momentum, recipe.beta2)
        )
    return torch.optim.SGD(listed, lr=recipe.learning_rate, momentum=recipe.momentum)


def learning_parameters(module: nn.Module, recipe: TrainingRecipe, *, epoch: int) -> set[str]:
    """Names of the parameters that learn in an epoch; the first is 0."""
    if recipe.train_layers == "head" or epoch < recipe.frozen_epochs:
        return head_parameters(module, recipe.arch)
    return {name for name, _ in module.named_parameters()}


def prepare_layers(module: nn.Module, learning: set[str]) -> None:
    """Set the network to learning, all but the layers that rest.

    A resting batch norm also keeps its running means, so that what rests answers as it did.
    """
    module.train()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in learning)
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and f"{name}.weight" not in learning:
            layer.eval()


def rate_factor(recipe: TrainingRecipe, step: int, steps_per_epoch: int) -> float:
    """What the learning rates of a step are multiplied by; the first step is 0."""
    total = recipe.epochs * steps_per_epoch
    warmup = round(recipe.warmup_epochs * steps_per_epoch)
    if recipe.schedule == "one_cycle":
        return _one_cycle(step, total, warmup or _RISE * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if recipe.schedule == "step":
        return recipe.step_factor ** (step // (recipe.step_epochs * steps_per_epoch))
    if recipe.schedule == "cosine":
        return (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2
    return 1.0


def set_rates(optimizer: Optimizer, factor: float) -> None:
    """Give each group the rate it began with, times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def optimizer_tensors(optimizer: Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """What the optimizer remembers of each parameter, as ``name of parameter:name of value``."""
    return {
        f"{names[parameter]}:{key}": value
        for parameter, remembered in optimizer.state.items()
        for key, value in remembered.items()
        if isinstance(value, Tensor)
    }


def expected_tensors(recipe: TrainingRecipe, name: str, parameter: Tensor) -> dict[str, Tensor]:
    """Tensors of the shapes that the optimizer remembers of a parameter once it has learnt."""
    if recipe.optimizer == "adamw":
        return {
            f"{name}:step": torch.zeros(()),
            f"{name}:exp_avg": parameter,
            f"{name}:exp_avg_sq": parameter,
        }
    return {f"{name}:momentum_buffer": parameter} if recipe.momentum else {}


def restore_optimizer(
    optimizer: Optimizer, names: Mapping[Tensor, str], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what :func:`optimizer_tensors` gave."""
    by_name = {name: parameter for parameter, name in names.items()}
    optimizer.state.clear()
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition(":")
        parameter = by_name[name]
        # AdamW counts its steps on the CPU, whatever the device.
        device = value.device if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.to(device)


def _layer_scales(module: nn.Module, recipe: TrainingRecipe) -> dict[str, float]:
    """``layer_decay`` to the power of each parameter's distance from the head."""
    if recipe.layer_decay == 1:
        return {}
    groups = depth_groups(module, recipe.arch)
    return {
        name: recipe.layer_decay ** (len(groups) - 1 - depth)
        for depth, names in enumerate(groups)
        for name in names
    }


def _one_cycle(step: int, total: int, rise: float) -> float:
    """Half a cosine up, then one down; ``rise`` steps are those of the first."""
    top, last = max(rise - 1, 0), max(total - 1, 1)
    if step <= top:
        return _between(_RISE_FROM, 1.0, step / top if top else 1.0)
    return _between(1.0, _RISE_FROM * _FALL_TO, min((step - top) / (last - top), 1.0))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))
