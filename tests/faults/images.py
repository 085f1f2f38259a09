"""Tiny images that carry their identity, and the answer that belongs to each.

The pipeline's side (``fake_forward`` in tests.faults.fakes) sees decoded pixels, the oracle's
side here sees the file's bytes. They share the rule and no code.
"""

from __future__ import annotations

import struct
import zlib

#: Height and width of every image.
SIDE = 8
#: A class for each value of each of four six-bit digits.
CLASSES = tuple(f"d{digit}_{value:02d}" for digit in range(4) for value in range(64))
#: One digit only, for runs where ranking four would cost more than all else.
FEW_CLASSES = CLASSES[:64]
#: Odd, so that different colours have different answers, all of whose digits differ often.
_FACTOR = 0x9E3779
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def make_image(colour: int) -> bytes:
    """A PNG of one 24-bit colour, 75 to 80 bytes."""
    row = b"\x00" + colour.to_bytes(3, "big") * SIDE
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return (
        _SIGNATURE
        + _part(b"IHDR", header)
        + _part(b"IDAT", zlib.compress(row * SIDE, 1))
        + _part(b"IEND", b"")
    )


def colour_of(data: bytes) -> int:
    """The colour of an image that :func:`make_image` made, from its bytes."""
    at = data.index(b"IDAT")
    (length,) = struct.unpack(">I", data[at - 4 : at])
    rows = zlib.decompress(data[at + 4 : at + 4 + length])
    return int.from_bytes(rows[1:4], "big")


def expected_classes(data: bytes) -> list[str]:
    """The classes that must stand first in the prediction of these bytes, in order."""
    mixed = colour_of(data) * _FACTOR % 2**24
    return [f"d{digit}_{mixed >> (18 - 6 * digit) & 63:02d}" for digit in range(4)]


def _part(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
