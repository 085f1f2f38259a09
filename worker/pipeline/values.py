"""What moves through the pipeline: plain values that know no database, queue or HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from app.errors import DarkroomError


@dataclass(frozen=True, slots=True)
class ItemRef:
    """Where the bytes of one item lie: a whole object, or ``length`` bytes at ``offset``."""

    ordinal: int
    bucket: str
    key: str
    offset: int | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """How scores become a prediction: ranked, at most ``top_k``, none under ``threshold``."""

    top_k: int = 5
    threshold: float = 0.0
    activation: Literal["softmax", "sigmoid"] = "softmax"


@dataclass(frozen=True, slots=True)
class ItemResult:
    """The end of one item: a ranked (class, score) list, or the error that failed it."""

    ordinal: int
    prediction: list[tuple[str, float]] | None = None
    error: DarkroomError | None = None


@dataclass(slots=True)
class StageSeconds:
    """Seconds each stage was busy in one chunk; stages overlap, so they sum past ``wall``."""

    fetch: float = 0.0
    decode: float = 0.0
    forward: float = 0.0
    wall: float = 0.0


@dataclass(slots=True)
class ChunkOutcome:
    """Results in the order of the items; fewer than the items where the run was stopped.

    ``results`` always covers a prefix of the items: count in = count out, unless stopped.
    """

    results: list[ItemResult]
    stopped: bool = False
    seconds: StageSeconds = field(default_factory=StageSeconds)


class ByteStream(Protocol):
    """An open object body."""

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes, at most ``size``; empty at the end."""
        ...

    def close(self) -> None:
        """Give the connection back."""
        ...


class Store(Protocol):
    """Where bytes come from; ``app.storage`` gives the S3 one, a test a dictionary."""

    def open(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> ByteStream:
        """A stream of the object or of ``length`` bytes at ``offset``.

        Raises:
            ObjectMissingError: there is no such object.
            StorageError: the store failed; trying again may help.
        """
        ...


StopCheck = Callable[[], bool]
ProgressReport = Callable[[int], None]
