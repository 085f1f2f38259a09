"""Tars of every style, what in them is no file, and damage in them and their gzip."""

from __future__ import annotations

import io
import tarfile

import pytest

from tests.unit.archives import FILES, make_tar, outcomes, refusal, tar_gz


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
    assert found == dict.fromkeys(["sym.jpg", "hard.jpg"], "member_link") | dict.fromkeys(
        ["null", "disk", "pipe"], "member_special"
    ) | {"sparse.jpg": "member_sparse"}


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
