"""Zips that are damaged, lie, or come from old tools: one member fails, or all is refused."""

from __future__ import annotations

import io
import struct
import zipfile

from tests.unit.archives import FILES, make_zip, outcomes, read_all, refusal, stored_zip


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


def test_a_directory_that_lists_more_than_it_counts_is_inconsistent() -> None:
    archive = bytearray(make_zip(FILES))
    end = archive.rindex(b"PK\x05\x06")
    for count in (5, 7):
        struct.pack_into("<HH", archive, end + 8, count, count)
        assert refusal(bytes(archive)).code == "archive_inconsistent"


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
        "link.jpg": "member_link",
        "squeezed.jpg": "member_method_unsupported",
        "secret.jpg": "member_encrypted",
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
