"""Lists made to harm: a labels.csv in an archive, and manifests as JSONL and CSV."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.security.archive_cases import IMAGE, NEIGHBOURS, good_tar
from tests.security.confined import run_confined
from tests.security.intake import list_manifest, take_file
from tests.security.raw_archives import tar_member

HEADER = b"filename,label\n"


def take_labels(labels: bytes, tmp_path: Path) -> dict[str, Any]:
    """What becomes of an archive of 255 good images with these labels, within its walls."""
    path = tmp_path / "archive"
    path.write_bytes(good_tar(tar_member(b"labels.csv", labels)))
    outcome: dict[str, Any] = run_confined(take_file, str(path)).result
    path.unlink()
    return outcome


HUGE = {
    "one line of 100 MB": HEADER + b"x" * 100_000_000,
    "one line of 100 MB, three bytes a character": HEADER + "\u20ac".encode() * 33_000_000,
    "one row of a million lines": HEADER + b'"' + b'\n","' * 2_000_000,
    "one row of ten million cells": HEADER + b"," * 10_000_000,
    "a quote that never ends": HEADER + b'"' + b"x\n" * 2_000_000,
    "a million unknown members": HEADER + b"".join(b"%07d.jpg,cat\n" % n for n in range(10**6)),
}


@pytest.mark.parametrize("name", HUGE)
def test_labels_without_end_cost_little_and_their_lines_are_told(name: str, tmp_path: Path) -> None:
    outcome = take_labels(HUGE[name], tmp_path)
    assert sorted(outcome["packed"]) == NEIGHBOURS
    assert outcome["label_fault_count"] >= 1
    assert len(outcome["label_faults"]) <= 100
    assert all(len(fault) < 500 for fault in outcome["label_faults"])


@pytest.mark.parametrize("line", [b"\n", b"\r", b",\r\n"])
def test_labels_of_more_lines_than_members_can_be_are_refused(line: bytes, tmp_path: Path) -> None:
    assert take_labels(HEADER + line * 30_000_000, tmp_path)["refused"] == "labels_invalid"


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    assert take_labels(b"x" * 50_000_000, tmp_path)["refused"] == "labels_invalid"


def test_labels_of_more_bytes_than_are_read_are_refused(tmp_path: Path) -> None:
    outcome = take_labels(HEADER + bytes(129 * 1024 * 1024), tmp_path)
    assert outcome["refused"] == "archive_too_large"


@pytest.mark.parametrize(
    ("labels", "faults"),
    [
        (b"\xef\xbb\xbf" + HEADER + b"good/000.jpg,cat\n", 0),
        (HEADER + b"good/000.jpg,=HYPERLINK(1)\ngood/001.jpg,+1\ngood/002.jpg,@x\n", 0),
        (HEADER + b"good/000.jpg,a\x00b\n", 1),
        (HEADER + b"good/000.jpg\x00,cat\n", 1),
        (HEADER + b"good/000.jpg,\x1b[2J\n", 1),
        (HEADER + b"good/000.jpg," + b"x" * 201 + b"\n", 1),
        (HEADER + b"../good/000.jpg,cat\n/etc/passwd,cat\n", 1),
        (HEADER + b"good/000.jpg,cat\n" * 3 + b"good/000.jpg,dog\n", 1),
    ],
)
def test_odd_lines_of_labels_are_taken_or_told(labels: bytes, faults: int, tmp_path: Path) -> None:
    outcome = take_labels(labels, tmp_path)
    assert sorted(outcome["packed"]) == NEIGHBOURS
    assert outcome["label_fault_count"] == faults


@pytest.mark.parametrize(
    "labels",
    [
        b"\xff\xfe" + "filename,label\n".encode("utf-16-le"),
        b"\x00" * 100,
        gzip.compress(HEADER, mtime=0),
    ],
)
def test_labels_that_are_no_text_are_refused(labels: bytes, tmp_path: Path) -> None:
    assert take_labels(labels, tmp_path)["refused"] == "labels_invalid"


def faults_of(content: bytes, key: str, tmp_path: Path) -> list[tuple[int, str | None]]:
    path = tmp_path / "manifest"
    path.write_bytes(content)
    lines: list[tuple[int, str | None]] = run_confined(list_manifest, str(path), key).result
    path.unlink()
    assert all(len(fault) < 1500 for _, fault in lines if fault)
    return lines


GOOD_LINE = b'{"key": "a.jpg"}\n'


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b'{"key": "' + b"a" * 100_000_000 + b'"}', "longer than"),
        (b'{"key": "a", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001, "JSON"),
        (b"[" * 500_000, "JSON"),
        (b'{"key": "a", "key": "b"}', "twice"),
        (b'{"key": "a", "metadata": {"b": 1, "b": 2}}', "twice"),
        (b'{"key": "a", "metadata": {"b": NaN}}', "JSON"),
        (b'{"key": "a", "metadata": {"b": 1e400}}', "JSON"),
        (b'{"key": "a", "metadata": {"b": ' + b"9" * 100_000 + b"}}", "JSON"),
        (b'{"key": "a", "metadata": {"b": "\\u0000"}}', "NUL"),
        (b'{"key": "a", "metadata": {"b": "\\ud800"}}', "JSON"),
        (b'{"key": "a", "metadata": {"b": "' + b"x" * 9000 + b'"}}', "bytes"),
        (b'{"key": "a", "offset": -1, "length": 5}', "offset"),
        (b'{"key": "a", "offset": 0, "length": -5}', "length"),
        (b'{"key": "a", "offset": 1e3, "length": 5}', "offset"),
        (b'{"key": "a", "offset": true, "length": 5}', "offset"),
        (b'{"key": "a", "offset": 9223372036854775808, "length": 5}', "offset"),
        (b'{"key": "a", "offset": 9223372036854775807, "length": 1}', "together"),
        (b'{"key": "a", "offset": 5}', "together"),
        (b'{"key": "a\\u0000"}', "NUL"),
        (b'{"key": "\xff\xfe"}', "UTF-8"),
        (b'{"key": "s3://../etc/passwd"}', "bucket"),
        (b'{"key": "http://127.0.0.1/x"}', ""),
        (b'{"key": "a", "' + b"n" * 100_000 + b'": 1}', "unknown"),
        (b"null", "JSON"),
        (b'"a"', "JSON"),
    ],
)
def test_a_hostile_line_of_jsonl_is_told_and_the_next_is_read(
    line: bytes, word: str, tmp_path: Path
) -> None:
    lines = faults_of(GOOD_LINE + line + b"\n" + GOOD_LINE, "m.jsonl", tmp_path)
    assert [number for number, _ in lines] == [1, 2, 3]
    assert lines[0][1] is None
    assert lines[2][1] is None
    if word:
        assert word in str(lines[1][1])


@pytest.mark.parametrize(
    ("row", "word"),
    [
        (b"a" * 100_000_000 + b",", "characters"),
        (b"," * 30_000_000, "characters"),
        (b'"' + b'x\n","' * 1_000_000, "characters"),
        (b"a.jpg", "cells"),
        (b"a.jpg,-1", "offset"),
        (b'a.jpg,"1"x', "CSV"),
        (b"a.jpg,\xd9\xa1", "offset"),
        (b"a.jpg," + b"9" * 100_000, "offset"),
    ],
)
def test_a_hostile_row_of_csv_is_told(row: bytes, word: str, tmp_path: Path) -> None:
    lines = faults_of(b"key,offset\na.jpg,\n" + row + b"\n", "m.csv", tmp_path)
    assert lines[0] == (2, None)
    assert word in str(lines[1][1])


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b"key,key\na,b\n", "m.csv"),
        (b"a,b\n1,2\n", "m.csv"),
        (gzip.compress(bytes(50_000_000), mtime=0), "m.jsonl.gz"),
        (gzip.compress(GOOD_LINE * 1000, mtime=0), "m.csv"),
        (b"\x00" * 10_000_000, "m"),
        (IMAGE, "m"),
    ],
)
def test_what_is_no_manifest_yields_no_item(content: bytes, key: str, tmp_path: Path) -> None:
    """A compressed one is not unpacked: nothing here could be a bomb."""
    lines = faults_of(content, key, tmp_path)
    assert lines
    assert all(fault is not None for _, fault in lines)
