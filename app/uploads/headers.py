"""Width and height as an image's header states them, read without an image library.

This runs in processes that hold credentials, on bytes that nobody has looked at: no decoder is
started on them, nothing is allocated by what they say, and every loop is bounded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Size = tuple[int, int]

#: Parts of a file (segments, chunks, entries, boxes) that are looked at before the size is found.
_MAX_PARTS = 10_000
#: Start-of-frame markers: all of C0…CF but DHT (C4), JPG (C8) and DAC (CC).
_FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
#: Markers without a length: a stuffed byte, TEM, RST0…RST7 and SOI.
_BARE_MARKERS = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
#: TIFF 6.0: tags, and the types that a size may have, with their place in an entry.
_IMAGE_WIDTH, _IMAGE_LENGTH = 256, 257
_TIFF_TYPES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}


def read_size(content: bytes, name: str) -> Size | None:
    """Width and height in pixels, before EXIF; None where the header of this format has none."""
    try:
        return _READERS[name](content)
    except (struct.error, IndexError, OverflowError):
        return None


def _jpeg(content: bytes) -> Size | None:
    position = 2
    for _ in range(_MAX_PARTS):
        position = content.find(b"\xff", position)
        if position < 0:
            return None
        marker = content[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
        elif marker in _FRAME_MARKERS:
            height, width = struct.unpack_from(">HH", content, position + 5)
            return width, height
        elif marker in {_END_OF_IMAGE, _START_OF_SCAN}:
            return None
        elif marker in _BARE_MARKERS:
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return None


def _png(content: bytes) -> Size | None:
    position = 8
    for _ in range(_MAX_PARTS):
        length, kind = struct.unpack_from(">I4s", content, position)
        if kind == b"IHDR":
            width, height, _, _ = struct.unpack_from(">II5sI", content, position + 8)
            return width, height
        position += 12 + length
    return None


def _webp(content: bytes) -> Size | None:
    kind, body = content[12:16], content[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _gif(content: bytes) -> Size | None:
    width, height, _, _ = struct.unpack_from("<HH3sB", content, 6)
    return width, height


def _bmp(content: bytes) -> Size | None:
    (header,) = struct.unpack_from("<I", content, 14)
    if header == 12:
        width, height = struct.unpack_from("<HH", content, 18)
    else:
        width, height = struct.unpack_from("<ii", content, 18)
    # A negative height means that the top row comes first.
    return width, abs(height)


def _tiff(content: bytes) -> Size | None:
    order = "<" if content[:2] == b"II" else ">"
    big = 43 in content[2:4]
    (directory,) = struct.unpack_from(order + ("Q" if big else "I"), content, 8 if big else 4)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), content, directory)
    first, entry, value = (8, 20, 12) if big else (2, 12, 8)
    sides: dict[int, int] = {}
    for number in range(min(count, _MAX_PARTS)):
        at = directory + first + number * entry
        if at + entry > len(content):
            break
        tag, kind = struct.unpack_from(order + "HH", content, at)
        if tag in {_IMAGE_WIDTH, _IMAGE_LENGTH} and kind in _TIFF_TYPES:
            (sides[tag],) = struct.unpack_from(order + _TIFF_TYPES[kind], content, at + value)
    if len(sides) < 2:
        return None
    return sides[_IMAGE_WIDTH], sides[_IMAGE_LENGTH]


def _avif(content: bytes) -> Size | None:
    """The largest size that an image property or a track states: previews are smaller."""
    sizes: list[Size] = []
    for kind, start, end in _boxes(content, 0, len(content), _MAX_PARTS):
        if kind == b"ispe":
            sizes.append(struct.unpack_from(">II", content, start + 4))
        elif kind == b"tkhd":
            width, height = struct.unpack_from(">II", content, end - 8)
            sizes.append((width >> 16, height >> 16))
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


#: Boxes of ISO 14496-12 whose content is boxes, and the bytes before those.
_CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0, b"moov": 0, b"trak": 0}


def _boxes(content: bytes, start: int, end: int, most: int) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of the content of each box, those inside of others too."""
    waiting = [(start, end)]
    while waiting:
        at, end = waiting.pop()
        while at + 8 <= end and most:
            most -= 1
            length, kind = struct.unpack_from(">I4s", content, at)
            body = at + 8
            if length == 1:
                (length,) = struct.unpack_from(">Q", content, body)
                body += 8
            after = min(at + length, end) if length else end
            yield kind, body, after
            if kind in _CONTAINERS:
                waiting.append((body + _CONTAINERS[kind], after))
            at = max(after, body)


_READERS: dict[str, Callable[[bytes], Size | None]] = {
    "jpeg": _jpeg,
    "png": _png,
    "webp": _webp,
    "gif": _gif,
    "bmp": _bmp,
    "tiff": _tiff,
    "avif": _avif,
}
