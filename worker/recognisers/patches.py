"""Images cut into square patches."""

from __future__ import annotations

from torch import Tensor

from app.errors import InvalidInputError


def cut_patches(images: Tensor, patch_px: int) -> Tensor:
    """Patches of images [n, c, h, w] as rows of numbers, [n, h/p, w/p, c·p·p]."""
    n, channels, height, width = images.shape
    down, across = height // patch_px, width // patch_px
    # Not view: the images may lie channels last.
    split = images.reshape(n, channels, down, patch_px, across, patch_px)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(n, down, across, channels * patch_px**2)


def require_whole(input_px: int, patch_px: int, what: str) -> int:
    """How many patches lie side by side in an image.

    Raises:
        InvalidInputError: ``preprocess_invalid``: the last would be a part of one.
    """
    if input_px % patch_px:
        raise InvalidInputError(
            f"{what} {patch_px} does not divide images of {input_px} pixels",
            code="preprocess_invalid",
        )
    return input_px // patch_px
