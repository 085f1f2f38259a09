"""Parquet: typed columns, the prediction as a list of (class, score), raw values."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from pyarrow import parquet

from app.exports.rows import ExportRow, Provenance, Sink, json_text, top

#: Rows of one row group: large enough to compress and skip well, a few MiB in memory.
ROW_GROUP_ROWS = 65_536

_RANKED = pa.struct(
    [
        pa.field("class", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("custom_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("state", pa.string(), nullable=False),
        pa.field("class", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("prediction", pa.list_(pa.field("element", _RANKED, nullable=False))),
        pa.field("error_code", pa.string()),
        pa.field("error_detail", pa.string()),
        pa.field("label", pa.string()),
        # The client's own keys differ from row to row, so no struct fits them: JSON text.
        pa.field("metadata", pa.string()),
        pa.field("model", pa.string()),
        pa.field("model_version_id", pa.string()),
        pa.field("weights_sha256", pa.string()),
        pa.field("preprocess_sha256", pa.string()),
    ]
)


class ParquetWriter:
    """Gathers pages as Arrow columns and writes them out a row group at a time."""

    def __init__(self, sink: Sink, *provenances: Provenance) -> None:
        self._file = parquet.ParquetWriter(sink, SCHEMA, compression="zstd")
        # By column: each a list of the values by recogniser.
        self._provenances = [
            [each.model for each in provenances],
            [each.model_version_id for each in provenances],
            [each.weights_sha256 for each in provenances],
            [each.preprocess_sha256 for each in provenances],
        ]
        self._pages: list[pa.RecordBatch] = []
        self._gathered = 0

    def write(self, rows: Sequence[ExportRow]) -> None:
        """Append the rows; a full row group goes out."""
        self._pages.append(self._page(rows))
        self._gathered += len(rows)
        if self._gathered >= ROW_GROUP_ROWS:
            self._write_group()

    def finish(self) -> None:
        """Write the last row group and the footer."""
        if self._pages:
            self._write_group()
        self._file.close()

    def _write_group(self) -> None:
        self._file.write_table(
            pa.Table.from_batches(self._pages, SCHEMA), row_group_size=self._gathered
        )
        self._pages.clear()
        self._gathered = 0

    def _page(self, rows: Sequence[ExportRow]) -> pa.RecordBatch:
        best = [top(row.prediction) for row in rows]
        errors = [row.error or {} for row in rows]
        columns: list[object] = [
            [row.ordinal for row in rows],
            [row.custom_id for row in rows],
            [row.source for row in rows],
            [row.state for row in rows],
            [name for name, _ in best],
            [score for _, score in best],
            _predictions(rows),
            [error.get("code") for error in errors],
            [error.get("detail") for error in errors],
            [row.label for row in rows],
            [None if row.metadata is None else json_text(row.metadata) for row in rows],
            *([values[row.recogniser] for row in rows] for values in self._provenances),
        ]
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, SCHEMA, strict=True)
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _predictions(rows: Sequence[ExportRow]) -> pa.Array:
    """All predictions as one list column, built flat: no object per (class, score)."""
    names: list[str] = []
    scores: list[float] = []
    offsets: list[int] = []
    for row in rows:
        offsets.append(len(names))
        for name, score in row.prediction or ():
            names.append(name)
            scores.append(score)
    offsets.append(len(names))
    ranked = pa.StructArray.from_arrays(
        [pa.array(names, pa.string()), pa.array(scores, pa.float64())], fields=list(_RANKED)
    )
    missing = pa.array([row.prediction is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), ranked, type=SCHEMA.field("prediction").type, mask=missing
    )
