"""How a fine-tuning run goes, typed and recorded whole with the version it makes.

Stdlib only: the training loop imports this on machines that have no service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

#: Architectures that can be trained.
TRAINABLE_ARCHES = ("small_cnn",)


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """Cross-entropy and SGD with momentum over a fixed number of epochs."""

    arch: str = "small_cnn"
    epochs: int = 30
    train_batch_size: int = 32
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 5e-4
    #: Share of the target that is spread over all classes; 0 is plain cross-entropy.
    label_smoothing: float = 0.1
    #: ``cosine`` falls from ``learning_rate`` to nothing over the run, step by step.
    schedule: Literal["cosine", "constant"] = "cosine"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arch not in TRAINABLE_ARCHES:
            raise ValueError(f"arch must be one of {', '.join(TRAINABLE_ARCHES)}")
        if not 1 <= self.epochs <= 10_000:
            raise ValueError("epochs must be 1…10000")
        if not 1 <= self.train_batch_size <= 65_536:
            raise ValueError("train_batch_size must be 1…65536")
        if not 0 < self.learning_rate <= 100:
            raise ValueError("learning_rate must be above 0, at most 100")
        if not 0 <= self.momentum < 1:
            raise ValueError("momentum must be at least 0 and below 1")
        if not 0 <= self.weight_decay <= 1:
            raise ValueError("weight_decay must be 0…1")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError("label_smoothing must be at least 0 and below 1")
        if self.schedule not in ("cosine", "constant"):
            raise ValueError("schedule must be cosine or constant")
        if not 0 <= self.seed < 2**63:
            raise ValueError("seed must be 0…2^63-1")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> TrainingRecipe:
        """The recipe that :meth:`as_dict` wrote. Raises TypeError or ValueError on other input."""
        return cls(**body)
