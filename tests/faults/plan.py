"""What a test asks of a process before it starts: which faults, where, and what is faked.

Travels as JSON in one environment variable, which nothing in ``app`` or ``worker`` knows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

VARIABLE = "DARKROOM_FAULTS"

#: What happens at a point. ``kill``: SIGKILL to ourselves. ``kill_soon``: the same a moment
#: later, while the next statement is under way. ``stop``: SIGSTOP. ``hang``: this thread never
#: goes on. ``raise``: an error nobody expects. ``lose_answer``: the COMMIT that follows succeeds
#: and its answer is lost.
Act = Literal["kill", "kill_soon", "stop", "hang", "raise", "lose_answer"]


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault of one process: at the ``nth`` time it is at ``point``, ``act`` happens once."""

    point: str
    act: Act = "kill"
    nth: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """All that one process is told; the default tells it nothing but to fake forward."""

    faults: tuple[PlannedFault, ...] = ()
    #: A line is appended here just before a fault happens.
    ledger: str = ""
    #: Colour, as six hex digits, of the image that ends its worker inside forward.
    poison: str = ""
    #: How long forward takes for an ImageBatch, at least.
    forward_seconds: float = 0.0
    #: Takes the pixels from where tests.faults.images put them, without Pillow and children.
    fake_decode: bool = False

    def as_environment(self) -> dict[str, str]:
        """The variable that carries the plan."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Plan:
        """The plan that :meth:`as_environment` wrote; an empty one where there is none."""
        body = json.loads(environment.get(VARIABLE) or "{}")
        faults = tuple(PlannedFault(**fault) for fault in body.pop("faults", ()))
        return cls(faults=faults, **body)


@dataclass(frozen=True, slots=True)
class Happened:
    """A fault that really happened, as its process wrote it down just before."""

    #: Seconds since the epoch.
    at: float
    pid: int
    point: str
    act: str


class Ledger:
    """The file in which processes write down their faults."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    @property
    def size(self) -> int:
        """Bytes so far; what comes later belongs to a later family."""
        return self.path.stat().st_size

    def since(self, offset: int) -> list[Happened]:
        """What happened after the ledger was ``offset`` bytes long."""
        with self.path.open() as file:
            file.seek(offset)
            words = [line.split() for line in file]
        return [Happened(float(at), int(pid), point, act) for at, pid, point, act in words]
