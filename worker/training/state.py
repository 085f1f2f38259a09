"""All that a training is at one moment: what it has learnt, and where it stands."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.training.data import TrainingImages
from worker.training.ema import Ema
from worker.training.ranks import ALONE, Ranks


@dataclass(frozen=True, slots=True)
class Best:
    """The epoch that did best on the validation split, and the weights at its end."""

    epoch: int
    loss: float
    accuracy: float
    #: On the CPU.
    weights: dict[str, Tensor]

    @property
    def merit(self) -> tuple[float, float]:
        """What is more is better."""
        return self.accuracy, -math.inf if math.isnan(self.loss) else -self.loss


@dataclass(slots=True)
class TrainingState:
    """A training at one moment; :mod:`worker.training.checkpoint` writes and reads it."""

    #: What the run is taught, see :func:`run_digest`.
    run: str
    recipe: TrainingRecipe
    module: nn.Module
    optimizer: Optimizer
    ema: Ema | None
    #: Draws the order of the images, once for each epoch.
    order: torch.Generator
    #: Draws how images are changed.
    augmenting: torch.Generator
    device: str
    #: Images of the training split.
    images: int
    #: Images of one batch.
    batch_size: int
    #: State of ``order`` before it draws the order of the running epoch.
    drawn_from: Tensor
    #: Loss summed over the running epoch's images so far, float32 [].
    loss_sum: Tensor
    #: Images of the running epoch that were answered right so far, int64 [].
    correct: Tensor
    clock: Callable[[], float]
    #: The processes that train together.
    ranks: Ranks = ALONE
    #: Parts that each batch is computed in, since a device has no memory for a whole one.
    parts: int = 1
    #: Epochs that are over.
    epoch: int = 0
    #: Steps of the running epoch that are over.
    epoch_steps: int = 0
    best: Best | None = None
    #: Seconds of the epochs that are over.
    past_seconds: float = 0.0
    #: Seconds of the running epoch before ``_since``.
    _seconds: float = 0.0
    _since: float = field(default=0.0)

    @property
    def steps_per_epoch(self) -> int:
        """Changes of the weights in one epoch."""
        return math.ceil(self.images / (self.batch_size * self.recipe.accumulate_batches))

    @property
    def steps(self) -> int:
        """Changes of the weights since the first epoch began."""
        return self.epoch * self.steps_per_epoch + self.epoch_steps

    @property
    def images_seen(self) -> int:
        """Images of the running epoch that were learnt from."""
        seen = self.epoch_steps * self.batch_size * self.recipe.accumulate_batches
        return min(seen, self.images)

    @property
    def seconds(self) -> float:
        """Seconds spent in the running epoch, those before a resumption too."""
        return self._seconds + self.clock() - self._since

    @property
    def answering(self) -> nn.Module:
        """The network that is judged and kept: the moving average where there is one."""
        return self.module if self.ema is None else self.ema.module

    @property
    def time_is_up(self) -> bool:
        """Whether the recipe's ``max_seconds`` have passed."""
        limit = self.recipe.max_seconds
        return limit is not None and self.past_seconds + self.seconds >= limit

    @property
    def stops_early(self) -> bool:
        """Whether the validation split got no better for as long as the recipe waits."""
        patience = self.recipe.early_stopping_epochs
        return patience > 0 and self.best is not None and self.epoch - self.best.epoch >= patience

    def begin_epoch(self) -> None:
        """Stand before the first step of an epoch, with no sums yet."""
        self.epoch_steps = 0
        self.drawn_from = self.order.get_state()
        self.loss_sum = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.go_on(0.0)

    def go_on(self, seconds: float) -> None:
        """Count the running epoch's time from now, ``seconds`` of it being over."""
        self._seconds, self._since = seconds, self.clock()

    def note_result(self, loss: float, accuracy: float) -> None:
        """Keep the weights of the epoch that is over if none before did as well.

        Better is more accurate; of two alike, the one of less loss. A loss that is no number is
        worse than any.
        """
        found = Best(self.epoch, loss, accuracy, {})
        if self.best is None or found.merit > self.best.merit:
            self.best = replace(found, weights=_copied(self.answering))

    def kept_weights(self) -> dict[str, Tensor]:
        """The weights that a training is worth which ends now, on the CPU."""
        return self.best.weights if self.best is not None else _copied(self.answering)


def begin_state(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    train: TrainingImages,
    *,
    module: nn.Module,
    optimizer: Optimizer,
    order: torch.Generator,
    batch_size: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
    ranks: Ranks = ALONE,
) -> TrainingState:
    """The state before the first step; ``module`` is on ``device`` already."""
    state = TrainingState(
        run=run_digest(spec, recipe, train),
        recipe=recipe,
        module=module,
        optimizer=optimizer,
        ema=Ema(module, recipe.ema_decay) if recipe.ema_decay else None,
        order=order,
        augmenting=torch.Generator().manual_seed(recipe.seed),
        device=device,
        images=len(train),
        batch_size=batch_size,
        drawn_from=order.get_state(),
        loss_sum=torch.zeros((), device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
        clock=clock,
        ranks=ranks,
    )
    state.begin_epoch()
    return state


def run_digest(spec: ModelSpec, recipe: TrainingRecipe, train: TrainingImages) -> str:
    """SHA-256 of what decides every step: the network, the recipe, the images and their targets.

    A frozen dataset's images never change, but one that could not be read is left out: the
    others then come in another order.
    """
    facts = {
        "spec": spec.as_dict(),
        "recipe": recipe.as_dict(),
        "targets": hashlib.sha256(train.targets.numpy().tobytes()).hexdigest(),
        "failed": [result.ordinal for result in train.failed],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
