"""How a fine-tuning run goes, typed and recorded whole with the version it makes.

Stdlib only: the training loop imports this on machines that have no service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from app.models.architectures import check_arch_options
from app.training.augment import AugmentSpec

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "step", "one_cycle", "constant"]
TrainLayers = Literal["all", "head"]
Precision = Literal["float32", "bf16"]
ClassWeights = Literal["none", "balanced"]
Sampler = Literal["shuffle", "balanced"]

_WORDS = {
    "optimizer": Optimizer,
    "schedule": Schedule,
    "train_layers": TrainLayers,
    "precision": Precision,
    "class_weights": ClassWeights,
    "sampler": Sampler,
}


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """What is trained, from where, by which steps and for how long; 0 turns most things off.

    A step is one change of the weights, by ``train_batch_size`` × ``accumulate_batches``
    images. The learning rate of each step depends on the number of the step alone.

    Raises ValueError, or :class:`app.errors.InvalidInputError` where it is the architecture.
    """

    arch: str = "small_cnn"
    #: Options of the architecture; what is left out is its own default.
    arch_options: Mapping[str, Any] = field(default_factory=dict)
    #: Side of the square images; None is what the architecture, or ``start``, is used with.
    input_px: int | None = None
    #: A model version whose weights the training starts from; None draws them at random.
    start: str | None = None
    #: ``head`` trains the last classifier alone (a linear probe).
    train_layers: TrainLayers = "all"
    #: The body rests for so many epochs, in which the head alone is trained.
    frozen_epochs: int = 0
    #: Each layer's learning rate is that of the one above it times this; the head's is whole.
    layer_decay: float = 1.0
    optimizer: Optimizer = "sgd"
    learning_rate: float = 0.02
    #: Of SGD, or the first beta of AdamW.
    momentum: float = 0.9
    #: The second beta of AdamW.
    beta2: float = 0.999
    weight_decay: float = 5e-4
    #: Whether norms and biases decay as well.
    decay_norms: bool = True
    #: ``cosine`` falls from ``learning_rate`` to nothing, step by step; ``step`` is multiplied by
    #: ``step_factor`` every ``step_epochs``; ``one_cycle`` rises from 1/25 of it and falls to
    #: nearly nothing (arXiv 1708.07120).
    schedule: Schedule = "cosine"
    #: The learning rate rises evenly over so many epochs first; for ``one_cycle`` 0 is 30 % of all.
    warmup_epochs: float = 0.0
    step_epochs: int = 10
    step_factor: float = 0.1
    epochs: int = 30
    #: The training ends at the step that is over after so many seconds of it.
    max_seconds: float | None = None
    #: Ends after so many epochs in which the validation split got no better; 0 never.
    early_stopping_epochs: int = 0
    #: Images computed at once; 0 leaves it to the worker.
    train_batch_size: int = 32
    #: Batches whose gradients are added up for one step.
    accumulate_batches: int = 1
    #: Longer gradients are cut to this length; 0 cuts none.
    clip_norm: float = 0.0
    #: ``bf16`` computes layers in bfloat16; weights and their updates stay float32.
    precision: Precision = "float32"
    #: The version gets a moving average of the weights, which keeps this share each step; 0
    #: takes the weights themselves.
    ema_decay: float = 0.0
    #: Share of the target that is spread over all classes; 0 is plain cross-entropy.
    label_smoothing: float = 0.1
    #: ``balanced`` weighs each class by 1 / its images in the loss.
    class_weights: ClassWeights = "none"
    #: ``balanced`` draws each class equally often, with replacement.
    sampler: Sampler = "shuffle"
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    seed: int = 0

    def __post_init__(self) -> None:
        options = check_arch_options(self.arch, self.arch_options)
        object.__setattr__(self, "arch_options", options)
        for name, words in _WORDS.items():
            if getattr(self, name) not in get_args(words):
                raise ValueError(f"{name} must be one of {', '.join(get_args(words))}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} must be {low}…{high}")
        for name in ("learning_rate", "layer_decay", "step_factor", "max_seconds"):
            if getattr(self, name) == 0:
                raise ValueError(f"{name} must be above 0")
        for name in ("momentum", "beta2", "ema_decay", "label_smoothing"):
            if getattr(self, name) == 1:
                raise ValueError(f"{name} must be below 1")
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs must be fewer than epochs")
        if self.frozen_epochs and self.frozen_epochs >= self.epochs:
            raise ValueError("frozen_epochs must be fewer than epochs; or train the head alone")
        if self.frozen_epochs and self.train_layers == "head":
            raise ValueError("frozen_epochs has no meaning with train_layers=head")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> TrainingRecipe:
        """The recipe that :meth:`as_dict` wrote, by this release or an earlier one.

        Raises TypeError or ValueError on other input.
        """
        fields = dict(body)
        if isinstance(augment := fields.get("augment"), Mapping):
            fields["augment"] = AugmentSpec.from_dict(augment)
        return cls(**fields)


#: Least and most of each number; those that exclude their ends are named where they are checked.
_RANGES: Mapping[str, tuple[float, float]] = {
    "input_px": (8, 2048),
    "frozen_epochs": (0, 10_000),
    "layer_decay": (0, 1),
    "learning_rate": (0, 100),
    "momentum": (0, 1),
    "beta2": (0, 1),
    "weight_decay": (0, 1),
    "warmup_epochs": (0, 10_000),
    "step_epochs": (1, 10_000),
    "step_factor": (0, 1),
    "epochs": (1, 10_000),
    "max_seconds": (0, 30 * 24 * 3600),
    "early_stopping_epochs": (0, 10_000),
    "train_batch_size": (0, 65_536),
    "accumulate_batches": (1, 1024),
    "clip_norm": (0, 1e6),
    "ema_decay": (0, 1),
    "label_smoothing": (0, 1),
    "seed": (0, 2**63 - 1),
}
