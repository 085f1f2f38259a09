"""Teaching a network: epochs of cross-entropy and SGD with momentum."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module
from worker.training.checkpoint import TrainingState, begin_state
from worker.training.data import TrainingImages
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


def _nothing(_state: TrainingState) -> None:
    """Neither watch nor stop."""


def fit(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    train: TrainingImages,
    test: TrainingImages,
    *,
    device: str,
    on_epoch: Callable[[EpochReport, TrainingState], None],
    on_begin: Callable[[TrainingState], None] = _nothing,
    before_batch: Callable[[TrainingState], None] = _nothing,
    on_answered: Callable[[int], None] = lambda _: None,
) -> nn.Module:
    """Train the network of ``spec`` from scratch; it comes back in evaluation mode.

    ``on_begin`` gets the state before the first step and may restore a checkpoint into it.
    ``before_batch`` is called before each ImageBatch, ``on_epoch`` as an epoch ends; both may
    save the state, and end the training by raising. ``on_answered`` is that of :func:`evaluate`,
    which follows each epoch. On a CPU the same seed gives the same
    network, however often it was interrupted.

    Raises:
        InvalidInputError: there is nothing to train or test on, or the loss is not finite.
        Exception: whatever one of the callbacks raises.
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
        state = begin_state(
            spec,
            recipe,
            train,
            module=module,
            optimizer=optimizer,
            order=order,
            device=device,
        )
        on_begin(state)
        schedule = _schedule(state, recipe)
        while state.epoch < recipe.epochs:
            learning_rate = recipe.learning_rate * _factor(recipe, state, state.steps - state.batch)
            train_loss, train_accuracy = train_one_epoch(
                state, normalise, train, schedule, recipe=recipe, before_batch=before_batch
            )
            tested = evaluate(module, normalise, test, device=device, on_answered=on_answered)
            seconds = state.seconds
            state.epoch += 1
            state.begin_epoch()
            on_epoch(
                EpochReport(
                    state.epoch,
                    train_loss,
                    train_accuracy,
                    tested.loss,
                    tested.accuracy,
                    learning_rate,
                    seconds,
                ),
                state,
            )
    return module.eval()


def train_one_epoch(
    state: TrainingState,
    normalise: nn.Module,
    images: TrainingImages,
    schedule: LRScheduler,
    *,
    recipe: TrainingRecipe,
    before_batch: Callable[[TrainingState], None],
) -> tuple[float, float]:
    """Show the images that the epoch has not shown yet, each once; its mean loss and accuracy."""
    module, optimizer, device = state.module, state.optimizer, state.device
    module.train()
    # From the state that a checkpoint holds, so that a resumed epoch has the same order.
    state.order.set_state(state.drawn_from)
    order = torch.randperm(len(images), generator=state.order)
    with closing(images.batches(order, recipe.train_batch_size, state.batch)) as batches:
        for pixels, shown in batches:
            before_batch(state)
            targets = shown.to(device, non_blocking=True)
            logits = module(normalise(pixels.to(device, non_blocking=True)))
            loss = cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            # Summed on the device: reading a number each step would make it wait.
            state.loss_sum += loss.detach() * len(targets)
            state.correct += (logits.detach().argmax(dim=1) == targets).sum()
            state.batch += 1
    mean_loss = float(state.loss_sum) / len(images)
    if not math.isfinite(mean_loss):
        raise InvalidInputError(
            "the training loss is not a finite number; try a smaller learning_rate",
            code="training_diverged",
        )
    return mean_loss, int(state.correct) / len(images)


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    normalise: nn.Module,
    images: TrainingImages,
    *,
    device: str,
    on_answered: Callable[[int], None] = lambda _: None,
) -> Evaluation:
    """Answer every image once, in order, without learning from it.

    ``on_answered`` hears after each ImageBatch how many images it held.
    """
    module.eval()
    total_loss = torch.zeros((), device=device)
    predicted: list[Tensor] = []
    with closing(images.batches(torch.arange(len(images)), _EVALUATION_BATCH)) as batches:
        for pixels, targets in batches:
            logits = module(normalise(pixels.to(device, non_blocking=True)))
            total_loss += cross_entropy(logits, targets.to(device), reduction="sum")
            predicted.append(logits.argmax(dim=1).cpu())
            on_answered(len(targets))
    answers = torch.cat(predicted)
    correct = int((answers == images.targets).sum())
    return Evaluation(float(total_loss) / len(images), correct / len(images), answers)


def _schedule(state: TrainingState, recipe: TrainingRecipe) -> LRScheduler:
    """The learning rate after each step; it depends on the number of steps alone."""
    for group in state.optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return LambdaLR(
        state.optimizer,
        lambda step: _factor(recipe, state, step),
        last_epoch=state.steps - 1,
    )


def _factor(recipe: TrainingRecipe, state: TrainingState, step: int) -> float:
    """Constant, or half a cosine down to nothing."""
    if recipe.schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * step / (state.epochs * state.batches_per_epoch))) / 2


def _require_images(spec: ModelSpec, train: TrainingImages, test: TrainingImages) -> None:
    for name, images in (("train", train), ("test", test)):
        if len(images) == 0:
            raise InvalidInputError(f"the {name} split has no image", code="split_empty")
        if int(images.targets.min()) < 0 or int(images.targets.max()) >= len(spec.classes):
            raise InvalidInputError(f"the {name} split has targets that are no class")
