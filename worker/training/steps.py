"""One step of training: gradients of some batches, in parts where memory is short, then a change.

The sum over batches and parts is the gradient of all their images at once (apart from batch
norms, which see what is computed together).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from app.errors import InvalidInputError
from worker.recognisers.layers import training_logits
from worker.training.augment import TrainingBatch
from worker.training.loss import batch_loss, batch_weight
from worker.training.position import MAX_PARTS
from worker.training.state import TrainingState

#: Images of one batch where the recipe leaves it to the worker. A GPU has memory for more, and
#: a batch that is too large for it is computed in parts.
AUTOMATIC_BATCH_SIZE = {"cpu": 32, "cuda": 128}
#: What an auxiliary classifier's loss counts beside the main one's (arXiv 1409.4842).
_AUXILIARY_SHARE = 0.3


def choose_batch_size(asked: int, device: str) -> int:
    """The recipe's own batch size, or a sensible one of the device where it is 0."""
    return asked or AUTOMATIC_BATCH_SIZE.get(torch.device(device).type, 32)


def put_on_device(module: nn.Module, device: str) -> nn.Module:
    """The network where it learns."""
    if torch.device(device).type == "cuda":
        # The memory order that the pixels have anyway, and the one that tensor cores want.
        module = module.to(memory_format=torch.channels_last)
    return module.to(device)


def normalises_over_batch(module: nn.Module) -> bool:
    """Whether the network has a layer that cannot learn from a single image."""
    return any(isinstance(layer, _BatchNorm) and layer.training for layer in module.modules())


def learn_step(
    state: TrainingState,
    batches: Sequence[TrainingBatch],
    normalise: nn.Module,
    class_weights: Tensor | None,
) -> None:
    """Change the weights once, by the gradient of all the batches.

    Where the recipe leaves the batch size to the worker and the device has no memory for one,
    it is computed in twice as many parts from then on.

    Raises:
        InvalidInputError: ``out_of_device_memory``.
    """
    batches = [batch for batch in batches if _can_learn(state, batch)]
    sums = _gradients(state, batches, normalise, class_weights) if batches else None
    if state.ranks.size > 1:
        weights = [batch_weight(batch.targets, class_weights) for batch in batches]
        weight = torch.stack(weights).sum() if weights else None
        sums = state.ranks.add_up(state.module, weight, sums)
    if sums is not None:
        if state.recipe.clip_norm:
            nn.utils.clip_grad_norm_(state.module.parameters(), state.recipe.clip_norm)
        state.optimizer.step()
        # Summed on the device: reading a number each step would make it wait.
        state.loss_sum += sums[0]
        state.correct += sums[1]
    state.epoch_steps += 1
    if state.ema is not None:
        state.ema.update(state.module, state.steps)


def _can_learn(state: TrainingState, batch: TrainingBatch) -> bool:
    """Not from one image where layers normalise over the batch: it would differ by nothing."""
    return len(batch.targets) > 1 or not normalises_over_batch(state.module)


def _gradients(
    state: TrainingState,
    batches: Sequence[TrainingBatch],
    normalise: nn.Module,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Leave the gradient in the parameters; the sum of losses and how many answers were right."""
    while True:
        state.optimizer.zero_grad()
        parts = list(chain.from_iterable(_split(batch, state.parts) for batch in batches))
        try:
            return _accumulate(state, parts, normalise, class_weights)
        except torch.OutOfMemoryError as error:
            largest = max(len(part.targets) for part in parts)
            if state.recipe.train_batch_size or largest < 4 or state.parts >= MAX_PARTS:
                raise InvalidInputError(
                    f"the device has no memory for {largest} images at once; take a smaller "
                    "train_batch_size and more accumulate_batches, smaller images, or "
                    "train_batch_size 0, which finds what fits",
                    code="out_of_device_memory",
                ) from error
        # Outside the handler, whose traceback holds the memory.
        state.parts *= 2
        if torch.device(state.device).type == "cuda":
            torch.cuda.empty_cache()


def _accumulate(
    state: TrainingState,
    parts: Sequence[TrainingBatch],
    normalise: nn.Module,
    class_weights: Tensor | None,
) -> tuple[Tensor, Tensor]:
    recipe = state.recipe
    losses = torch.zeros((), device=state.device)
    correct = torch.zeros((), dtype=torch.int64, device=state.device)
    whole: Tensor | None = None
    if len(parts) > 1:
        whole = torch.stack([batch_weight(part.targets, class_weights) for part in parts]).sum()
    for part in parts:
        with torch.autocast(
            torch.device(state.device).type, torch.bfloat16, enabled=recipe.precision == "bf16"
        ):
            logits, auxiliary = training_logits(state.module, normalise(part.pixels))
        loss = batch_loss(logits.float(), part, recipe, class_weights)
        lowered = loss
        if auxiliary is not None:
            lowered = loss + _AUXILIARY_SHARE * batch_loss(
                auxiliary.float(), part, recipe, class_weights
            )
        if whole is not None:
            lowered = lowered * (batch_weight(part.targets, class_weights) / whole)
        torch.autograd.backward(lowered)
        losses += loss.detach() * len(part.targets)
        correct += (logits.detach().argmax(dim=1) == part.targets).sum()
    return losses, correct


def _split(batch: TrainingBatch, parts: int) -> Sequence[TrainingBatch]:
    """The batch in parts of nearly equal size, none of them a single image."""
    parts = min(parts, len(batch.targets) // 2)
    if parts <= 1:
        return [batch]
    other, mix = batch.other_targets, batch.mix
    return [
        TrainingBatch(
            batch.pixels[rows],
            batch.targets[rows],
            None if other is None else other[rows],
            None if mix is None else mix[rows],
        )
        for rows in torch.arange(len(batch.targets), device=batch.targets.device).tensor_split(
            parts
        )
    ]
