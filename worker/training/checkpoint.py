"""Checkpoints: a training at one moment as a file, from which it goes on to the same numbers.

One safetensors file with a JSON header, never pickle. It holds the network, the momentum of the
optimizer, the states of the random generators, the position, and the sums of the running epoch.
The learning rate follows from the position.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer

from app.errors import DarkroomError
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.training.data import TrainingImages

#: Grows when the content of the file changes; a checkpoint of another format is refused.
_FORMAT = 1
_HEADER = "checkpoint"
_CUDA = "random.cuda"


class CheckpointRefusedError(DarkroomError):
    """The file is no whole checkpoint of this run; an older one, or none, must do."""

    code = "checkpoint_refused"


@dataclass(slots=True)
class TrainingState:
    """All that a training is at one moment: what it has learnt, and where it stands."""

    #: What the run is taught, see :func:`run_digest`.
    run: str
    module: nn.Module
    optimizer: Optimizer
    #: Draws the order of the images, once for each epoch.
    order: torch.Generator
    device: str
    epochs: int
    batches_per_epoch: int
    #: State of ``order`` before it draws the order of the running epoch.
    drawn_from: Tensor
    #: Loss summed over the running epoch's images so far, float32 [].
    loss_sum: Tensor
    #: Images of the running epoch that were answered right so far, int64 [].
    correct: Tensor
    #: Epochs that are over.
    epoch: int = 0
    #: ImageBatches of the running epoch that are over.
    batch: int = 0
    #: Seconds of the running epoch before ``_since``.
    _seconds: float = 0.0
    _since: float = field(default_factory=time.perf_counter)

    @property
    def steps(self) -> int:
        """ImageBatches learnt from since the first epoch began."""
        return self.epoch * self.batches_per_epoch + self.batch

    @property
    def seconds(self) -> float:
        """Seconds spent in the running epoch, those before a resumption too."""
        return self._seconds + time.perf_counter() - self._since

    def begin_epoch(self) -> None:
        """Stand before the first ImageBatch of an epoch, with no sums yet."""
        self.batch = 0
        self.drawn_from = self.order.get_state()
        self.loss_sum = torch.zeros((), device=self.device)
        self.correct = torch.zeros((), dtype=torch.int64, device=self.device)
        self.go_on(0.0)

    def go_on(self, seconds: float) -> None:
        """Count the running epoch's time from now, ``seconds`` of it being over."""
        self._seconds, self._since = seconds, time.perf_counter()


def begin_state(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    train: TrainingImages,
    *,
    module: nn.Module,
    optimizer: Optimizer,
    order: torch.Generator,
    device: str,
) -> TrainingState:
    """The state before the first step; ``module`` is on ``device`` already."""
    return TrainingState(
        run=run_digest(spec, recipe, train),
        module=module,
        optimizer=optimizer,
        order=order,
        device=device,
        epochs=recipe.epochs,
        batches_per_epoch=math.ceil(len(train) / recipe.train_batch_size),
        drawn_from=order.get_state(),
        loss_sum=torch.zeros((), device=device),
        correct=torch.zeros((), dtype=torch.int64, device=device),
    )


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


def save_checkpoint(state: TrainingState, path: Path) -> None:
    """Write the state to a file, which may be one in memory; at least one step is over.

    Raises:
        OSError: there is no room for it.
    """
    header = {
        "format": _FORMAT,
        "run": state.run,
        "epoch": state.epoch,
        "batch": state.batch,
        "seconds": state.seconds,
    }
    tensors = {
        # Cloned, as safetensors refuses tensors that share memory.
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in _tensors(state).items()
    }
    content = save(tensors, metadata={_HEADER: json.dumps(header)})
    del tensors
    path.write_bytes(content)


def restore_checkpoint(state: TrainingState, path: Path) -> None:
    """Put a training that has just begun where the file says it stood.

    Torch's own generators are set too. On another device than the one it was written on,
    training goes on from the same weights, but not to the same bits.

    Raises:
        CheckpointRefusedError: it is damaged or of another run; the state is as it was.
    """
    header, tensors = _read(path)
    epoch, batch, seconds = _position(header, state)
    cuda = tensors.pop(_CUDA, None)
    _compare(_expected(state), tensors)
    _try_generator(tensors["random.order"])
    _try_generator(tensors["random.cpu"])
    # From here on nothing is refused.
    if cuda is not None and torch.device(state.device).type == "cuda":
        torch.cuda.set_rng_state(cuda, state.device)
    torch.set_rng_state(tensors["random.cpu"])
    state.order.set_state(tensors["random.order"])
    state.drawn_from = tensors["random.order"]
    state.module.load_state_dict(
        {name: tensors[f"module.{name}"] for name in state.module.state_dict()}
    )
    for name, parameter in state.module.named_parameters():
        momentum = tensors.get(f"momentum.{name}")
        if momentum is not None:
            state.optimizer.state[parameter]["momentum_buffer"] = momentum.to(state.device)
    state.loss_sum = tensors["sum.loss"].to(state.device)
    state.correct = tensors["sum.correct"].to(state.device)
    state.epoch, state.batch = epoch, batch
    state.go_on(seconds)


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    tensors = {f"module.{name}": tensor for name, tensor in state.module.state_dict().items()}
    for name, parameter in state.module.named_parameters():
        momentum = state.optimizer.state[parameter].get("momentum_buffer")
        if momentum is not None:
            tensors[f"momentum.{name}"] = momentum
    tensors |= {
        "random.order": state.drawn_from,
        "random.cpu": torch.get_rng_state(),
        "sum.loss": state.loss_sum,
        "sum.correct": state.correct,
    }
    if torch.device(state.device).type == "cuda":
        tensors[_CUDA] = torch.cuda.get_rng_state(state.device)
    return tensors


def _expected(state: TrainingState) -> dict[str, Tensor]:
    """Tensors of the names, shapes and dtypes that a checkpoint of this run has on any device."""
    expected = _tensors(state)
    expected.pop(_CUDA, None)
    if any(group["momentum"] for group in state.optimizer.param_groups):
        for name, parameter in state.module.named_parameters():
            expected[f"momentum.{name}"] = parameter
    return expected


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            # Cloned: the tensors are views of a file that is about to be deleted.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError) as error:
        raise CheckpointRefusedError(f"the file is no whole checkpoint: {error}") from error
    if not isinstance(header, dict):
        raise CheckpointRefusedError("the file is no checkpoint: its header is no object")
    return header, tensors


def _position(header: dict[str, Any], state: TrainingState) -> tuple[int, int, float]:
    """Epochs and ImageBatches that were over, and seconds of the running epoch."""
    if header.get("format") != _FORMAT:
        raise CheckpointRefusedError(
            f"the checkpoint has format {header.get('format')!r}, not {_FORMAT}"
        )
    if header.get("run") != state.run:
        raise CheckpointRefusedError(
            "the checkpoint is of another run: its network, recipe or images are not these"
        )
    epoch, batch, seconds = header.get("epoch"), header.get("batch"), header.get("seconds")
    if not (
        type(epoch) is int
        and type(batch) is int
        and isinstance(seconds, (int, float))
        and 0 <= epoch <= state.epochs
        and 0 <= batch < (state.batches_per_epoch if epoch < state.epochs else 1)
        and 0 <= seconds < math.inf
    ):
        raise CheckpointRefusedError(
            f"the checkpoint stands at no place of this run: epoch {epoch!r}, batch {batch!r}, "
            f"{seconds!r} seconds"
        )
    return epoch, batch, seconds


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    if expected.keys() != found.keys():
        names = sorted(expected.keys() ^ found.keys())
        raise CheckpointRefusedError(
            f"the checkpoint lacks tensors or has others: {', '.join(names[:5])}"
        )
    for name, tensor in expected.items():
        other = found[name]
        if (tensor.shape, tensor.dtype) != (other.shape, other.dtype):
            raise CheckpointRefusedError(
                f"{name} is {other.dtype} {list(other.shape)} in the checkpoint, not "
                f"{tensor.dtype} {list(tensor.shape)}"
            )


def _try_generator(state: Tensor) -> None:
    try:
        torch.Generator().set_state(state)
    except RuntimeError as error:
        raise CheckpointRefusedError(f"a random generator refuses its state: {error}") from error
