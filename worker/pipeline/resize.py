"""From an image at its own size to the pixels a network wants: resized, cropped, perhaps grey.

The geometry is that of torchvision's transforms on PIL images, to the bit. Without antialias it
is that of its transforms on tensors, within one of the 256 levels.
"""

from __future__ import annotations

import math

from PIL import Image

from app.errors import ItemError
from app.models.spec import PreprocessSpec

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
#: Pixels that are floats at a time: what resizing needs besides its result does not grow with
#: the image.
_STRIP_PIXELS = 1 << 20


def shape_pixels(image: Image.Image, spec: PreprocessSpec, max_pixels: int) -> Image.Image:
    """Resize and centre-crop as torchvision's ``Resize`` and ``CenterCrop`` do."""
    width, height = _resized(image, spec, max_pixels)
    if image.size != (width, height):
        if spec.antialias or spec.interpolation == "nearest":
            image = image.resize((width, height), _RESAMPLING[spec.interpolation])
        else:
            image = _resize_reading_points(image, width, height)
    if spec.resize_mode == "letterbox":
        image = _fill_up(image, spec.resize_px)
        width = height = spec.resize_px
    top = round((height - spec.crop_px) / 2.0)
    left = round((width - spec.crop_px) / 2.0)
    image = image.crop((left, top, left + spec.crop_px, top + spec.crop_px))
    return image.convert("L").convert("RGB") if spec.colour == "grey" else image


def _resized(image: Image.Image, spec: PreprocessSpec, max_pixels: int) -> tuple[int, int]:
    """Width and height after resizing."""
    if spec.resize_mode == "stretch":
        return spec.resize_px, spec.resize_px
    shorter, longer = sorted(image.size)
    # Truncated, not rounded: torchvision's own rule for the side that follows the other.
    if spec.resize_mode == "letterbox":
        shorter_px, longer_px = max(int(spec.resize_px * shorter / longer), 1), spec.resize_px
    else:
        shorter_px, longer_px = spec.resize_px, int(spec.resize_px * longer / shorter)
    if shorter_px * longer_px > max_pixels:
        raise ItemError(
            f"an image of {image.width}×{image.height} pixels is too elongated to resize",
            code="too_large",
        )
    return (shorter_px, longer_px) if image.width <= image.height else (longer_px, shorter_px)


def _fill_up(image: Image.Image, side: int) -> Image.Image:
    """The image in the middle of a black square; an odd pixel more lies right or below."""
    square = Image.new("RGB", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square


def _resize_reading_points(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bilinear between the four pixels about each point, as torch's ``interpolate`` does."""
    across, down = image.width / width, image.height / height
    whole = Image.new("RGB", (width, height))
    rows = max(int(_STRIP_PIXELS / (image.width * down)), 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        first = max(math.floor(down * (top + 0.5) - 0.5), 0)
        last = min(math.floor(down * (bottom - 0.5) - 0.5) + 2, image.height)
        strip = image.crop((0, first, image.width, last))
        # As floats: of whole numbers Pillow would cut the fractions off.
        bands = [
            band.convert("F")
            .transform(
                (width, bottom - top),
                Image.Transform.AFFINE,
                (across, 0, 0, 0, down, down * top - first),
                Image.Resampling.BILINEAR,
            )
            .point(lambda value: value * 1 + 0.5)
            .convert("L")
            for band in strip.split()
        ]
        whole.paste(Image.merge("RGB", bands), (0, top))
    return whole
