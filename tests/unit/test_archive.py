"""Archives of every format: their members in order, limits, and what is no archive."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from dataclasses import replace

import pytest

from app.errors import InvalidInputError
from app.uploads.archive import open_archive
from tests.unit.archives import (
    FILES,
    LIMITS,
    MAKERS,
    MIB,
    every_format,
    make_tar,
    make_zip,
    outcomes,
    read_all,
    refusal,
    tar_gz,
)


@every_format
def test_members_come_in_order_with_their_bytes(make: Callable[..., bytes]) -> None:
    members = read_all(make(FILES))
    assert [(m.ordinal, m.name, m.size, m.read()) for m in members] == [
        (i, name, len(content), content) for i, (name, content) in enumerate(FILES.items())
    ]


@every_format
def test_reading_resumes_at_a_member(make: Callable[..., bytes]) -> None:
    archive = make(FILES)
    assert read_all(archive, start=4) == read_all(archive)[4:]
    assert read_all(archive, start=6) == []


@every_format
def test_folders_debris_and_labels_are_no_items(make: Callable[..., bytes]) -> None:
    archive = make(
        {
            "a/": b"",
            "__MACOSX/a/._1.jpg": b"x",
            "a/.DS_Store": b"x",
            "a/._1.jpg": b"x",
            "a/labels.csv": b"filename,label\n",
            "a/1.jpg": b"one",
        }
    )
    survey = open_archive(io.BytesIO(archive), LIMITS).survey()
    assert survey.item_count == 1
    assert survey.label_files == [("a/labels.csv", b"filename,label\n")]
    assert outcomes(archive) == {"a/1.jpg": b"one"}


@every_format
def test_bad_paths_and_large_members_fail_alone(make: Callable[..., bytes]) -> None:
    archive = make(
        {
            "/etc/passwd": b"1",
            "a/../../b.jpg": b"2",
            "C:\\x\\y.jpg": b"3",
            "large.jpg": bytes(MIB + 1),
            "x" * 1500: b"4",
            "good..name.jpg": b"5",
        }
    )
    assert outcomes(archive) == {
        "/etc/passwd": "member_path_unsafe",
        "a/../../b.jpg": "member_path_unsafe",
        "C:/x/y.jpg": "member_path_unsafe",
        "large.jpg": "too_large",
        "x" * 1024: "member_name_invalid",
        "good..name.jpg": b"5",
    }


@every_format
def test_an_archive_cut_short_is_truncated_at_an_offset(make: Callable[..., bytes]) -> None:
    archive = make(FILES)
    for size in (len(archive) // 3, len(archive) * 2 // 3):
        error = refusal(archive[:size])
        assert error.code == "archive_truncated"
        assert "at byte " in error.detail


@every_format
def test_too_many_members_are_refused(make: Callable[..., bytes]) -> None:
    assert refusal(make(FILES), replace(LIMITS, max_entries=5)).code == "archive_too_large"


@every_format
def test_no_prefix_of_an_archive_passes_for_a_whole_one(make: Callable[..., bytes]) -> None:
    archive = make({"a.jpg": b"12345", "b.jpg": b"67890" * 200})
    end = len(archive.rstrip(b"\0")) if make is make_tar else len(archive)
    for size in range(0, end, 37):
        with pytest.raises(InvalidInputError):
            read_all(archive[:size])


@pytest.mark.parametrize("make", [make_zip, tar_gz])
def test_a_bomb_is_refused_before_it_expands(make: Callable[..., bytes]) -> None:
    archive = make({"zeros.jpg": bytes(80 * MIB)})
    assert refusal(archive).code == "archive_bomb"


def test_a_gzip_bomb_is_refused_within_its_member() -> None:
    out = io.BytesIO()
    head = tarfile.TarInfo("huge")
    head.size = 1 << 40
    with gzip.GzipFile(fileobj=out, mode="wb") as packed:
        packed.write(head.tobuf(tarfile.GNU_FORMAT))
        for _ in range(70):
            packed.write(bytes(MIB))
    assert refusal(out.getvalue()).code == "archive_bomb"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"hello" * 200, "no zip"),
        # Without a time in it: two runs side by side must collect the same names of tests.
        (gzip.compress(b"hello" * 200, mtime=0), "holds no tar"),
    ],
)
def test_what_is_no_archive_is_named(content: bytes, word: str) -> None:
    error = refusal(content)
    assert error.code == "archive_unsupported"
    assert word in error.detail


def test_an_archive_without_items_is_read_as_such() -> None:
    for make in MAKERS:
        assert read_all(make({})) == []
