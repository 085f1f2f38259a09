"""Random damage to files, the same for the same random numbers."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Sequence

#: Values that a length, a count or a side is wrong with.
_EXTREMES = (
    *(0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000),
    *(2**24, 2**31 - 1, 2**31, 2**32 - 1),
)
#: Where most of what a file says of itself stands.
_HEADER_BYTES = 96
_MOST_STEPS = 6
#: Splices must not grow a file without end.
_MOST_BYTES = 256 * 1024


def mutate(random_: random.Random, seeds: Sequence[bytes]) -> bytes:
    """One of the files with one to six steps of damage, each small or large."""
    data = bytearray(random_.choice(seeds))
    for _ in range(random_.randint(1, _MOST_STEPS)):
        random_.choice(_STEPS)(random_, data, seeds)
    return bytes(data[:_MOST_BYTES])


def with_right_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold, so that more of it is read."""
    out, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        struct.pack_into(">I", out, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out)


def _place(random_: random.Random, data: bytearray) -> int:
    """A place in the file, every second time in its header."""
    most = len(data)
    if random_.random() < 0.5:
        most = min(most, _HEADER_BYTES)
    return random_.randrange(most + 1)


def _flip_bits(random_: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    for _number in range(random_.randint(1, 4)):
        at = _place(random_, data)
        if at < len(data):
            data[at] ^= 1 << random_.randrange(8)


def _set_bytes(random_: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random_, data)
    fresh = random_.randbytes(random_.randint(1, 8))
    data[at : at + len(fresh)] = fresh


def _set_number(random_: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at, size = _place(random_, data), random_.choice((1, 2, 4, 8))
    value = random_.choice(_EXTREMES) & (1 << 8 * size) - 1
    data[at : at + size] = value.to_bytes(size, random_.choice(("big", "little")))


def _cut(random_: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[_place(random_, data) :]


def _remove(random_: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random_, data)
    del data[at : at + random_.randint(1, 64)]


def _repeat(random_: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    at = _place(random_, data)
    part = bytes(data[at : at + random_.randint(1, 256)])
    data[at:at] = part * random_.randint(1, 16)


def _splice(random_: random.Random, data: bytearray, seeds: Sequence[bytes]) -> None:
    other = random_.choice(seeds)
    start = random_.randrange(len(other) + 1)
    part = other[start : start + random_.randint(1, 4096)]
    at = _place(random_, data)
    data[at : at + random_.choice((0, len(part)))] = part


_STEPS: tuple[Callable[[random.Random, bytearray, Sequence[bytes]], None], ...] = (
    *(_flip_bits, _flip_bits, _set_bytes, _set_number, _set_number),
    *(_cut, _remove, _repeat, _splice),
)
