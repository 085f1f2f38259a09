"""Every architecture by name: its family, its options, and the size of image it is made for.

Stdlib only: the API checks what a client names without torch. The networks themselves are in
``worker.recognisers``, which has the same names.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from app.errors import InvalidInputError
from app.models.arch_options import (
    ArchOptions,
    AuxiliaryOptions,
    DecisionTreeOptions,
    LinearSvmOptions,
    NoOptions,
    PatchTransformerOptions,
    ReNetOptions,
    ResNet18Options,
    ResNet32Options,
    RowRnnOptions,
    SmallCnnOptions,
    read_options,
)

#: Among options, stands for a whole set of them; those beside it replace single ones.
PRESET = "preset"
_NAMES_SHOWN = 5


class Family(StrEnum):
    """How a recogniser looks at an image."""

    CNN = "cnn"
    RNN = "rnn"
    TRANSFORMER = "transformer"
    BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class Architecture:
    """One name of the registry."""

    name: str
    family: Family
    #: Side of the square image that it is made for; most take others, too.
    input_px: int
    options: type[ArchOptions] = NoOptions
    #: Whether it is one of torchvision's builders, for which trained weights are published.
    is_zoo: bool = False
    #: Named sets of options.
    presets: Mapping[str, ArchOptions] = field(default_factory=dict)


def architecture_names() -> list[str]:
    """All names, our own first."""
    return list(_ARCHITECTURES)


def find_architecture(name: str) -> Architecture:
    """The architecture of this name.

    Raises:
        InvalidInputError: ``arch_unknown``; the detail lists names that are near.
    """
    found = _ARCHITECTURES.get(name)
    if found is None:
        near = difflib.get_close_matches(name[:80], _ARCHITECTURES, _NAMES_SHOWN)
        hint = f"near it: {', '.join(near)}" if near else f"ours are {', '.join(_OWN)}"
        raise InvalidInputError(
            f"there is no architecture {name[:80]!r}; {hint}; torchvision's classification "
            "builders, such as squeezenet1_0, are known by their names",
            code="arch_unknown",
        )
    return found


def check_arch_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """All options of an architecture as plain JSON values, from some of them.

    ``{"preset": "small"}`` stands for a named set where the architecture has one.

    Raises:
        InvalidInputError: ``arch_unknown``, or ``arch_options_invalid``, which names the field.
    """
    return typed_options(name, options).as_dict()


def typed_options(name: str, options: Mapping[str, Any]) -> ArchOptions:
    """As :func:`check_arch_options`, as the architecture's own dataclass.

    Raises:
        InvalidInputError: as there.
    """
    arch = find_architecture(name)
    body = dict(options)
    try:
        if PRESET in body:
            body = _preset(arch, body.pop(PRESET)).as_dict() | body
        return read_options(arch.options, body)
    except ValueError as error:
        raise InvalidInputError(
            f"options of {name}: {error}", code="arch_options_invalid"
        ) from None


def _preset(arch: Architecture, named: Any) -> ArchOptions:
    found = arch.presets.get(named) if isinstance(named, str) else None
    if found is None:
        raise ValueError(
            f"preset {str(named)[:80]!r} is none; there are {', '.join(arch.presets) or 'none'}"
        )
    return found


_OWN = {
    arch.name: arch
    for arch in (
        Architecture(
            "small_cnn",
            Family.CNN,
            32,
            SmallCnnOptions,
            presets={
                "wide": SmallCnnOptions(
                    channels=(16, 32), hidden=(64,), kernel_px=3, padded=True, batch_norm=True
                )
            },
        ),
        *(
            Architecture(f"resnet{depth}", Family.CNN, 32, ResNet32Options)
            for depth in (20, 32, 44, 56, 110)
        ),
        Architecture("resnet18_32px", Family.CNN, 32, ResNet18Options),
        Architecture(
            "row_rnn",
            Family.RNN,
            32,
            RowRnnOptions,
            presets={"small": RowRnnOptions(hidden=64, step_px=2)},
        ),
        Architecture(
            "renet",
            Family.RNN,
            32,
            ReNetOptions,
            presets={"small": ReNetOptions(hidden=32, patches_px=(4, 2), classifier=(128,))},
        ),
        Architecture(
            "patch_transformer",
            Family.TRANSFORMER,
            32,
            PatchTransformerOptions,
            presets={
                "small": PatchTransformerOptions(
                    patch_px=8, d_model=64, heads=4, layers=3, feed_forward=128
                )
            },
        ),
        Architecture("linear_svm", Family.BASELINE, 32, LinearSvmOptions),
        Architecture("decision_tree", Family.BASELINE, 32, DecisionTreeOptions),
    )
}

#: Builders of torchvision, by the side of the images that their published weights saw.
_ZOO_CNN = {
    224: """
        alexnet convnext_base convnext_large convnext_small convnext_tiny densenet121 densenet161
        densenet169 densenet201 efficientnet_b0 googlenet mnasnet0_5 mnasnet0_75 mnasnet1_0
        mnasnet1_3 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small regnet_x_16gf regnet_x_1_6gf
        regnet_x_32gf regnet_x_3_2gf regnet_x_400mf regnet_x_800mf regnet_x_8gf regnet_y_16gf
        regnet_y_1_6gf regnet_y_32gf regnet_y_3_2gf regnet_y_400mf regnet_y_800mf regnet_y_8gf
        resnet101 resnet152 resnet18 resnet34 resnet50 resnext101_32x8d resnext101_64x4d
        resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
        shufflenet_v2_x2_0 squeezenet1_0 squeezenet1_1 vgg11 vgg11_bn vgg13 vgg13_bn vgg16
        vgg16_bn vgg19 vgg19_bn wide_resnet101_2 wide_resnet50_2
        """,
    240: "efficientnet_b1",
    288: "efficientnet_b2",
    299: "inception_v3",
    300: "efficientnet_b3",
    380: "efficientnet_b4",
    384: "efficientnet_v2_s regnet_y_128gf",
    456: "efficientnet_b5",
    480: "efficientnet_v2_l efficientnet_v2_m",
    528: "efficientnet_b6",
    600: "efficientnet_b7",
}
_ZOO_TRANSFORMER = {
    224: "maxvit_t swin_b swin_s swin_t vit_b_16 vit_b_32 vit_l_16 vit_l_32",
    256: "swin_v2_b swin_v2_s swin_v2_t",
    518: "vit_h_14",
}
_ZOO_OPTIONS = {"googlenet": AuxiliaryOptions, "inception_v3": AuxiliaryOptions}

_ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    _OWN
    | {
        name: Architecture(name, family, px, _ZOO_OPTIONS.get(name, NoOptions), is_zoo=True)
        for family, names_by_px in (
            (Family.CNN, _ZOO_CNN),
            (Family.TRANSFORMER, _ZOO_TRANSFORMER),
        )
        for px, names in names_by_px.items()
        for name in names.split()
    }
)
