"""How much an image file asks to be done: its frames and scans, counted before any is decoded."""

from __future__ import annotations

import re
import struct

#: Formats whose frames :func:`count_frames` counts; the headers of the others tell them.
COUNTED = frozenset({"GIF", "TIFF"})
#: The next marker of a JPEG's entropy-coded data: neither a stuffed byte, a restart nor a fill.
_NEXT_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
#: Markers without a length: TEM, RST0…RST7 and SOI.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


def count_frames(data: bytes | bytearray, name: str, stop_at: int) -> int:
    """Frames of a GIF or pages of a TIFF, or ``stop_at`` where there are at least so many.

    1 for any other format.
    """
    if name == "GIF":
        return _gif_frames(data, stop_at)
    return _tiff_pages(data, stop_at) if name == "TIFF" else 1


def count_scans(data: bytes | bytearray, stop_at: int) -> int:
    """Scans of a JPEG, or ``stop_at`` where there are at least so many.

    Each scan goes over the whole image once more, however few bytes it has.
    """
    # Rarely more than a dozen, and counted in no time: what follows the image may look like scans.
    if data.count(b"\xff\xda") < stop_at:
        return 1
    scans, at = 0, 2
    while scans < stop_at and (found := _NEXT_MARKER.search(data, at)):
        at = found.end()
        marker = data[at - 1]
        if marker == _END_OF_IMAGE:
            break
        scans += marker == _START_OF_SCAN
        if marker not in _BARE_MARKERS:
            at += int.from_bytes(data[at : at + 2], "big")
    return scans


def _gif_frames(data: bytes | bytearray, stop_at: int) -> int:
    """Frames by the blocks of GIF89a, section 12 and following."""
    frames, at, end = 0, 13, len(data)
    if end > 10 and data[10] & 0x80:
        at += 3 << (data[10] & 7) + 1
    while at < end and frames < stop_at:
        kind = data[at]
        if kind == 0x3B:  # trailer
            break
        if kind == 0x21:  # extension: a label, then blocks
            at = _after_blocks(data, at + 2)
        elif kind == 0x2C:  # image: a descriptor, colours, a code size, then blocks
            frames += 1
            colours = 3 << (data[at + 9] & 7) + 1 if at + 9 < end and data[at + 9] & 0x80 else 0
            at = _after_blocks(data, at + 10 + colours + 1)
        else:
            at += 1
    return frames


def _after_blocks(data: bytes | bytearray, at: int) -> int:
    """Where a GIF's chain of blocks, each after a byte with its length, has ended."""
    end = len(data)
    while at < end and data[at]:
        at += data[at] + 1
    return at + 1


def _tiff_pages(data: bytes | bytearray, stop_at: int) -> int:
    """Pages by the chain of directories, which ends where it comes back to one."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in {b"+\x00", b"\x00+"}
    first, pointer, count, entry = (8, "Q", "Q", 20) if big else (4, "I", "H", 12)
    seen: set[int] = set()
    at = first
    try:
        while len(seen) < stop_at:
            (directory,) = struct.unpack_from(order + pointer, data, at)
            if not directory or directory in seen:
                break
            (entries,) = struct.unpack_from(order + count, data, directory)
            seen.add(directory)
            at = directory + struct.calcsize(order + count) + entries * entry
    except (struct.error, OverflowError):
        pass
    return max(len(seen), 1)
