from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import DarkroomError, InvalidInputError
from app.uploads.archive import open_archive
from app.uploads.members import ArchiveLimits
from tests.unit.archives import LIMITS, MIB, make_tar, make_zip, outcomes, read_all

FILES = {f"cat/{number}.jpg": bytes([number]) * (number * 700) for number in range(6)}


def tar_gz(files: dict[str, bytes]) -> bytes:
    return make_tar(files, "w:gz")


def stored_zip(files: dict[str, bytes]) -> bytes:
    return make_zip(files, zipfile.ZIP_STORED)


MAKERS: list[Callable[[dict[str, bytes]], bytes]] = [make_zip, stored_zip, make_tar, tar_gz]
every_format = pytest.mark.parametrize("make", MAKERS)


def refusal(archive: bytes, limits: ArchiveLimits = LIMITS) -> InvalidInputError:
    def read() -> None:
        opened = open_archive(io.BytesIO(archive), limits)
        opened.survey()
        list(opened.members())

    with pytest.raises(InvalidInputError) as caught:
        read()
    return caught.value


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
        "/etc/passwd": "member_refused",
        "a/../../b.jpg": "member_refused",
        "C:/x/y.jpg": "member_refused",
        "large.jpg": "too_large",
        "x" * 1024: "member_refused",
        "good..name.jpg": b"5",
    }


@every_format
def test_an_archive_cut_short_is_broken_at_an_offset(make: Callable[..., bytes]) -> None:
    archive = make(FILES)
    for size in (len(archive) // 3, len(archive) * 2 // 3):
        error = refusal(archive[:size])
        assert error.code == "archive_broken"
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


def test_a_damaged_zip_member_fails_alone_and_names_its_offset() -> None:
    archive = bytearray(stored_zip(FILES))
    place = archive.index(bytes([3]) * 700)
    archive[place + 5] ^= 1
    assert outcomes(bytes(archive)) == FILES | {"cat/3.jpg": "member_damaged"}
    error = read_all(bytes(archive))[3].error
    assert error is not None
    assert error.detail.startswith("cat/3.jpg is damaged")
    assert f"at byte {place} " in error.detail


def test_a_damaged_deflate_stream_fails_its_member_alone() -> None:
    files = {"a.jpg": bytes(range(256)) * 9, "b.jpg": b"fine"}
    archive = bytearray(make_zip(files))
    archive[40:44] = b"\xff\xff\xff\xff"
    assert outcomes(bytes(archive)) == files | {"a.jpg": "member_damaged"}


def test_a_damaged_labels_file_in_a_zip_is_refused() -> None:
    archive = bytearray(stored_zip({"a.jpg": b"1", "labels.csv": b"filename,label\na.jpg,cat\n"}))
    archive[archive.index(b"a.jpg,cat")] ^= 1
    error = refusal(bytes(archive))
    assert (error.code, "labels.csv is damaged" in error.detail) == ("labels_invalid", True)


def test_a_cut_zip_names_the_member_it_was_cut_in() -> None:
    archive = stored_zip(FILES)
    cut = archive.index(bytes([4]) * 700) + 100
    assert f"at byte {cut} in member 'cat/4.jpg'" in refusal(archive[:cut]).detail


def test_members_that_share_bytes_are_refused() -> None:
    """Two directory entries that point at one local header, as overlap bombs are made."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", b"a" * 100)
        archive.writestr("b.jpg", b"a" * 100)
        archive.getinfo("b.jpg").header_offset = 0
    assert refusal(out.getvalue()).code == "archive_overlapping"


def test_a_directory_that_lists_more_than_it_counts_is_broken() -> None:
    archive = bytearray(make_zip(FILES))
    end = archive.rindex(b"PK\x05\x06")
    for count in (5, 7):
        struct.pack_into("<HH", archive, end + 8, count, count)
        assert refusal(bytes(archive)).code == "archive_broken"


def test_a_huge_count_is_refused_without_reading_the_directory() -> None:
    archive = bytearray(make_zip(FILES))
    end = archive.rindex(b"PK\x05\x06")
    struct.pack_into("<HH", archive, end + 8, 60000, 60000)
    assert refusal(bytes(archive)).code == "archive_too_large"


def test_a_member_that_lies_about_its_size_is_damaged() -> None:
    archive = bytearray(make_zip({"a.jpg": b"ab" * 5000}))
    directory = archive.rindex(b"PK\x01\x02")
    for size in (9999, 10001):
        struct.pack_into("<I", archive, directory + 24, size)
        assert outcomes(bytes(archive)) == {"a.jpg": "member_damaged"}


def test_a_local_header_with_another_name_is_broken() -> None:
    archive = bytearray(make_zip({"a.jpg": b"1"}))
    archive[30:35] = b"b.jpg"
    assert "disagree" in refusal(bytes(archive)).detail


def test_encrypted_and_linked_zip_members_fail_alone() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("good.jpg", b"fine")
        link = zipfile.ZipInfo("link.jpg")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "good.jpg")
        archive.writestr("squeezed.jpg", b"x" * 99, zipfile.ZIP_BZIP2)
        archive.writestr("secret.jpg", b"x")
    made = bytearray(out.getvalue())
    for magic, flags_at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        made[made.rindex(magic) + flags_at] |= 1
    assert outcomes(bytes(made)) == {
        "good.jpg": b"fine",
        "link.jpg": "member_refused",
        "squeezed.jpg": "member_refused",
        "secret.jpg": "member_refused",
    }


def test_zip_with_64_bit_fields_is_read() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        with archive.open("wide.jpg", "w", force_zip64=True) as member:
            member.write(b"wide")
        # The directory's fields as an archive beyond 4 GiB has them.
        archive.getinfo("wide.jpg").file_size = 4
    plain = out.getvalue()
    directory, end = plain.rindex(b"PK\x01\x02"), plain.rindex(b"PK\x05\x06")
    entry = bytearray(plain[directory:end])
    struct.pack_into("<II", entry, 20, 0xFFFFFFFF, 0xFFFFFFFF)
    struct.pack_into("<I", entry, 42, 0xFFFFFFFF)
    extra = struct.pack("<HHQQQ", 1, 24, 4, 4, 0)
    struct.pack_into("<H", entry, 30, len(extra))
    entry += extra
    start64 = directory + len(entry)
    wide = plain[:directory] + entry
    wide += struct.pack(
        "<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(entry), directory
    )
    wide += struct.pack("<4sIQI", b"PK\x06\x07", 0, start64, 1)
    wide += struct.pack(
        "<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0
    )
    assert outcomes(bytes(wide)) == {"wide.jpg": b"wide"}


def test_zip_written_to_a_pipe_is_read() -> None:
    """Such a zip has its sizes behind each member, not before it."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def tell(self) -> int:
            raise OSError

        def seek(self, *_: object) -> int:
            raise OSError

    out = Pipe()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in FILES.items():
            archive.writestr(name, content)
    assert outcomes(out.getvalue()) == FILES


def test_names_in_old_encodings_and_with_controls_are_readable() -> None:
    archive = make_zip({"caf\u00e9/\x07bell.jpg": b"1"})
    assert list(outcomes(archive)) == ["caf\u00e9/\ufffdbell.jpg"]
    old = make_zip({"cafX/1.jpg": b"1"}).replace(b"cafX", b"caf\x82")
    assert list(outcomes(old)) == ["caf\u00e9/1.jpg"]


@pytest.mark.parametrize("style", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_tar_with_long_names_is_read(style: int) -> None:
    files = {"d/" * 90 + "caf\u00e9.jpg": b"1", "short.jpg": b"2"}
    assert outcomes(make_tar(files, style=style)) == files


def test_old_ustar_names_with_a_prefix_are_read() -> None:
    files = {"p" * 90 + "/" + "n" * 90: b"1"}
    assert outcomes(make_tar(files, style=tarfile.USTAR_FORMAT)) == files


def test_links_devices_and_sparse_files_in_a_tar_fail_alone() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind in (
            ("sym.jpg", tarfile.SYMTYPE),
            ("hard.jpg", tarfile.LNKTYPE),
            ("null", tarfile.CHRTYPE),
            ("disk", tarfile.BLKTYPE),
            ("pipe", tarfile.FIFOTYPE),
            ("folder", tarfile.DIRTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "good.jpg"
            archive.addfile(info)
        info = tarfile.TarInfo("good.jpg")
        info.size = 4
        archive.addfile(info, io.BytesIO(b"fine"))
        sparse = tarfile.TarInfo("sparse.jpg")
        sparse.pax_headers = {"GNU.sparse.major": "1"}
        archive.addfile(sparse)
    found = outcomes(out.getvalue())
    assert found.pop("good.jpg") == b"fine"
    assert found == dict.fromkeys(
        ["sym.jpg", "hard.jpg", "null", "disk", "pipe", "sparse.jpg"], "member_refused"
    )


def test_an_extended_header_of_a_gigabyte_is_refused() -> None:
    head = tarfile.TarInfo("x")
    head.type, head.size = tarfile.XHDTYPE, 1 << 30
    error = refusal(head.tobuf(tarfile.USTAR_FORMAT) + bytes(2048))
    assert error.code == "archive_broken"


def test_a_damaged_tar_header_is_broken_at_its_offset() -> None:
    archive = bytearray(make_tar({"a.jpg": b"1", "b.jpg": b"2"}))
    archive[1024 + 20] ^= 1
    assert "at byte 1024:" in refusal(bytes(archive)).detail


def test_a_damaged_gzip_is_broken() -> None:
    archive = bytearray(tar_gz(FILES))
    archive[len(archive) // 2] ^= 0xFF
    assert refusal(bytes(archive)).code == "archive_broken"


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"Rar!\x1a\x07", "RAR"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"hello" * 200, "no zip"),
        (gzip.compress(b"hello" * 200), "holds no tar"),
    ],
)
def test_what_is_no_archive_is_named(content: bytes, word: str) -> None:
    error = refusal(content)
    assert error.code == "archive_unsupported"
    assert word in error.detail


def test_an_archive_without_items_is_read_as_such() -> None:
    for make in MAKERS:
        assert read_all(make({})) == []


def try_to_read(content: bytes) -> None:
    try:
        archive = open_archive(io.BytesIO(content), LIMITS)
        archive.survey()
        list(archive.members())
    except DarkroomError:
        pass


_BASES = [make({"cat/1.jpg": b"12345" * 30, "labels.csv": b"filename,label\n"}) for make in MAKERS]
_BASES.append(make_tar({"d/" * 90: b"1" * 600}, style=tarfile.GNU_FORMAT))
quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@quick
@given(st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08\x00"]), st.binary())
def test_random_bytes_only_raise_our_errors(head: bytes, content: bytes) -> None:
    try_to_read(head + content)


@quick
@given(
    st.sampled_from(_BASES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
    st.floats(0.5, 1),
)
def test_mutated_archives_only_raise_our_errors(
    base: bytes, changes: list[tuple[float, int]], keep: float
) -> None:
    content = bytearray(base)
    for place, value in changes:
        content[int(place * len(content))] = value
    try_to_read(bytes(content))
    try_to_read(bytes(content[: int(keep * len(content))]))


@quick
@given(
    st.sampled_from(_BASES[:2]),
    st.lists(
        st.tuples(st.integers(0, 120), st.sampled_from([0, 1, 0xFF, 0x7F, 0x80])),
        min_size=1,
        max_size=8,
    ),
)
def test_zips_with_a_mutated_directory_only_raise_our_errors(
    base: bytes, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(base)
    start = base.index(b"PK\x01\x02")
    for place, value in changes:
        content[min(start + place, len(content) - 1)] = value
    try_to_read(bytes(content))
