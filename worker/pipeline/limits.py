"""What one image may cost at most before it is refused."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """Limits of one image: of what its header says, and of what decoding it takes.

    ``max_aspect`` is the longer side by the shorter. ``memory_bytes`` is what a decode process may
    use beyond what it needs to start, ``cpu_seconds`` its processor time for one image,
    ``item_seconds`` the time by the clock that its parent waits for one.
    """

    max_pixels: int = 40_000_000
    max_aspect: int = 1000
    max_frames: int = 1000
    memory_bytes: int = 1024 * 1024 * 1024
    cpu_seconds: float = 8.0
    item_seconds: float = 30.0

    def as_json(self) -> str:
        """The limits as one word of a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DecodeLimits:
        """What :meth:`as_json` wrote."""
        return cls(**json.loads(text))
