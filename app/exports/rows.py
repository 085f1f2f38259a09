"""What every export holds: one row per item, and the recognisers that gave the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from pydantic_core import to_json


class ExportRow(NamedTuple):
    """How one item ended, as the database has it; fields in the order of the query."""

    ordinal: int
    custom_id: str
    source: str
    state: str
    #: Ranked [class, score] pairs.
    prediction: list[list[Any]] | None
    #: Code and detail.
    error: dict[str, Any] | None
    label: str | None
    metadata: dict[str, Any] | None
    #: Which of the writer's provenances is the row's own: in merged exports they differ.
    recogniser: int = 0


@dataclass(frozen=True, slots=True)
class Provenance:
    """The recogniser that gave the predictions; all empty for jobs that recognise nothing."""

    #: ``name@number``.
    model: str | None = None
    model_version_id: str | None = None
    weights_sha256: str | None = None
    preprocess_sha256: str | None = None


class Sink(Protocol):
    """Where a writer puts its bytes."""

    def write(self, data: bytes, /) -> Any:
        """Take all of ``data``."""
        ...


class Writer(Protocol):
    """One file format. Rows come in input order, a page at a time, and are never held whole.

    Made with a sink and the provenances that rows name by their number.
    """

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Append the rows."""
        ...

    def finish(self) -> None:
        """Write what the format needs at its end; the sink stays open."""
        ...


def top(prediction: list[list[Any]] | None) -> tuple[str | None, float | None]:
    """The first class and its score; nothing where the prediction is missing or empty."""
    return (prediction[0][0], prediction[0][1]) if prediction else (None, None)


def json_text(value: object) -> str:
    """The value as compact JSON."""
    return to_json(value).decode()
