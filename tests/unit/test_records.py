"""Files of records become labelled images, one for one, or are refused with what is wrong."""

from __future__ import annotations

import gzip
import io
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app.uploads.judge import ImageLimits
from app.uploads.labels import Labels
from app.uploads.members import ArchiveLimits
from app.uploads.pack import ShardEntry, ShardWriter
from app.uploads.unpack import pack_member, survey_archive
from tests.unit.archives import LIMITS, every_format, make_zip, refusal

Bytes = npt.NDArray[np.uint8]
#: As they lie in the files: three planes of 32 rows.
PICTURES: Bytes = np.random.default_rng(0).integers(0, 256, (6, 3, 32, 32), np.uint8)
GREY: Bytes = np.random.default_rng(1).integers(0, 256, (5, 7, 9), np.uint8)
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar(labels: list[list[int]]) -> bytes:
    """Records of one byte for each label, then the picture."""
    return b"".join(
        bytes(own) + picture.tobytes() for own, picture in zip(labels, PICTURES, strict=False)
    )


def idx_images(pictures: Bytes = GREY, count: int | None = None) -> bytes:
    shape = (len(pictures) if count is None else count, *pictures.shape[1:])
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *shape) + pictures.tobytes()


def idx_labels(labels: bytes) -> bytes:
    return b"\x00\x00\x08\x01" + struct.pack(">I", len(labels)) + labels


def unpack(
    archive: bytes, start: int = 0, limits: ArchiveLimits = LIMITS
) -> list[tuple[ShardEntry, Bytes]]:
    """What an ingest packs of an archive, with the pixels of each image."""
    opened, labels, count = survey_archive(io.BytesIO(archive), limits)
    writer = ShardWriter(max_bytes=1 << 24, max_items=10_000, key_of=str, first_ordinal=start)
    judging = ImageLimits(max_bytes=1 << 20, max_pixels=1 << 20)
    for member in opened.members(start):
        pack_member(writer, member, labels, judging)
    shard = writer.finish()
    assert shard is not None
    assert (shard.lo, shard.hi) == (start, count)
    return [
        (entry, np.asarray(Image.open(io.BytesIO(shard.body[entry.offset :][: entry.length]))))
        for entry in shard.entries
    ]


@every_format
def test_cifar_10_becomes_images_with_their_classes_and_splits(
    make: Callable[[dict[str, bytes]], bytes],
) -> None:
    found = unpack(
        make(
            {
                "c/data_batch_1.bin": cifar([[3], [9]]),
                "c/data_batch_2.bin": cifar([[0]]),
                "c/test_batch.bin": cifar([[5]]),
                "c/batches.meta.txt": "\n".join([*NAMES, "", ""]).encode(),
            }
        )
    )
    assert [(entry.name, entry.label, entry.split) for entry, _ in found] == [
        ("c/data_batch_1.bin/0000000.png", "cat", "train"),
        ("c/data_batch_1.bin/0000001.png", "truck", "train"),
        ("c/data_batch_2.bin/0000000.png", "airplane", "train"),
        ("c/test_batch.bin/0000000.png", "dog", "test"),
    ]
    for (_, pixels), picture in zip(found, PICTURES[[0, 1, 0, 0]], strict=True):
        assert (pixels == picture.transpose(1, 2, 0)).all()


def test_cifar_100_has_its_fine_label_and_its_number_without_names() -> None:
    found = unpack(make_zip({"train.bin": cifar([[19, 99], [0, 7]]), "test.bin": cifar([[1, 2]])}))
    assert [(entry.label, entry.split) for entry, _ in found] == [
        ("99", "train"),
        ("7", "train"),
        ("2", "test"),
    ]
    assert (found[1][1] == PICTURES[1].transpose(1, 2, 0)).all()


@every_format
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_idx_images_are_labelled_by_the_file_beside_them(
    make: Callable[[dict[str, bytes]], bytes], packed: bool
) -> None:
    files = {
        "m/t10k-images-idx3-ubyte": idx_images(GREY[:2]),
        "m/train-images-idx3-ubyte": idx_images(),
        "m/train-labels-idx1-ubyte": idx_labels(bytes([4, 0, 9, 1, 1])),
        "m/t10k-labels-idx1-ubyte": idx_labels(bytes([7, 8])),
        "other/train-labels-idx1-ubyte": idx_labels(bytes([1])),
    }
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    found = unpack(make(files))
    assert [(entry.label, entry.split) for entry, _ in found] == [
        *(("7", "test"), ("8", "test")),
        *((label, "train") for label in "40911"),
    ]
    assert all(
        (pixels == picture).all() for (_, pixels), picture in zip(found[2:], GREY, strict=True)
    )
    assert (found[0][0].width, found[0][0].height) == (9, 7)


def test_idx_images_without_labels_have_a_split_and_no_label() -> None:
    found = unpack(make_zip({"train-images.idx3-ubyte": idx_images()}))
    assert {(entry.label, entry.split) for entry, _ in found} == {(None, "train")}


def test_records_and_images_share_one_count_and_go_on_at_any_place() -> None:
    png = io.BytesIO()
    Image.new("RGB", (4, 4)).save(png, "PNG")
    archive = make_zip(
        {
            "cat/a.png": png.getvalue(),
            "x/data_batch_1.bin": cifar([[1], [2], [3]]),
            "dog/b.png": png.getvalue(),
            "x/train-images-idx3-ubyte": idx_images(),
        }
    )
    whole = unpack(archive)
    assert [entry.ordinal for entry, _ in whole] == list(range(10))
    assert [entry.label for entry, _ in whole] == ["cat", "1", "2", "3", "dog", *[None] * 5]
    for start in range(1, 10):
        assert [entry[:2] for entry, _ in unpack(archive, start)] == [
            entry[:2] for entry, _ in whole[start:]
        ]


def test_file_that_is_only_named_like_cifar_100_is_an_item_as_any_other() -> None:
    archive = make_zip({"train.bin": b"something else", "test.bin": b"", "a.txt": b"x"})
    opened, _, count = survey_archive(io.BytesIO(archive), LIMITS)
    assert count == 3
    assert [member.name for member in opened.members()] == ["train.bin", "test.bin", "a.txt"]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"data_batch_1.bin": cifar([[1]])[:-1]}, "3072 bytes are no records of 3073"),
        ({"test_batch.bin": b""}, "0 bytes"),
        ({"data_batch_1.bin": cifar([[1], [10]])}, "the label 10, and labels go to 9"),
        ({"train.bin": cifar([[20, 1]])}, "the label 20, and labels go to 19"),
        ({"train.bin": cifar([[1, 100]])}, "the label 100, and labels go to 99"),
        ({"batches.meta.txt": b"cat\ndog\n"}, "2 different names of classes, not 10"),
        ({"batches.meta.txt": b"\n".join([b"cat"] * 10)}, "1 different names"),
        ({"batches.meta.txt": b"\xff\xfe"}, "no UTF-8"),
        ({"batches.meta.txt": "\n".join(["a\x1b[2Jb", *NAMES[1:]]).encode()}, "printable"),
        ({"batches.meta.txt": b"a\n" * 65_537}, "131074 bytes, at most 131072"),
        ({"train-images-idx3-ubyte": b"\x00\x00\x08"}, "does not begin like IDX"),
        ({"train-images-idx3-ubyte": idx_labels(b"123456789")}, "does not begin like IDX"),
        ({"train-images-idx3-ubyte": idx_images(count=4)}, "asks for 268 bytes, and it has 331"),
        ({"train-images-idx3-ubyte": idx_images(count=2**32 - 1)}, "asks for"),
        ({"train-images-idx3-ubyte": idx_images(GREY[:0])}, "no images"),
        (
            {"train-images-idx3-ubyte": b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 0, 28)},
            "28×0 pixels",
        ),
        ({"train-labels-idx1-ubyte": idx_labels(b"12") + b"3"}, "asks for 10 bytes"),
        (
            {
                "train-images-idx3-ubyte": idx_images(),
                "train-labels-idx1-ubyte": idx_labels(b"123"),
            },
            "5 images, and there are 3 labels",
        ),
        ({"train-images-idx3-ubyte.gz": idx_images()}, "compression is damaged"),
        ({"train-images-idx3-ubyte.gz": gzip.compress(idx_images())[:-4]}, "ends early"),
        (
            {
                "train-labels-idx1-ubyte": idx_labels(b"12"),
                "train-labels.idx1-ubyte": idx_labels(b"34"),
            },
            "two files of labels",
        ),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_records_that_do_not_fit_refuse_the_archive_and_say_why(
    files: dict[str, bytes], told: str
) -> None:
    error = refusal(make_zip(files))
    assert error.code == "records_invalid"
    assert told in error.detail
    assert any(name in error.detail for name in files)


def test_records_count_as_members_of_the_archive() -> None:
    few = ArchiveLimits(
        max_entries=4, max_member_bytes=1 << 20, max_total_bytes=1 << 30, max_ratio=100
    )
    assert refusal(make_zip({"train-images-idx3-ubyte": idx_images()}), few).code == (
        "archive_too_large"
    )
    two = make_zip({f"{n}/train-images-idx3-ubyte": idx_images(GREY[:3]) for n in range(2)})
    assert refusal(two, few).code == "archive_too_large"


def test_records_that_unpack_to_too_much_are_a_bomb() -> None:
    # Each alone may expand as it likes; together they may not.
    side = 4096
    zeros = b"\x00\x00\x08\x03" + struct.pack(">3I", 2, side, side) + bytes(2 * side * side)
    packed = gzip.compress(zeros, 9)
    error = refusal(make_zip({f"{n}/train-images-idx3-ubyte.gz": packed for n in range(3)}))
    assert error.code == "archive_bomb"


def test_damaged_file_of_records_refuses_the_archive() -> None:
    archive = bytearray(make_zip({"data_batch_1.bin": cifar([[1]])}, 0))
    archive[200] ^= 1
    error = refusal(bytes(archive))
    assert error.code == "records_invalid"
    assert "checksum" in error.detail


def test_labels_stay_those_of_the_records_where_folders_have_names() -> None:
    archive = make_zip({"dogs/data_batch_1.bin": cifar([[1]]), "cats/a.png": b"x"})
    opened, labels, _ = survey_archive(io.BytesIO(archive), LIMITS)
    assert isinstance(labels, Labels)
    assert [member.own for member in opened.members()] == [("1", "train"), None]
