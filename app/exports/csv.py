"""CSV that a spreadsheet opens without running anything: RFC 4180, UTF-8, a header line.

A cell that would be read as a formula gets an apostrophe in front (:mod:`app.spreadsheet`). The
price is that such a text is not what came in: who reads by machine takes JSON Lines or Parquet,
which are raw.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from app.exports.rows import ExportRow, Provenance, Sink, json_text, top
from app.spreadsheet import safe_cell

COLUMNS = (
    "ordinal",
    "custom_id",
    "source",
    "state",
    "class",
    "score",
    "prediction",
    "error_code",
    "error_detail",
    "label",
    "metadata",
    "model",
    "model_version_id",
    "weights_sha256",
    "preprocess_sha256",
)


class CsvWriter:
    """Writes one line per item; ``prediction`` and ``metadata`` are JSON in their cells."""

    def __init__(self, sink: Sink, *provenances: Provenance) -> None:
        self._sink = sink
        self._provenances = [
            (
                safe_cell(each.model),
                each.model_version_id,
                each.weights_sha256,
                each.preprocess_sha256,
            )
            for each in provenances
        ]
        self._write_lines([COLUMNS])

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Append one line per row."""
        self._write_lines([self._cells(row) for row in rows])

    def finish(self) -> None:
        """Nothing stands at the end of a CSV file."""

    def _cells(self, row: ExportRow) -> tuple[object, ...]:
        ordinal, custom_id, source, state, prediction, error, label, metadata, recogniser = row
        best_class, best_score = top(prediction)
        return (
            ordinal,
            safe_cell(custom_id),
            safe_cell(source),
            state,
            safe_cell(best_class),
            best_score,
            # JSON begins with a bracket or a brace: never a formula.
            None
            if prediction is None
            else json_text([{"class": name, "score": score} for name, score in prediction]),
            safe_cell(error["code"]) if error else None,
            safe_cell(error.get("detail")) if error else None,
            safe_cell(label),
            None if metadata is None else json_text(metadata),
            *self._provenances[recogniser],
        )

    def _write_lines(self, lines: Sequence[Sequence[object]]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\r\n").writerows(lines)
        self._sink.write(text.getvalue().encode())
