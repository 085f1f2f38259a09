"""Recipes that suit an architecture: ``quick``, ``standard``, and ``best`` for who can wait."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from app.models.architectures import Architecture, Family

Preset = Literal["quick", "standard", "best"]

_EPOCHS: Mapping[Preset, int] = {"quick": 10, "standard": 40, "best": 120}
#: A network that has learnt from other images needs fewer.
_STARTED_EPOCHS: Mapping[Preset, int] = {"quick": 3, "standard": 10, "best": 30}

_SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
_ADAMW = {"optimizer": "adamw", "weight_decay": 0.05, "decay_norms": False, "clip_norm": 1.0}


def preset_fields(
    arch: Architecture, preset: Preset, *, started: bool, epochs: int | None = None
) -> dict[str, Any]:
    """The fields of a recipe in which a preset differs from the defaults.

    ``started`` networks come with weights of another training: they get small steps, smaller
    still in layers far from the head, which hold what is common to all images. ``epochs`` are
    others than the preset's own.
    """
    if arch.family == Family.BASELINE:
        return {}
    epochs = epochs or (_STARTED_EPOCHS if started else _EPOCHS)[preset]
    fields: dict[str, Any] = {
        "epochs": epochs,
        "train_batch_size": 0,
        "schedule": "one_cycle" if preset == "quick" and not started else "cosine",
        **_optimizer(arch, started=started),
    }
    if fields["schedule"] == "cosine":
        fields["warmup_epochs"] = min(epochs / 20, 5.0)
    if started:
        fields |= {"layer_decay": 0.75, "frozen_epochs": int(epochs > 2)}
    if preset == "quick":
        return fields
    # Nothing that changes what an image shows: a mirrored letter is none.
    augment: dict[str, Any] = {"crop_padding_px": max(arch.input_px // 16, 1)}
    if preset == "best":
        augment |= {"policy": "trivialaugment", "erase_probability": 0.1, "mixup_alpha": 0.2}
        fields["ema_decay"] = 0.999
    return fields | {"augment": augment}


def _optimizer(arch: Architecture, *, started: bool) -> dict[str, Any]:
    if arch.family == Family.CNN:
        return _SGD | {"learning_rate": 0.01 if started else 0.05}
    rate = 1e-4 if started else (2e-3 if arch.family == Family.RNN else 1e-3)
    return _ADAMW | {"learning_rate": rate}
