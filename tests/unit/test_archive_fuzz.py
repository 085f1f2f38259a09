"""Bytes that nobody meant as an archive only raise errors of ours."""

from __future__ import annotations

import io
import tarfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.errors import DarkroomError
from app.uploads.archive import open_archive
from tests.unit.archives import LIMITS, MAKERS, make_tar


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
