"""Every architecture by name, and how to build one with or without memory.

torchvision's networks are imported by the functions that need one: the import costs seconds
and half the memory of a worker that only serves a small network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from app.errors import InvalidInputError
from app.models.spec import ModelSpec, PreprocessSpec
from worker.recognisers.cnn import INPUT_PX, SmallCnn

SMALL_CNN = "small_cnn"
_HALVES = (0.5, 0.5, 0.5)


def build_module(spec: ModelSpec) -> nn.Module:
    """The untrained network of a spec, its parameters drawn from torch's generator.

    Raises:
        InvalidInputError: ``arch_unknown``, ``arch_options_invalid`` or ``preprocess_invalid``.
    """
    if spec.arch == SMALL_CNN:
        return _build_small_cnn(spec)
    from worker.recognisers.zoo import build_zoo_module, zoo_names

    if spec.arch not in zoo_names():
        raise InvalidInputError(
            f"there is no architecture {spec.arch!r}; take {SMALL_CNN} or one of torchvision's "
            "classification builders, such as squeezenet1_0",
            code="arch_unknown",
        )
    return build_zoo_module(spec)


def build_empty_module(spec: ModelSpec) -> nn.Module:
    """The network of a spec with parameters that have shapes but no memory.

    Raises:
        InvalidInputError: as :func:`build_module`.
    """
    with _WithoutMemory():
        return build_module(spec)


def default_preprocess(arch: str) -> PreprocessSpec:
    """The preprocessing an architecture is used with unless its weights say otherwise."""
    if arch == SMALL_CNN:
        return PreprocessSpec(INPUT_PX, INPUT_PX, "stretch", "bilinear", _HALVES, _HALVES)
    from worker.recognisers.zoo import zoo_preprocess

    return zoo_preprocess(arch)


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 ImageNet classes in the order of torchvision's networks."""
    from worker.recognisers import zoo

    return zoo.imagenet_classes()


def _build_small_cnn(spec: ModelSpec) -> nn.Module:
    if spec.arch_options:
        raise InvalidInputError(f"{SMALL_CNN} takes no options", code="arch_options_invalid")
    if spec.preprocess.crop_px != INPUT_PX:
        raise InvalidInputError(
            f"{SMALL_CNN} takes images of {INPUT_PX} pixels, not {spec.preprocess.crop_px}",
            code="preprocess_invalid",
        )
    return SmallCnn(len(spec.classes))


class _WithoutMemory(TorchFunctionMode):
    """Sends the factories that parameters are made by to the meta device.

    ``torch.device("meta")`` would send every factory there, also those whose numbers a
    constructor computes with (RegNet's widths, Swin's position indices).
    """

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
