"""From an image file to the pixels a network wants: RGB, uint8, resized and cropped.

Pillow only: this runs in decode children, which import no torch. Transparent pixels are
composited on white; opaque images get plain ``convert("RGB")``. The frame shown is the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from io import BytesIO

from PIL import Image, ImageMath, UnidentifiedImageError, features

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from worker.pipeline.extent import COUNTED, count_frames, count_scans
from worker.pipeline.formats import (
    ALLOWED,
    has_damaged_data,
    is_cut_short,
    name_unsupported,
    sniff_format,
    webp_size,
)
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.resize import shape_pixels

#: What Pillow says where compressed metadata go over limits of its own.
_UNPACKS_TO_TOO_MUCH = ("Decompressed data too large", "Too much memory used in text chunks")
#: What Pillow says where a codec got no memory (libImaging/Imaging.h: IMAGING_CODEC_MEMORY).
_CODEC_OUT_OF_MEMORY = "decoder error -9"

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

#: Rows by this many pixels are converted at a time: what a conversion needs besides its result
#: does not grow with the image.
_STRIP_PIXELS = 1 << 20
#: Scans that a JPEG may have. A progressive one has about ten.
_MAX_SCANS = 500


def decode_image(data: bytes | bytearray, spec: PreprocessSpec, limits: DecodeLimits) -> bytes:
    """The pixels of one image file, packed as rows of RGB bytes in ``spec.output_shape``.

    Raises:
        ItemError: ``empty``, ``undecodable``, ``truncated``, ``unsupported_format`` or
            ``too_large``.
    """
    return shape_pixels(load_rgb(data, limits), spec, limits.max_pixels).tobytes()


def load_rgb(data: bytes | bytearray, limits: DecodeLimits) -> Image.Image:
    """The first frame of an image file, upright, in mode RGB, at its own size.

    Raises:
        ItemError: ``empty``, ``undecodable``, ``truncated``, ``unsupported_format`` or
            ``too_large``.
    """
    name = _require_format(data)
    try:
        image, turn = _load(data, name, limits)
        return image if turn is None else image.transpose(turn)
    except ItemError:
        raise
    except Image.DecompressionBombError:
        raise ItemError(
            "the image has far more pixels than are allowed", code="too_large"
        ) from None
    except MemoryError:
        raise _needs_memory() from None
    except Exception as error:
        # Pillow's plugins raise almost anything on hostile bytes (OSError, SyntaxError,
        # struct.error, KeyError, …). This is the edge of one image, so all of it ends here.
        raise _as_item_error(error, data, name) from None


def _load(
    data: bytes | bytearray, name: str, limits: DecodeLimits
) -> tuple[Image.Image, Image.Transpose | None]:
    """The first frame in mode RGB as it is stored, and how it is turned to stand upright."""
    if name == "WEBP" and (size := webp_size(data)) is not None:
        _require_size(size, limits)
    if name == "JPEG" and count_scans(data, _MAX_SCANS + 1) > _MAX_SCANS:
        raise ItemError(f"the JPEG has more than {_MAX_SCANS} scans", code="too_large")
    _require_frames(count_frames(data, name, limits.max_frames + 1), limits)
    with Image.open(BytesIO(data), formats=[name]) as image:
        _require_size(image.size, limits)
        if name not in COUNTED:
            _require_frames(getattr(image, "n_frames", 1), limits)
        image.load()
        if name == "PNG" and has_damaged_data(data):
            raise ItemError("a checksum of the PNG file's pixels is wrong")
        # Turned after the conversion, which needs less memory: each pixel counts for itself.
        return _to_rgb(image), _turn_of(image)


def _as_item_error(error: Exception, data: bytes | bytearray, name: str) -> ItemError:
    """What is wrong with an image file that Pillow failed on."""
    text = str(error)
    if text == _CODEC_OUT_OF_MEMORY:
        return _needs_memory()
    if any(words in text for words in _UNPACKS_TO_TOO_MUCH):
        return ItemError(f"the metadata of the {name} file unpack to too much", code="too_large")
    if "truncated" in text.lower() or is_cut_short(data, name):
        return ItemError(f"the {name} file ends too early", code="truncated")
    reason = "its header is damaged" if isinstance(error, UnidentifiedImageError) else error
    return ItemError(f"the {name} file cannot be decoded: {reason}")


def _needs_memory() -> ItemError:
    return ItemError("the image needs more memory than a decode process may use", code="too_large")


def _require_format(data: bytes | bytearray) -> str:
    if not data:
        raise ItemError("the file is empty", code="empty")
    name = sniff_format(data)
    if name is None:
        other = name_unsupported(data)
        what = "the bytes are not an image" if other is None else f"{other} is not supported"
        raise ItemError(f"{what}; use one of {', '.join(ALLOWED)}", code="unsupported_format")
    if name == "AVIF" and not features.check("avif"):
        raise ItemError("this worker's Pillow cannot read AVIF", code="unsupported_format")
    return name


def _require_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    shorter, longer = sorted(size)
    what = f"{size[0]}×{size[1]} pixels"
    if shorter < 1:
        raise ItemError(f"the image has no pixels: it is of {what}")
    if shorter * longer > limits.max_pixels:
        raise ItemError(
            f"{what} are more than the limit of {limits.max_pixels} pixels", code="too_large"
        )
    if longer > shorter * limits.max_aspect:
        raise ItemError(
            f"{what} are more elongated than the limit of {limits.max_aspect} to 1",
            code="too_large",
        )


def _require_frames(count: int, limits: DecodeLimits) -> None:
    if count > limits.max_frames:
        raise ItemError(
            f"the image has more than the limit of {limits.max_frames} frames or pages",
            code="too_large",
        )


def _turn_of(image: Image.Image) -> Image.Transpose | None:
    try:
        # Pillow has turned TIFF files already and dropped the tag from what it reports.
        return _TURNS.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except MemoryError:
        raise
    except Exception:
        # Damaged metadata does not spoil the picture: it is taken as it is stored.
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy() if image.readonly else image
    if image.mode.startswith("I;16"):
        return _in_strips(image, _from_16_bit)
    if image.mode in ("I", "F"):
        return _from_wide(image)
    if image.has_transparency_data:
        return _in_strips(image, _on_white)
    return image.convert("RGB")


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """An image converted a few rows at a time; ``convert`` takes each pixel for itself."""
    rows = max(_STRIP_PIXELS // image.width, 1)
    if rows >= image.height:
        return convert(image)
    whole = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        whole.paste(convert(image.crop((0, top, image.width, bottom))), (0, top))
    return whole


def _on_white(image: Image.Image) -> Image.Image:
    colour = image.convert("RGBA")
    white = Image.new("RGBA", colour.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, colour).convert("RGB")


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
    if not (math.isfinite(low) and math.isfinite(high)) or _holds_nan(image):
        raise ItemError("the image holds values that are not finite numbers")
    if low < 0 or high > 65_535:
        offset, scale = low, 255 / (high - low) if high > low else 0.0
    elif image.mode == "F" and high <= 1:
        offset, scale = 0.0, 255.0
    elif high <= 255:
        offset, scale = 0.0, 1.0
    else:
        return _in_strips(image, lambda strip: _from_16_bit(strip.convert("I")))

    def stretch(strip: Image.Image) -> Image.Image:
        wide = strip.convert("F").point(lambda value: value * scale + (-offset * scale))
        return wide.convert("L").convert("RGB")

    return _in_strips(image, stretch)


def _holds_nan(image: Image.Image) -> bool:
    """Whether a float is no number, which least and greatest values do not tell."""
    if image.mode != "F":
        return False
    unlike_itself = ImageMath.lambda_eval(lambda of: of["image"] != of["image"], image=image)
    return bool(unlike_itself.getextrema() != (0, 0))
