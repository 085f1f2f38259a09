"""Each export format, alone: what stands in the file for rows of every kind."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pytest
from pyarrow import parquet

from app.exports.csv import COLUMNS, CsvWriter
from app.exports.jsonl import JsonlWriter
from app.exports.parquet import ROW_GROUP_ROWS, SCHEMA, ParquetWriter
from app.exports.read import page_rows
from app.exports.rows import ExportRow, Provenance
from app.spreadsheet import safe_cell

PROVENANCE = Provenance("pets@3", "mdv_1", "aa", "bb")
CAT = ExportRow(
    0, "a", "in/a.jpg", "succeeded", [["cat", 0.75], ["dog", 0.25]], None, "cat", {"lot": 7}
)
BROKEN = ExportRow(
    1,
    "b",
    "in/b.jpg",
    "failed",
    None,
    {"code": "undecodable", "detail": "no image"},
    None,
    None,
)
UNSURE = ExportRow(2, "c", "in/ü\u2028.jpg", "succeeded", [], None, None, None)
ROWS = [CAT, BROKEN, UNSURE]


def read_csv(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def write_csv(*rows: ExportRow) -> bytes:
    out = io.BytesIO()
    writer = CsvWriter(out, PROVENANCE)
    writer.write(rows)
    writer.finish()
    return out.getvalue()


def test_jsonl_has_one_object_per_row_with_the_model_beside_it() -> None:
    out = io.BytesIO()
    writer = JsonlWriter(out, PROVENANCE)
    writer.write(ROWS[:1])
    writer.write(ROWS[1:])
    writer.finish()
    lines = out.getvalue().decode().split("\n")
    assert lines.pop() == ""
    first, second, third = (json.loads(line) for line in lines)
    assert first == {
        "ordinal": 0,
        "custom_id": "a",
        "source": "in/a.jpg",
        "state": "succeeded",
        "class": "cat",
        "score": 0.75,
        "prediction": [{"class": "cat", "score": 0.75}, {"class": "dog", "score": 0.25}],
        "error": None,
        "label": "cat",
        "metadata": {"lot": 7},
        "model": "pets@3",
        "model_version_id": "mdv_1",
        "weights_sha256": "aa",
        "preprocess_sha256": "bb",
    }
    assert second["prediction"] is None
    assert second["error"] == {"code": "undecodable", "detail": "no image"}
    assert third["prediction"] == []
    assert third["class"] is None
    assert third["source"] == "in/ü\u2028.jpg"


def test_csv_has_a_header_and_the_top_class_beside_the_whole_prediction() -> None:
    content = write_csv(*ROWS)
    assert content.split(b"\r\n")[0].decode() == ",".join(COLUMNS)
    first, second, _ = read_csv(content)
    assert (first["class"], float(first["score"])) == ("cat", 0.75)
    assert json.loads(first["prediction"])[1] == {"class": "dog", "score": 0.25}
    assert json.loads(first["metadata"]) == {"lot": 7}
    assert (second["class"], second["prediction"]) == ("", "")
    assert (second["error_code"], second["error_detail"]) == ("undecodable", "no image")
    assert second["model"] == "pets@3"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_csv_cell_that_a_spreadsheet_would_run_gets_an_apostrophe(start: str) -> None:
    text = f"{start}cmd|' /C calc'!A0"
    row = ExportRow(
        0, text, text, "failed", [[text, 1.0]], {"code": text, "detail": text}, text, None
    )
    (line,) = read_csv(write_csv(row))
    for column in ("custom_id", "source", "class", "error_code", "error_detail", "label"):
        assert line[column] == f"'{text}"


def test_csv_leaves_harmless_text_and_quotes_as_they_are() -> None:
    row = CAT._replace(custom_id='say "hi", a=b\nnext', label="")
    (line,) = read_csv(write_csv(row))
    assert line["custom_id"] == 'say "hi", a=b\nnext'
    assert safe_cell("") == ""
    assert safe_cell(None) is None


def test_parquet_is_typed_and_gives_back_nested_predictions() -> None:
    out = io.BytesIO()
    writer = ParquetWriter(out, PROVENANCE)
    writer.write(ROWS)
    writer.finish()
    table = parquet.read_table(io.BytesIO(out.getvalue()))
    assert table.schema.field("prediction").type == pa.list_(
        pa.field(
            "element",
            pa.struct(
                [pa.field("class", pa.string(), False), pa.field("score", pa.float64(), False)]
            ),
            False,
        )
    )
    assert table.column_names == SCHEMA.names
    first, second, third = table.to_pylist()
    assert first["prediction"] == [{"class": "cat", "score": 0.75}, {"class": "dog", "score": 0.25}]
    assert (first["class"], first["score"]) == ("cat", 0.75)
    assert json.loads(first["metadata"]) == {"lot": 7}
    assert second["prediction"] is None
    assert (second["error_code"], second["error_detail"]) == ("undecodable", "no image")
    assert third["prediction"] == []
    assert {row["model_version_id"] for row in (first, second, third)} == {"mdv_1"}


def test_parquet_closes_a_row_group_when_it_is_full() -> None:
    out = io.BytesIO()
    writer = ParquetWriter(out, Provenance())
    page = [CAT._replace(ordinal=number) for number in range(ROW_GROUP_ROWS // 4)]
    for _ in range(5):
        writer.write(page)
    writer.finish()
    metadata = parquet.ParquetFile(io.BytesIO(out.getvalue())).metadata
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [
        ROW_GROUP_ROWS,
        ROW_GROUP_ROWS // 4,
    ]


def test_parquet_without_rows_is_a_valid_file() -> None:
    out = io.BytesIO()
    ParquetWriter(out, PROVENANCE).finish()
    assert parquet.read_table(io.BytesIO(out.getvalue())).num_rows == 0


def test_page_shrinks_where_predictions_are_long() -> None:
    assert page_rows({}) == 5000
    assert page_rows({"top_k": 5}) == 5000
    assert page_rows({"top_k": 1000}) == 50
    assert page_rows({"top_k": 10**9}) == 1
