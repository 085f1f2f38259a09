"""The training loop that everybody writes, to hold ours against: same network, same recipe.

As in torchvision's reference script, each epoch ends by answering the held-out images.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module, default_preprocess
from worker.training.data import CachedImages
from worker.training.fit import fit

_IMAGES = 1024
_HELD_OUT = 64
_EPOCHS = 2
_TURNS = 3
_ARCH = "resnet20"


def train_ratio() -> float:
    """Our images/s divided by those of the plain loop: the median of turns, each of both."""
    classes = tuple("abcdefghij")
    spec = ModelSpec(_ARCH, classes, default_preprocess(_ARCH))
    recipe = TrainingRecipe(arch=_ARCH, epochs=_EPOCHS, train_batch_size=64)
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (_IMAGES, 32, 32, 3), dtype=torch.uint8, generator=draw)
    targets = torch.randint(0, len(classes), (_IMAGES,), generator=draw)
    _train_ours(spec, recipe, pixels[:256], targets[:256])
    ratios = []
    for _ in range(_TURNS):
        plain = _train_plain(spec, recipe, pixels, targets)
        ours = _train_ours(spec, recipe, pixels, targets)
        ratios.append(plain / ours)
    return statistics.median(ratios)


def _train_plain(
    spec: ModelSpec, recipe: TrainingRecipe, pixels: torch.Tensor, targets: torch.Tensor
) -> float:
    loader = DataLoader(
        TensorDataset(pixels, targets), batch_size=recipe.train_batch_size, shuffle=True
    )
    held_out = DataLoader(
        TensorDataset(pixels[:_HELD_OUT], targets[:_HELD_OUT]), batch_size=recipe.train_batch_size
    )
    began = time.perf_counter()
    module: nn.Module = build_module(spec)
    normalise = Normalise(spec.preprocess)
    optimizer = torch.optim.SGD(
        module.parameters(),
        lr=recipe.learning_rate,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(loader))
    for _ in range(recipe.epochs):
        module.train()
        for images, wanted in loader:
            loss = cross_entropy(
                module(normalise(images)), wanted, label_smoothing=recipe.label_smoothing
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        module.eval()
        with torch.inference_mode():
            for images, wanted in held_out:
                (module(normalise(images)).argmax(dim=1) == wanted).sum().item()
    return time.perf_counter() - began


def _train_ours(
    spec: ModelSpec, recipe: TrainingRecipe, pixels: torch.Tensor, targets: torch.Tensor
) -> float:
    train = CachedImages(pixels, targets, [])
    test = CachedImages(pixels[:_HELD_OUT], targets[:_HELD_OUT], [])
    began = time.perf_counter()
    fit(spec, recipe, train, test, device="cpu", on_epoch=lambda *_: None)
    return time.perf_counter() - began
