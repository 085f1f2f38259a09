"""torchvision's classification architectures, by the bare names of their builders."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torchvision import models

from app.errors import DarkroomError, InvalidInputError
from app.models.architectures import check_arch_options
from app.models.spec import ModelSpec, PreprocessSpec

#: Architectures with auxiliary heads, used while training only. Their published weights
#: expect the input to be normalised once more, which is ``transform_input``.
_WITH_AUXILIARY_HEADS = frozenset({"googlenet", "inception_v3"})
#: Published weights of these carry the heads or not.
_PUBLISHED_WITH_HEADS = {"googlenet": False, "inception_v3": True}
_FIXED_INPUT_PX = {"maxvit_t": 224}
#: torchvision's loader waits for an answer without end, so we ask for one first.
_ANSWER_SECONDS = 10


def zoo_names() -> list[str]:
    """Names of torchvision's classification builders, without quantised variants."""
    names: list[str] = models.list_models(module=models)
    return names


def build_zoo_module(spec: ModelSpec) -> nn.Module:
    """The untrained network of a torchvision architecture.

    Raises:
        InvalidInputError: the architecture does not take these options or this input size.
    """
    settings: dict[str, Any] = {
        "num_classes": len(spec.classes),
        **check_arch_options(spec.arch, spec.arch_options),
    }
    if spec.arch in _WITH_AUXILIARY_HEADS:
        settings["init_weights"] = False
    if spec.arch.startswith("vit_"):
        # The position embedding is part of the weights and has one row a patch.
        settings["image_size"] = spec.preprocess.crop_px
    fixed_px = _FIXED_INPUT_PX.get(spec.arch, spec.preprocess.crop_px)
    if spec.preprocess.crop_px != fixed_px:
        raise InvalidInputError(
            f"{spec.arch} takes images of {fixed_px} pixels, not {spec.preprocess.crop_px}",
            code="preprocess_invalid",
        )
    module: nn.Module = models.get_model_builder(spec.arch)(weights=None, **settings)
    return module


def zoo_preprocess(arch: str, which: str = "DEFAULT") -> PreprocessSpec:
    """The preprocessing that a published set of weights was evaluated with."""
    preset = _weights(arch, which).transforms()
    return PreprocessSpec(
        resize_px=preset.resize_size[0],
        crop_px=preset.crop_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def torchvision_spec(arch: str, which: str = "DEFAULT") -> ModelSpec:
    """Everything about a published set of weights but the weights; needs no network.

    Raises:
        InvalidInputError: there is no such architecture or set of weights.
    """
    options: dict[str, Any] = {}
    if arch in _WITH_AUXILIARY_HEADS:
        options = {"aux_logits": _PUBLISHED_WITH_HEADS[arch], "transform_input": True}
    return ModelSpec(
        arch=arch,
        classes=tuple(_weights(arch, which).meta["categories"]),
        preprocess=zoo_preprocess(arch, which),
        arch_options=options,
    )


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 ImageNet classes in the order of torchvision's networks."""
    return tuple(_weights("squeezenet1_0", "DEFAULT").meta["categories"])


def fetch_torchvision_weights(arch: str, which: str = "DEFAULT") -> dict[str, Tensor]:
    """A published set of weights through torchvision's own loader, which keeps a cache.

    Raises:
        InvalidInputError: there is no such set, or what arrived is damaged.
        DarkroomError: ``weights_unreachable``: the network or the publisher is away. Not
            retryable: whoever asked reads at once why, and can ask again or send a file.
    """
    weights = _weights(arch, which)
    try:
        if not (hub_folder() / Path(weights.url).name).exists():
            question = Request(weights.url, method="HEAD")  # noqa: S310  (torchvision's own)
            urlopen(question, timeout=_ANSWER_SECONDS).close()  # noqa: S310
        # weights_only: a checkpoint is data, whoever published it.
        state: dict[str, Tensor] = weights.get_state_dict(
            progress=False, check_hash=True, weights_only=True, map_location="cpu"
        )
    except OSError as error:  # URLError and timeouts are among them
        raise _unreachable(arch, weights, error) from error
    except RuntimeError as error:
        raise InvalidInputError(
            f"what came from {weights.url} is damaged: {error}", code="weights_damaged"
        ) from error
    return _renamed(arch, state)


def _renamed(arch: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state under today's parameter names."""
    if arch.startswith("densenet"):
        # Published when the layers of a dense block were called norm.1, conv.2, …
        pattern = re.compile(r"\.(norm|conv)\.([12])\.")
        return {pattern.sub(r".\1\2.", name): value for name, value in state.items()}
    if arch in _WITH_AUXILIARY_HEADS and not _PUBLISHED_WITH_HEADS[arch]:
        return {name: value for name, value in state.items() if not name.startswith("aux")}
    return state


def _weights(arch: str, which: str) -> Any:
    if arch not in zoo_names():
        raise InvalidInputError(
            f"torchvision has no classification architecture {arch!r}", code="arch_unknown"
        )
    published = models.get_model_weights(arch)
    try:
        return published[which]
    except KeyError:
        names = ", ".join(["DEFAULT", *(weights.name for weights in published)])
        raise InvalidInputError(
            f"torchvision has no weights {which!r} for {arch}; it has {names}",
            code="weights_unknown",
        ) from None


def _unreachable(arch: str, weights: Any, error: Exception) -> DarkroomError:
    reason = getattr(error, "reason", None) or error
    return DarkroomError(
        f"the weights of {arch} could not be fetched from {weights.url} ({reason}). On a machine "
        f"without a network, put that file in {hub_folder()}, or import a safetensors file "
        "instead.",
        code="weights_unreachable",
    )


def hub_folder() -> Path:
    """Where torchvision's loader keeps what it fetched."""
    return Path(torch.hub.get_dir()) / "checkpoints"
