"""Divides images into train, validation and test, the same way every time.

A sample's split hangs on its bytes and the seed alone, so adding images moves no old one,
and two copies of one image never stand on both sides.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from app.datasets.tables import Split
from app.errors import InvalidInputError

_ORDER = (Split.TRAIN, Split.VALIDATION, Split.TEST)
_SPAN = 2**64
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class SplitRule:
    """Fractions of train, validation and test (they sum to 1), and a seed."""

    fractions: tuple[float, float, float]
    seed: int

    def split_of(self, image_sha256: str) -> Split:
        """The split of an image, from SHA-256 over seed and digest read as a number in [0, 1)."""
        digest = hashlib.sha256(f"{self.seed}:{image_sha256}".encode()).digest()
        point = int.from_bytes(digest[:8], "big") / _SPAN
        for split, bound in zip(_ORDER, accumulate(self.fractions), strict=True):
            if point < bound:
                return split
        # Rounding can leave the last bound a hair under 1: the last split that is not empty.
        return [split for split, size in zip(_ORDER, self.fractions, strict=True) if size > 0][-1]


def split_rule(fractions: Sequence[float], seed: int) -> SplitRule:
    """A rule from what a client sent.

    Raises:
        InvalidInputError: ``fractions_invalid`` or ``seed_invalid``.
    """
    sizes = tuple(float(size) for size in fractions)
    if (
        len(sizes) != 3
        or not all(math.isfinite(size) and size >= 0 for size in sizes)
        or abs(math.fsum(sizes) - 1) > _TOLERANCE
    ):
        raise InvalidInputError(
            f"fractions {list(sizes)[:5]} are not valid: train, validation and test must each be "
            "0 or more and sum to 1",
            code="fractions_invalid",
        )
    if not 0 <= seed < 2**63:
        raise InvalidInputError(f"seed {seed} is not valid: 0…2^63-1", code="seed_invalid")
    return SplitRule((sizes[0], sizes[1], sizes[2]), seed)
