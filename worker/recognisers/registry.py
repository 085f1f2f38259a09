"""Every architecture by name, and how to build one with or without memory.

torchvision's networks are imported by the functions that need one: the import costs seconds
and half the memory of a worker that only serves a small network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from app.models.architectures import find_architecture, typed_options
from app.models.spec import ModelSpec, PreprocessSpec
from worker.recognisers.baselines import DecisionTree, LinearSvm
from worker.recognisers.cnn import SmallCnn
from worker.recognisers.renet import ReNet
from worker.recognisers.resnet import resnet18, resnet_of_depth
from worker.recognisers.rnn import RowRnn
from worker.recognisers.transformer import PatchTransformer

SMALL_CNN = "small_cnn"
_HALVES = (0.5, 0.5, 0.5)

#: Our own architectures that are built for one size of images: classes, options, pixels.
_SIZED: dict[str, Callable[[int, Any, int], nn.Module]] = {
    SMALL_CNN: SmallCnn,
    "row_rnn": RowRnn,
    "renet": ReNet,
    "patch_transformer": PatchTransformer,
}
#: Those that take any size: classes, options.
_UNSIZED: dict[str, Callable[[int, Any], nn.Module]] = {
    **{f"resnet{depth}": partial(resnet_of_depth, depth) for depth in (20, 32, 44, 56, 110)},
    "resnet18_32px": resnet18,
    "linear_svm": LinearSvm,
    "decision_tree": DecisionTree,
}


def build_module(spec: ModelSpec) -> nn.Module:
    """The untrained network of a spec, its parameters drawn from torch's generator.

    Raises:
        InvalidInputError: ``arch_unknown``, ``arch_options_invalid`` or ``preprocess_invalid``.
    """
    options = typed_options(spec.arch, spec.arch_options)
    if spec.arch in _SIZED:
        return _SIZED[spec.arch](len(spec.classes), options, spec.preprocess.crop_px)
    if spec.arch in _UNSIZED:
        return _UNSIZED[spec.arch](len(spec.classes), options)
    from worker.recognisers.zoo import build_zoo_module

    return build_zoo_module(spec)


def build_empty_module(spec: ModelSpec) -> nn.Module:
    """The network of a spec with parameters that have shapes but no memory.

    Raises:
        InvalidInputError: as :func:`build_module`.
    """
    with _WithoutMemory():
        return build_module(spec)


def default_preprocess(arch: str, input_px: int | None = None) -> PreprocessSpec:
    """The preprocessing an architecture is used with unless its weights say otherwise.

    ``input_px`` is another side of the images than the usual one; the part that is cropped
    off stays in proportion.

    Raises:
        InvalidInputError: ``arch_unknown``.
        ValueError: no preprocessing can have this size.
    """
    known = find_architecture(arch)
    if not known.is_zoo:
        px = known.input_px if input_px is None else input_px
        return PreprocessSpec(px, px, "stretch", "bilinear", _HALVES, _HALVES)
    from worker.recognisers.zoo import zoo_preprocess

    usual = zoo_preprocess(arch)
    if input_px is None:
        return usual
    return replace(
        usual,
        resize_px=round(input_px * usual.resize_px / usual.crop_px),
        crop_px=input_px,
    )


def imagenet_classes() -> tuple[str, ...]:
    """The 1,000 ImageNet classes in the order of torchvision's networks."""
    from worker.recognisers import zoo

    return zoo.imagenet_classes()


class _WithoutMemory(TorchFunctionMode):
    """Sends the factories that parameters are made by to the meta device.

    ``torch.device("meta")`` would send every factory there, also those whose numbers a
    constructor computes with (RegNet's widths, Swin's position indices).
    """

    _FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn})
    #: Draws into a tensor: without numbers they do nothing, and take most of the time. Those of
    #: ``init`` are seen only as a whole, and take their tensor by its name.
    _DRAWS = frozenset(
        {
            torch.Tensor.normal_,
            torch.Tensor.uniform_,
            torch.Tensor.erfinv_,
            nn.init.constant_,
            nn.init.kaiming_uniform_,
            nn.init.normal_,
            nn.init.uniform_,
        }
    )

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._DRAWS:
            drawn = args[0] if args else kwargs["tensor"]
            if drawn.is_meta:
                return drawn
        if func in self._FACTORIES and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
