"""JSON Lines: one object per item, raw values, UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from pydantic_core import to_json

from app.exports.rows import ExportRow, Provenance, Sink, top


class JsonlWriter:
    """Writes objects with the field names of the API's results, and the model beside them."""

    def __init__(self, sink: Sink, *provenances: Provenance) -> None:
        self._sink = sink
        # The same in many lines: encoded once, and joined to each as text.
        self._tails = [b"," + to_json(asdict(each))[1:] + b"\n" for each in provenances]

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Append one line per row."""
        tails = self._tails
        self._sink.write(
            b"".join(to_json(_as_object(row))[:-1] + tails[row.recogniser] for row in rows)
        )

    def finish(self) -> None:
        """Nothing stands at the end of a JSON Lines file."""


def _as_object(row: ExportRow) -> dict[str, object]:
    ordinal, custom_id, source, state, prediction, error, label, metadata, _ = row
    best_class, best_score = top(prediction)
    return {
        "ordinal": ordinal,
        "custom_id": custom_id,
        "source": source,
        "state": state,
        "class": best_class,
        "score": best_score,
        "prediction": None
        if prediction is None
        else [{"class": name, "score": score} for name, score in prediction],
        "error": error,
        "label": label,
        "metadata": metadata,
    }
