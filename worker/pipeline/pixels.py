"""From an image file to the pixels a network wants: RGB, uint8, resized and cropped.

Pillow only: this runs in decode children, which import no torch. The geometry is that of
torchvision's transforms on PIL images, to the bit. Transparent pixels are composited on
white; opaque images get plain ``convert("RGB")``. The frame shown is the first.
"""

from __future__ import annotations

import math
from io import BytesIO

from PIL import Image, UnidentifiedImageError, features

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from worker.pipeline.formats import (
    ALLOWED,
    is_cut_short,
    name_unsupported,
    sniff_format,
    webp_size,
)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}

# EXIF 2.3, tag 274: how the stored image must be turned to stand upright.
_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(data: bytes | bytearray, spec: PreprocessSpec, *, max_pixels: int) -> bytes:
    """The pixels of one image file, packed as rows of RGB bytes in ``spec.output_shape``.

    Raises:
        ItemError: ``undecodable``, ``truncated``, ``unsupported_format`` or ``too_large``.
    """
    return shape_pixels(load_rgb(data, max_pixels=max_pixels), spec, max_pixels).tobytes()


def load_rgb(data: bytes | bytearray, *, max_pixels: int) -> Image.Image:
    """The first frame of an image file, upright, in mode RGB, at its own size.

    Raises:
        ItemError: ``undecodable``, ``truncated``, ``unsupported_format`` or ``too_large``.
    """
    name = _require_format(data)
    if name == "WEBP" and (size := webp_size(data)) is not None:
        _require_pixels(size, max_pixels)
    try:
        with Image.open(BytesIO(data), formats=[name]) as image:
            _require_pixels(image.size, max_pixels)
            image.load()
            return _to_rgb(_upright(image))
    except ItemError:
        raise
    except Image.DecompressionBombError:
        raise _too_many_pixels(max_pixels) from None
    except MemoryError:
        raise ItemError(
            "the image needs more memory than a decode process may use", code="too_large"
        ) from None
    except Exception as error:
        # Pillow's plugins raise almost anything on hostile bytes (OSError, SyntaxError,
        # struct.error, KeyError, …). This is the edge of one image, so all of it ends here.
        if "truncated" in str(error).lower() or is_cut_short(data, name):
            raise ItemError(f"the {name} file ends too early", code="truncated") from None
        reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
        raise ItemError(f"the {name} file cannot be decoded: {reason}") from None


def shape_pixels(image: Image.Image, spec: PreprocessSpec, max_pixels: int) -> Image.Image:
    """Resize and centre-crop as torchvision's ``Resize`` and ``CenterCrop`` do."""
    if spec.resize_mode == "stretch":
        width = height = spec.resize_px
    else:
        shorter, longer = sorted(image.size)
        # Truncated, not rounded: torchvision's own rule for the longer side.
        longer_px = int(spec.resize_px * longer / shorter)
        if spec.resize_px * longer_px > max_pixels:
            raise ItemError(
                f"an image of {image.width}×{image.height} pixels is too elongated to resize",
                code="too_large",
            )
        width, height = (
            (spec.resize_px, longer_px)
            if image.width <= image.height
            else (longer_px, spec.resize_px)
        )
    if image.size != (width, height):
        image = image.resize((width, height), _RESAMPLING[spec.interpolation])
    top = round((height - spec.crop_px) / 2.0)
    left = round((width - spec.crop_px) / 2.0)
    return image.crop((left, top, left + spec.crop_px, top + spec.crop_px))


def _require_format(data: bytes | bytearray) -> str:
    if not data:
        raise ItemError("the file is empty")
    name = sniff_format(data)
    if name is None:
        other = name_unsupported(data)
        if other is None:
            raise ItemError("the bytes are not an image")
        raise ItemError(
            f"{other} images are not supported; use one of {', '.join(ALLOWED)}",
            code="unsupported_format",
        )
    if name == "AVIF" and not features.check("avif"):
        raise ItemError("this worker's Pillow cannot read AVIF", code="unsupported_format")
    return name


def _require_pixels(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ItemError("the image has no pixels")
    if width * height > max_pixels:
        raise _too_many_pixels(max_pixels, size)


def _too_many_pixels(max_pixels: int, size: tuple[int, int] | None = None) -> ItemError:
    what = f"{size[0]}×{size[1]} pixels are" if size else "the image is"
    return ItemError(f"{what} more than the limit of {max_pixels} pixels", code="too_large")


def _upright(image: Image.Image) -> Image.Image:
    try:
        # Pillow has turned TIFF files already and dropped the tag from what it reports.
        turn = _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:
        # Damaged metadata does not spoil the picture: it is taken as it is stored.
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode.startswith("I;16"):
        return _from_16_bit(image)
    if image.mode in ("I", "F"):
        return _from_wide(image)
    if image.has_transparency_data:
        colour = image.convert("RGBA")
        white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, colour).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    # The high byte, which is also what Pillow keeps of 16-bit colour. A plain convert("L")
    # would clip everything above 255 to white.
    wide = image if image.mode == "I" else image.convert("I")
    return wide.point(lambda value: value * (1 / 256) + 0).convert("L").convert("RGB")


def _from_wide(image: Image.Image) -> Image.Image:
    """Map 32-bit and float pixels on 0…255.

    They state no range, so the smallest usual full scale that holds them is taken (1 for
    floats, 255, 65,535); anything else is stretched from its least to its greatest value.
    """
    low, high = (float(value) for value in image.getextrema())  # type: ignore[arg-type]
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ItemError("the image holds values that are not finite numbers")
    if low < 0 or high > 65_535:
        offset, scale = low, 255 / (high - low) if high > low else 0.0
    elif image.mode == "F" and high <= 1:
        offset, scale = 0.0, 255.0
    elif high <= 255:
        offset, scale = 0.0, 1.0
    else:
        return _from_16_bit(image.convert("I"))
    stretched = image.convert("F").point(lambda value: value * scale + (-offset * scale))
    return stretched.convert("L").convert("RGB")
