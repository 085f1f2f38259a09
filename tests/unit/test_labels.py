from __future__ import annotations

import io

import pytest

from app.errors import InvalidInputError
from app.uploads.archive import open_archive
from app.uploads.labels import Labels
from tests.unit.archives import LIMITS, make_tar, make_zip


def labels_of(*names: str, **files: str) -> Labels:
    """The labels of an archive with these members and label files (``__`` is a slash)."""
    texts = {f"{name.replace('__', '/')}.csv": text.encode() for name, text in files.items()}
    archive = make_zip(dict.fromkeys(names, b"") | texts)
    return Labels(open_archive(io.BytesIO(archive), LIMITS).survey())


def test_the_folder_is_the_label() -> None:
    labels = labels_of("cat/1.jpg", "dog/2.jpg", "3.jpg")
    assert labels.of("cat/1.jpg") == ("cat", None)
    assert labels.of("dog/2.jpg") == ("dog", None)
    assert labels.of("3.jpg") == (None, None)


def test_the_last_folder_is_the_label() -> None:
    labels = labels_of("train/cat/1.jpg", "train/dog/2.jpg", "train/3.jpg")
    assert labels.of("train/cat/1.jpg") == ("cat", None)
    assert labels.of("train/3.jpg") == (None, None)


@pytest.mark.parametrize("folder", ["photos", "data/photos"])
def test_a_folder_that_holds_every_image_labels_nothing(folder: str) -> None:
    labels = labels_of(f"{folder}/1.jpg", f"{folder}/2.jpg")
    assert labels.of(f"{folder}/2.jpg") == (None, None)


def test_folders_inside_the_one_that_holds_everything_are_labels() -> None:
    labels = labels_of("photos/cat/1.jpg", "photos/dog/2.jpg", "photos/3.jpg")
    assert labels.of("photos/cat/1.jpg") == ("cat", None)
    assert labels.of("photos/3.jpg") == (None, None)


def test_a_labels_file_beats_folders() -> None:
    labels = labels_of("cat/1.jpg", "cat/2.jpg", labels="filename,label,split\ncat/1.jpg,dog,val\n")
    assert labels.of("cat/1.jpg") == ("dog", "validation")
    assert labels.of("cat/2.jpg") == (None, None)
    assert labels.fault_count == 0


def test_other_columns_are_ignored_in_any_order() -> None:
    labels = labels_of("1.jpg", labels="Filename,label_id, Label \r\n1.jpg,7,great white shark\r\n")
    assert labels.of("1.jpg") == ("great white shark", None)


def test_a_byte_order_mark_and_quotes_are_understood() -> None:
    labels = labels_of("1.jpg", labels='\ufefffilename,label\n1.jpg,"cat, black"\n')
    assert labels.of("1.jpg") == ("cat, black", None)


def test_a_labels_file_in_a_tar_may_come_last() -> None:
    for mode in ("w", "w:gz"):
        archive = make_tar({"x/1.jpg": b"", "labels.csv": b"filename,label\nx/1.jpg,cat"}, mode)
        labels = Labels(open_archive(io.BytesIO(archive), LIMITS).survey())
        assert labels.of("x/1.jpg") == ("cat", None)


def test_names_are_relative_to_the_labels_file_too() -> None:
    labels = labels_of(
        "a/1.jpg",
        "b/1.jpg",
        a__labels="filename,label\n1.jpg,cat\n",
        b__labels="filename,label\n1.jpg,dog\n",
    )
    assert labels.of("a/1.jpg") == ("cat", None)
    assert labels.of("b/1.jpg") == ("dog", None)


def test_a_bare_name_matches_where_it_is_unambiguous() -> None:
    labels = labels_of(
        "a/1.jpg", "a/2.jpg", "b/2.jpg", labels="filename,label\n1.jpg,cat\n2.jpg,dog\n"
    )
    assert labels.of("a/1.jpg") == ("cat", None)
    assert labels.of("a/2.jpg") == (None, None)


def test_a_name_in_another_folder_does_not_match() -> None:
    labels = labels_of("a/1.jpg", labels="filename,label\nb/1.jpg,cat\n")
    assert labels.of("a/1.jpg") == (None, None)


def test_bad_lines_are_listed_with_their_numbers() -> None:
    labels = labels_of(
        "1.jpg",
        "6.jpg",
        labels="filename,label,split\n1.jpg,cat,\n1.jpg,dog,\n2.jpg\n,cat,\n3.jpg,,\n\n4.jpg,a,b\n"
        '5.jpg,"a\nb",\n6.jpg,cat,\n',
    )
    assert [fault["line"] for fault in labels.faults] == [3, 4, 5, 6, 8, 9]
    assert labels.of("1.jpg") == ("cat", None)
    assert labels.of("6.jpg") == ("cat", None)


def test_a_line_that_names_no_member_is_told_and_not_kept() -> None:
    labels = labels_of("1.jpg", labels="filename,label\n1.jpg,cat\n2.jpg,dog\n")
    assert labels.faults == [
        {"file": "labels.csv", "line": 3, "detail": "'2.jpg' names no member of the archive"}
    ]
    assert labels.of("2.jpg") == (None, None)


def test_a_row_too_long_is_told_and_the_next_ones_are_read() -> None:
    for long in ("x" * 100_000, "x," * 50_000):
        labels = labels_of("1.jpg", labels=f"filename,label\n{long}\n1.jpg,cat\n")
        assert "characters" in labels.faults[0]["detail"]
        assert labels.of("1.jpg") == ("cat", None)


def test_a_row_of_many_cells_over_many_lines_is_cut() -> None:
    labels = labels_of("1.jpg", labels='filename,label\n1.jpg,cat\n"x' + '\n","' * 30_000)
    assert "characters" in labels.faults[0]["detail"]
    assert labels.of("1.jpg") == ("cat", None)


def test_at_most_a_hundred_bad_lines_are_listed_and_all_counted() -> None:
    labels = labels_of("1.jpg", labels="filename,label\n" + ",\n" * 250)
    assert (len(labels.faults), labels.fault_count) == (100, 250)


@pytest.mark.parametrize("text", ["", "a,b\n", "filename\n1.jpg\n", "label,name\n"])
def test_a_file_without_the_columns_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"labels.csv .* lacks") as caught:
        labels_of("1.jpg", labels=text)
    assert caught.value.code == "labels_invalid"


def test_a_file_that_is_not_utf8_is_refused_or_cut() -> None:
    archive = make_zip({"1.jpg": b"", "labels.csv": b"filename,label\n1.jpg,caf\xe9\n"})
    with pytest.raises(InvalidInputError, match="utf-8"):
        Labels(open_archive(io.BytesIO(archive), LIMITS).survey())
