"""Judges one member by its content: an image we take, or why not.

Only headers are read: the whole decode, with its limits on memory and time, is the worker's.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image

from app.errors import ItemError

if TYPE_CHECKING:
    from app.settings import Settings

#: JPEG cannot have more; for the other formats it bounds the aspect.
_MAX_SIDE_PX = 65_535
_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
#: Start-of-frame markers: all of C0…CF but DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers without a length: TEM and RST0…RST7, SOI.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
#: Major and compatible brands of the AVIF container that Pillow reads.
_AVIF_BRANDS = (b"avif", b"avis")

#: File name extensions by format; they name the entries of a shard.
EXTENSIONS = {
    "jpeg": "jpg",
    "png": "png",
    "webp": "webp",
    "gif": "gif",
    "bmp": "bmp",
    "tiff": "tif",
    "avif": "avif",
}


class ImageFacts(NamedTuple):
    """What the header of an image tells; ``width`` and ``height`` in pixels, before EXIF."""

    format: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What one image may be at most."""

    max_bytes: int
    max_pixels: int

    @classmethod
    def from_settings(cls, settings: Settings) -> ImageLimits:
        """The limits of the settings."""
        return cls(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels)


def judge_image(content: bytes, limits: ImageLimits) -> ImageFacts:
    """Format and size of an image, by its content alone.

    Raises:
        ItemError: ``empty``, ``unsupported_format``, ``undecodable`` or ``too_large``.
    """
    if not content:
        raise ItemError("the file is empty", code="empty")
    if len(content) > limits.max_bytes:
        raise ItemError(
            f"the file has {len(content)} bytes, at most {limits.max_bytes} are allowed",
            code="too_large",
        )
    found = _format(content)
    if found is None:
        raise ItemError(
            "the content is no JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF", code="unsupported_format"
        )
    size = None
    if found == "jpeg":
        size = _jpeg_size(content)
    elif found == "png":
        size = _png_size(content)
    width, height = size or _pillow_size(content, found)
    if width < 1 or height < 1:
        raise ItemError(f"the image is {width} by {height} pixels", code="undecodable")
    if width * height > limits.max_pixels:
        raise ItemError(
            f"the image has {width} by {height} pixels, at most {limits.max_pixels} are allowed",
            code="too_large",
        )
    if max(width, height) > _MAX_SIDE_PX:
        raise ItemError(
            f"the image is {width} by {height} pixels, a side has at most {_MAX_SIDE_PX}",
            code="too_large",
        )
    return ImageFacts(found, width, height)


def _format(content: bytes) -> str | None:  # noqa: PLR0911  one line per format reads best
    """The format that the first bytes name."""
    if content.startswith(_JPEG):
        return "jpeg"
    if content.startswith(_PNG):
        return "png"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "webp"
    if content.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if content.startswith(b"BM"):
        return "bmp"
    if content.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")):
        return "tiff"
    if content[4:8] == b"ftyp" and any(brand in content[8:64] for brand in _AVIF_BRANDS):
        return "avif"
    return None


def _jpeg_size(content: bytes) -> tuple[int, int] | None:
    """Width and height from the frame header; None where Pillow should have a look."""
    position, end = 2, len(content)
    while position + 9 <= end:
        if content[position] != 0xFF:
            return None
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", content, position + 5)
            return (width, height) if height else None
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None


def _png_size(content: bytes) -> tuple[int, int] | None:
    """Width and height from the image header; None where Pillow should have a look."""
    if len(content) < 33 or content[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def _pillow_size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height as Pillow reads them, without loading a pixel."""
    try:
        with warnings.catch_warnings():
            # Large is judged by our own limit, in the same words for every format.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=[name.upper()]) as image:
                return image.size
    except Image.DecompressionBombError:
        raise ItemError(
            "the image has far more pixels than are allowed", code="too_large"
        ) from None
    except Exception as error:  # hostile bytes make Pillow raise almost anything
        raise ItemError(
            f"the header of this {name} cannot be read: {type(error).__name__}",
            code="undecodable",
        ) from error
