"""Teaching a network: epochs of cross-entropy and SGD with momentum."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.optim.optimizer import Optimizer

from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module
from worker.training.data import ImageSet, TrainingStoppedError
from worker.training.seed import seeded

_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class EpochReport:
    """How one epoch went; ``learning_rate`` is the one it began with.

    ``train_loss`` is what training lowers, with the recipe's label smoothing;
    ``test_loss`` is plain cross-entropy.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss, accuracy and the predicted class index of each image, int64 [n]."""

    loss: float
    accuracy: float
    predicted: Tensor


def fit(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    train: ImageSet,
    test: ImageSet,
    *,
    device: str,
    on_epoch: Callable[[EpochReport], None],
    should_stop: Callable[[], bool],
) -> nn.Module:
    """Train the network of ``spec`` from scratch; it comes back in evaluation mode.

    ``on_epoch`` hears of each epoch as it ends, counted from 1; ``should_stop`` is asked
    before each ImageBatch. On a CPU the same seed gives the same network.

    Raises:
        TrainingStoppedError: ``should_stop`` said so.
        InvalidInputError: there is nothing to train or test on, or the loss is not finite.
    """
    _require_images(spec, train, test)
    with seeded(recipe.seed, device) as order:
        module = build_module(spec).to(device)
        normalise = Normalise(spec.preprocess).to(device)
        optimizer = torch.optim.SGD(
            module.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        schedule = _schedule(optimizer, recipe, len(train))
        for epoch in range(1, recipe.epochs + 1):
            started_at = time.perf_counter()
            learning_rate = float(schedule.get_last_lr()[0])
            train_loss, train_accuracy = train_one_epoch(
                module,
                normalise,
                train,
                optimizer,
                schedule,
                recipe=recipe,
                order=order,
                device=device,
                should_stop=should_stop,
            )
            tested = evaluate(module, normalise, test, device=device)
            seconds = time.perf_counter() - started_at
            on_epoch(
                EpochReport(
                    epoch,
                    train_loss,
                    train_accuracy,
                    tested.loss,
                    tested.accuracy,
                    learning_rate,
                    seconds,
                )
            )
    return module.eval()


def train_one_epoch(
    module: nn.Module,
    normalise: nn.Module,
    images: ImageSet,
    optimizer: Optimizer,
    schedule: LRScheduler,
    *,
    recipe: TrainingRecipe,
    order: torch.Generator,
    device: str,
    should_stop: Callable[[], bool],
) -> tuple[float, float]:
    """Show every image once, in an order drawn from ``order``; mean loss and accuracy."""
    module.train()
    total_loss = torch.zeros((), device=device)
    correct = torch.zeros((), dtype=torch.int64, device=device)
    for indices in torch.split(
        torch.randperm(len(images), generator=order), recipe.train_batch_size
    ):
        if should_stop():
            raise TrainingStoppedError("training was told to stop")
        targets = images.targets[indices].to(device)
        logits = module(normalise(images.pixels[indices].to(device)))
        loss = cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        # Summed on the device: reading a number each step would make it wait.
        total_loss += loss.detach() * len(indices)
        correct += (logits.detach().argmax(dim=1) == targets).sum()
    mean_loss = float(total_loss) / len(images)
    if not math.isfinite(mean_loss):
        raise InvalidInputError(
            "the training loss is not a finite number; try a smaller learning_rate",
            code="training_diverged",
        )
    return mean_loss, int(correct) / len(images)


@torch.inference_mode()
def evaluate(
    module: nn.Module, normalise: nn.Module, images: ImageSet, *, device: str
) -> Evaluation:
    """Answer every image once, in order, without learning from it."""
    module.eval()
    total_loss = torch.zeros((), device=device)
    predicted: list[Tensor] = []
    for pixels, targets in zip(
        torch.split(images.pixels, _EVALUATION_BATCH),
        torch.split(images.targets, _EVALUATION_BATCH),
        strict=True,
    ):
        logits = module(normalise(pixels.to(device)))
        total_loss += cross_entropy(logits, targets.to(device), reduction="sum")
        predicted.append(logits.argmax(dim=1).cpu())
    answers = torch.cat(predicted)
    correct = int((answers == images.targets).sum())
    return Evaluation(float(total_loss) / len(images), correct / len(images), answers)


def _schedule(optimizer: Optimizer, recipe: TrainingRecipe, images: int) -> LRScheduler:
    """The learning rate after each step: constant, or half a cosine down to nothing."""
    steps = recipe.epochs * math.ceil(images / recipe.train_batch_size)
    if recipe.schedule == "constant":
        return LambdaLR(optimizer, lambda _: 1.0)
    return LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)


def _require_images(spec: ModelSpec, train: ImageSet, test: ImageSet) -> None:
    for name, images in (("train", train), ("test", test)):
        if len(images) == 0:
            raise InvalidInputError(f"the {name} split has no image", code="split_empty")
        if int(images.targets.min()) < 0 or int(images.targets.max()) >= len(spec.classes):
            raise InvalidInputError(f"the {name} split has targets that are no class")
