"""Teaching a network, epoch by epoch, as a recipe says."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from torch import Tensor, nn

from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module
from worker.training.augment import Augmenter
from worker.training.data import TrainingImages
from worker.training.evaluate import evaluate
from worker.training.hand_out import hand_out_images, share_state
from worker.training.optim import (
    build_optimizer,
    learning_parameters,
    prepare_layers,
    rate_factor,
    set_rates,
)
from worker.training.order import class_weights, epoch_order
from worker.training.ranks import ALONE, Ranks
from worker.training.seed import seeded
from worker.training.state import TrainingState, begin_state
from worker.training.steps import (
    choose_batch_size,
    learn_step,
    normalises_over_batch,
    put_on_device,
)

HeldOut = Literal["validation", "test"]
EndedBy = Literal["epochs", "early_stopping", "max_seconds"]


@dataclass(frozen=True, slots=True)
class EpochReport:
    """How one epoch went; ``learning_rate`` is the one it began with, the highest of all layers'.

    ``train_loss`` is what training lowers; ``held_out_loss`` is plain cross-entropy on the
    split that ``held_out`` names, of the weights that would be kept.
    """

    epoch: int
    #: Changes of the weights since the training began.
    steps: int
    train_loss: float
    train_accuracy: float
    held_out: HeldOut
    held_out_loss: float
    held_out_accuracy: float
    learning_rate: float
    #: Images that were learnt from in a second, since the epoch began or was gone on with; no two
    #: runs that are otherwise equal have it alike.
    images_per_second: float = field(compare=False)
    #: Of the whole epoch, the held-out split too.
    seconds: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a training has brought: a network in evaluation mode, and how it came about."""

    module: nn.Module
    #: The epoch whose weights these are; the last where no validation split chose another.
    epoch: int
    #: Epochs that were taught, the last perhaps not to its end.
    epochs: int
    ended_by: EndedBy
    seconds: float


def _nothing(_state: TrainingState) -> None:
    """Neither watch nor stop."""


def fit(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    train: TrainingImages,
    test: TrainingImages,
    *,
    validation: TrainingImages | None = None,
    start: Callable[[nn.Module], object] | None = None,
    device: str,
    on_epoch: Callable[[EpochReport, TrainingState], None],
    on_begin: Callable[[TrainingState], None] = _nothing,
    before_step: Callable[[TrainingState], None] = _nothing,
    on_answered: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
    ranks: Ranks = ALONE,
) -> Fitted:
    """Train the network of ``spec``, from random weights or those that ``start`` puts into it.

    With a validation split the epoch that does best on it is kept, without one the last.
    ``on_begin`` gets the state before the first step and may restore a checkpoint into it.
    ``before_step`` is called before each step, ``on_epoch`` as an epoch ends; both may
    save the state, and end the training by raising. ``on_answered`` is that of
    :func:`evaluate`, which follows each epoch. On a CPU the same seed gives the same
    network, however often it was interrupted. Of several ``ranks`` this is the first; on as
    many again the same holds.

    Raises:
        InvalidInputError: there is nothing to train or test on, the recipe and the images do
            not go together, or the loss is not finite.
        Exception: whatever one of the callbacks raises.
    """
    _require_images(spec, train=train, test=test, validation=validation)
    if recipe.early_stopping_epochs and validation is None:
        raise InvalidInputError(
            "early stopping watches the validation split, and there is none",
            code="early_stopping_needs_validation",
        )
    held_out: HeldOut = "test" if validation is None else "validation"
    judged = test if validation is None else validation
    train = hand_out_images(train, ranks)
    with seeded(recipe.seed, device) as order:
        module = build_module(spec)
        if start is not None:
            start(module)
        module = put_on_device(module, device)
        normalise = Normalise(spec.preprocess).to(device)
        state = begin_state(
            spec,
            recipe,
            train,
            module=module,
            optimizer=build_optimizer(module, recipe),
            order=order,
            batch_size=choose_batch_size(recipe.train_batch_size, device),
            device=device,
            clock=clock,
            ranks=ranks,
        )
        on_begin(state)
        share_state(state, ranks)
        weights = weigh_classes(spec, recipe, train, device)
        while ranks.agree((ended_by := _ended_by(state)) is None):
            learning_rate = recipe.learning_rate * rate_factor(
                recipe, state.epoch * state.steps_per_epoch, state.steps_per_epoch
            )
            seen, began = state.images_seen, time.perf_counter()
            train_loss, train_accuracy = train_one_epoch(
                state,
                normalise,
                Augmenter(recipe.augment, spec.preprocess),
                train,
                class_weights=weights,
                before_step=before_step,
            )
            rate = (state.images_seen - seen) / (time.perf_counter() - began)
            steps = state.steps
            found = evaluate(
                state.answering, normalise, judged, device=device, on_answered=on_answered
            )
            seconds = state.seconds
            state.epoch += 1
            state.past_seconds += seconds
            if validation is not None:
                state.note_result(found.loss, found.accuracy)
            state.begin_epoch()
            on_epoch(
                EpochReport(
                    state.epoch,
                    steps,
                    train_loss,
                    train_accuracy,
                    held_out,
                    found.loss,
                    found.accuracy,
                    learning_rate,
                    rate,
                    seconds,
                ),
                state,
            )
    assert ended_by is not None
    module.load_state_dict(state.kept_weights())
    return Fitted(
        module.eval(),
        epoch=state.best.epoch if state.best is not None else state.epoch,
        epochs=state.epoch,
        ended_by=ended_by,
        seconds=state.past_seconds,
    )


def train_one_epoch(
    state: TrainingState,
    normalise: nn.Module,
    augment: Augmenter,
    images: TrainingImages,
    *,
    class_weights: Tensor | None,
    before_step: Callable[[TrainingState], None],
) -> tuple[float, float]:
    """Show the images that the epoch has not shown yet, or as many as there is time for.

    Returns the mean loss and the share of right answers over the epoch's images so far.
    """
    recipe, device = state.recipe, state.device
    prepare_layers(state.module, learning_parameters(state.module, recipe, epoch=state.epoch))
    if normalises_over_batch(state.module) and min(state.batch_size, len(images)) < 2:
        raise InvalidInputError(
            f"{recipe.arch} normalises over a batch: it needs two images or more in one; raise "
            "train_batch_size",
            code="batch_too_small",
        )
    # From the state that a checkpoint holds, so that a resumed epoch has the same order.
    state.order.set_state(state.drawn_from)
    order = epoch_order(images.targets, recipe.sampler, state.order)
    done = state.epoch_steps * recipe.accumulate_batches
    with closing(images.batches(order, state.batch_size, done)) as batches:
        while state.epoch_steps < state.steps_per_epoch:
            before_step(state)
            state.ranks.seed_step(state.augmenting, recipe.seed, state.steps)
            set_rates(state.optimizer, rate_factor(recipe, state.steps, state.steps_per_epoch))
            step = [
                augment(
                    pixels.to(device, non_blocking=True),
                    targets.to(device, non_blocking=True),
                    state.augmenting,
                )
                for pixels, targets in islice(batches, recipe.accumulate_batches)
                if len(targets)
            ]
            learn_step(state, step, normalise, class_weights)
            if recipe.max_seconds is not None and state.ranks.agree(state.time_is_up):
                break
    seen = state.images_seen
    mean_loss = float(state.loss_sum) / seen
    if not math.isfinite(mean_loss):
        raise InvalidInputError(
            "the training loss is not a finite number; try a smaller learning_rate",
            code="training_diverged",
        )
    return mean_loss, int(state.correct) / seen


def _ended_by(state: TrainingState) -> EndedBy | None:
    if state.epoch >= state.recipe.epochs:
        return "epochs"
    if state.stops_early:
        return "early_stopping"
    # Only between epochs, and not before the first step: what comes out has learnt something
    # and was judged.
    if state.time_is_up and state.epoch and not state.epoch_steps:
        return "max_seconds"
    return None


def weigh_classes(
    spec: ModelSpec, recipe: TrainingRecipe, train: TrainingImages, device: str
) -> Tensor | None:
    """What each class weighs in the loss, float32 [classes]; None where all weigh alike."""
    if recipe.class_weights == "none":
        return None
    return class_weights(train.targets, len(spec.classes)).to(device)


def _require_images(spec: ModelSpec, **splits: TrainingImages | None) -> None:
    for name, images in splits.items():
        if images is None:
            continue
        if len(images) == 0:
            raise InvalidInputError(f"the {name} split has no image", code="split_empty")
        if int(images.targets.min()) < 0 or int(images.targets.max()) >= len(spec.classes):
            raise InvalidInputError(f"the {name} split has targets that are no class")
