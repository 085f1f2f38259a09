"""Judges one member by its content: an image we take, or why not.

Only the header is read, by ourselves (``headers.py``): the decode, within walls, is the worker's,
and may still refuse what is let through here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from app.errors import ItemError
from app.uploads.headers import read_size

if TYPE_CHECKING:
    from app.settings import Settings

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
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
    max_aspect: int = 1000

    @classmethod
    def from_settings(cls, settings: Settings) -> ImageLimits:
        """The limits of the settings."""
        return cls(
            max_bytes=settings.max_image_bytes,
            max_pixels=settings.max_image_pixels,
            max_aspect=settings.max_image_aspect,
        )


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
    size = read_size(content, found)
    if size is None:
        raise ItemError(f"the header of this {found} cannot be read", code="undecodable")
    width, height = size
    shorter, longer = sorted(size)
    if shorter < 1:
        raise ItemError(f"the image is {width} by {height} pixels", code="undecodable")
    if shorter * longer > limits.max_pixels:
        raise ItemError(
            f"the image has {width} by {height} pixels, at most {limits.max_pixels} are allowed",
            code="too_large",
        )
    if longer > shorter * limits.max_aspect:
        raise ItemError(
            f"the image is {width} by {height} pixels, "
            f"more elongated than {limits.max_aspect} to 1",
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
    return "avif" if _is_avif(content) else None


def _is_avif(content: bytes) -> bool:
    """Whether an ISO base media file says that it is AVIF, first or among what it is also."""
    if content[4:8] != b"ftyp":
        return False
    end = min(int.from_bytes(content[:4], "big"), 256)
    brands = [content[8:12], *(content[at : at + 4] for at in range(16, end, 4))]
    return any(brand in _AVIF_BRANDS for brand in brands)
