"""How a recogniser is to be trained, as it is asked for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, StringConstraints

from app.api.schemas.base import Arch, Name, Reference, Request
from app.training.augment import AugmentSpec, Policy
from app.training.presets import Preset
from app.training.recipe import (
    ClassWeights,
    Optimizer,
    Precision,
    Sampler,
    Schedule,
    TrainingRecipe,
    TrainLayers,
)

_WORD = r"^[a-z0-9_]{1,64}$"
_Word = Annotated[str, StringConstraints(pattern=_WORD, max_length=64)]
_Number = (
    bool
    | Annotated[int, Field(ge=-(2**31), le=2**31)]
    | Annotated[float, Field(allow_inf_nan=False)]
)
ArchOptions = Annotated[
    dict[_Word, _Number | _Word | Annotated[list[_Number], Field(max_length=64)] | None],
    # Their pattern alone would allow other names beside those that match.
    Field(max_length=64, json_schema_extra={"propertyNames": {"pattern": _WORD}}),
]
_RECIPE = TrainingRecipe()
_AUGMENT = AugmentSpec()


class AugmentOptions(Request):
    """How training images are changed at random; nothing by default."""

    crop_min_area: float = Field(
        _AUGMENT.crop_min_area,
        ge=0.01,
        le=1,
        description="Cut a part of at least this share of the image and stretch it over it.",
    )
    crop_padding_px: int = Field(
        _AUGMENT.crop_padding_px, ge=0, le=256, description="Move by up to so many pixels."
    )
    flip: bool = Field(_AUGMENT.flip, description="Mirror every other image, left to right.")
    policy: Policy = Field(
        _AUGMENT.policy, description="Changes of shape and colour, drawn for each image."
    )
    magnitude: int = Field(
        _AUGMENT.magnitude, ge=0, le=30, description="How strong those of `randaugment` are."
    )
    colour_jitter: float = Field(
        _AUGMENT.colour_jitter,
        ge=0,
        le=1,
        description="Brightness, contrast and saturation by a factor 1 ± this.",
    )
    erase_probability: float = Field(
        _AUGMENT.erase_probability,
        ge=0,
        le=1,
        description="Share of the images that lose a random rectangle.",
    )
    mixup_alpha: float = Field(
        _AUGMENT.mixup_alpha, ge=0, le=100, description="Blend two images by Beta(α, α)."
    )
    cutmix_alpha: float = Field(
        _AUGMENT.cutmix_alpha,
        ge=0,
        le=100,
        description="Put a part of one image into another by Beta(α, α).",
    )


class RecipeOptions(Request):
    """A recipe; see `preset` for recipes that suit an architecture."""

    preset: Preset | None = Field(
        None,
        description="A recipe that suits the architecture. What is given beside it replaces its "
        "own; without one, the defaults here hold.",
    )
    arch: Arch = Field(
        _RECIPE.arch, description="The architecture; that of `start` where one is named."
    )
    arch_options: ArchOptions = Field(
        {}, description="Options of the architecture; `preset` among them names a set."
    )
    input_px: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="Side of the square images; the architecture's own, or `start`'s, where null.",
    )
    start: Reference | None = Field(
        None,
        description="A model version of your own whose weights the training starts from; the head "
        "is drawn anew where the classes differ.",
    )
    train_layers: TrainLayers = Field(
        _RECIPE.train_layers, description="`head` trains the last classifier alone."
    )
    frozen_epochs: int = Field(
        _RECIPE.frozen_epochs,
        ge=0,
        le=10_000,
        description="So many epochs train the head alone before the rest joins in.",
    )
    layer_decay: float = Field(
        _RECIPE.layer_decay,
        gt=0,
        le=1,
        description="Each layer's learning rate is that of the next one times this.",
    )
    optimizer: Optimizer = _RECIPE.optimizer
    learning_rate: float = Field(_RECIPE.learning_rate, gt=0, le=100)
    momentum: float = Field(
        _RECIPE.momentum, ge=0, lt=1, description="Of SGD; the first beta of AdamW."
    )
    beta2: float = Field(_RECIPE.beta2, ge=0, lt=1, description="The second beta of AdamW.")
    weight_decay: float = Field(_RECIPE.weight_decay, ge=0, le=1)
    decay_norms: bool = Field(
        _RECIPE.decay_norms, description="Whether norms and biases decay as well."
    )
    schedule: Schedule = Field(
        _RECIPE.schedule, description="How the learning rate changes, step by step."
    )
    warmup_epochs: float = Field(
        _RECIPE.warmup_epochs, ge=0, le=10_000, description="The rate rises over so many epochs."
    )
    step_epochs: int = Field(
        _RECIPE.step_epochs, ge=1, le=10_000, description="Of `step`: epochs between two falls."
    )
    step_factor: float = Field(
        _RECIPE.step_factor, gt=0, le=1, description="Of `step`: what the rate is multiplied by."
    )
    epochs: int = Field(_RECIPE.epochs, ge=1, le=10_000)
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 24 * 3600,
        description="Ends the training at a step, images once read; the best so far is registered.",
    )
    early_stopping_epochs: int = Field(
        _RECIPE.early_stopping_epochs,
        ge=0,
        le=10_000,
        description="Ends it after so many epochs without progress on the validation split; 0 "
        "never does.",
    )
    train_batch_size: int = Field(
        _RECIPE.train_batch_size,
        ge=0,
        le=65_536,
        description="Images computed at once; 0 takes what suits the worker's device.",
    )
    accumulate_batches: int = Field(
        _RECIPE.accumulate_batches, ge=1, le=1024, description="Batches for one step."
    )
    clip_norm: float = Field(
        _RECIPE.clip_norm, ge=0, le=1e6, description="Longest gradient; 0 cuts none."
    )
    precision: Precision = Field(
        _RECIPE.precision,
        description="`bf16` computes layers in bfloat16, with weights in float32: faster on a GPU.",
    )
    ema_decay: float = Field(
        _RECIPE.ema_decay,
        ge=0,
        lt=1,
        description="Register a moving average of the weights that keeps this share each step; 0 "
        "registers the last weights.",
    )
    label_smoothing: float = Field(_RECIPE.label_smoothing, ge=0, lt=1)
    class_weights: ClassWeights = Field(
        _RECIPE.class_weights, description="`balanced` weighs small classes more in the loss."
    )
    sampler: Sampler = Field(
        _RECIPE.sampler, description="`balanced` shows images of small classes more often."
    )
    augment: AugmentOptions = AugmentOptions()
    seed: int = Field(_RECIPE.seed, ge=0, le=2**63 - 1)

    def given(self) -> dict[str, Any]:
        """The fields of the recipe that the client named."""
        return self.model_dump(exclude_unset=True, exclude={"alias", "preset"})


Alias = Annotated[
    Name | None,
    Field(description="Points at the new version when it is ready; null moves none."),
]


class FinetuneOptions(RecipeOptions):
    """The recipe of a training run; see `preset` for recipes that suit an architecture."""

    alias: Alias = "production"
