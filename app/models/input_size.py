"""Which sizes of images an architecture can take, told before there is a job or a network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from app.errors import InvalidInputError
from app.models.architectures import check_arch_options, find_architecture

#: torchvision's networks that take one size only, and the least that others leave something of.
_FIXED_PX = {"maxvit_t": 224}
_LEAST_PX = {"alexnet": 63, "inception_v3": 75}
_ZOO_LEAST_PX = 32
_VIT_PATCH = re.compile(r"vit_[a-z]_([0-9]+)")


def check_input_px(arch: str, options: Mapping[str, Any], input_px: int) -> None:
    """Let a side of square images pass that the architecture can take.

    Raises:
        InvalidInputError: ``preprocess_invalid``, ``arch_unknown`` or ``arch_options_invalid``.
    """
    known = find_architecture(arch)
    reason = (
        _zoo_reason(arch, input_px)
        if known.is_zoo
        else _own_reason(arch, check_arch_options(arch, options), input_px)
    )
    if reason is not None:
        raise InvalidInputError(
            f"{arch} takes no images of {input_px} pixels: {reason}", code="preprocess_invalid"
        )


def _zoo_reason(arch: str, input_px: int) -> str | None:
    patch = _VIT_PATCH.fullmatch(arch)
    if patch and input_px % int(patch[1]):
        return f"its patches of {patch[1]} pixels do not divide them"
    if input_px != _FIXED_PX.get(arch, input_px):
        return f"only those of {_FIXED_PX[arch]}"
    least = _LEAST_PX.get(arch, _ZOO_LEAST_PX)
    return f"they must have {least} at least" if input_px < least else None


def _own_reason(arch: str, options: Mapping[str, Any], input_px: int) -> str | None:
    side = input_px
    patches: Mapping[str, list[int]] = {
        "row_rnn": [options.get("step_px", 1)],
        "patch_transformer": [options.get("patch_px", 1)],
        "renet": options.get("patches_px", []),
    }
    for patch_px in patches.get(arch, []):
        if side % patch_px:
            return f"patches or steps of {patch_px} do not divide {side}"
        # Of ReNet's layers each sees what the one before it left.
        side //= patch_px
    if arch == "small_cnn":
        kernel_px, padded = options["kernel_px"], options["padded"]
        for _ in options["channels"]:
            side = (side + (2 * (kernel_px // 2) if padded else 0) - kernel_px + 1) // 2
        if side < 1:
            return "its layers leave nothing of them"
    return None
