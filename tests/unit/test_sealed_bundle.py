"""The format of sealed bundles: what was not sealed so, for this, does not open."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from app.sealing.bundle import (
    FRAME_BYTES,
    SealedDamagedError,
    Subject,
    is_bundle,
    new_data_key,
    seal,
    unseal,
)

KEY = bytes(range(32))
FRAME = 16
#: Bytes of a sealed frame, and of the header before the first.
SEALED, HEADER = FRAME + 16, 28
files = st.binary(max_size=6 * FRAME)


def subject(file: bytes) -> Subject:
    return Subject("tn_1", "mdv_1", hashlib.sha256(file).hexdigest())


def sealed(file: bytes, key: bytes = KEY) -> bytes:
    return b"".join(seal(io.BytesIO(file), key, subject(file), frame_bytes=FRAME))


def opened(bundle: bytes, about: Subject, key: bytes = KEY) -> bytes:
    return b"".join(unseal(io.BytesIO(bundle), key, about))


def take(pieces: Iterator[bytes], came: bytearray) -> None:
    for piece in pieces:
        came += piece


def assert_refused(bundle: bytes, file: bytes, about: Subject | None = None) -> None:
    """Nothing but true bytes of the file came out before the refusal."""
    came = bytearray()
    pieces = unseal(io.BytesIO(bundle), KEY, about or subject(file))
    with pytest.raises(SealedDamagedError) as caught:
        take(pieces, came)
    assert caught.value.code == "weights_sealed_damaged"
    assert not caught.value.retryable
    assert file.startswith(bytes(came))


class Dripping(io.BytesIO):
    """Gives a few bytes at a time, as a network may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, 5))


@given(files)
def test_what_was_sealed_opens_as_it_was(file: bytes) -> None:
    bundle = sealed(file)
    assert is_bundle(bundle)
    assert opened(bundle, subject(file)) == file
    assert b"".join(unseal(Dripping(bundle), KEY, subject(file))) == file
    assert len(bundle) == HEADER + len(file) + 16 * max(1, -(-len(file) // FRAME))


@given(files.filter(lambda file: len(file) >= 8))
def test_nothing_of_the_file_stands_in_its_bundle(file: bytes) -> None:
    bundle = sealed(file)
    assert not any(file[at : at + 8] in bundle for at in range(len(file) - 7))


@given(files, st.data())
def test_any_cut_is_refused(file: bytes, data: st.DataObject) -> None:
    bundle = sealed(file)
    assert_refused(bundle[: data.draw(st.integers(0, len(bundle) - 1))], file)


@given(files, st.data())
def test_any_turned_bit_is_refused(file: bytes, data: st.DataObject) -> None:
    bundle = bytearray(sealed(file))
    bit = data.draw(st.integers(0, 8 * len(bundle) - 1))
    bundle[bit // 8] ^= 1 << bit % 8
    assert_refused(bytes(bundle), file)


@given(files, st.binary(min_size=1, max_size=3 * SEALED))
def test_anything_added_is_refused(file: bytes, more: bytes) -> None:
    assert_refused(sealed(file) + more, file)


@given(st.binary(min_size=FRAME + 1, max_size=6 * FRAME), st.data())
def test_frames_in_any_other_order_or_number_are_refused(file: bytes, data: st.DataObject) -> None:
    bundle = sealed(file)
    frames = [bundle[at : at + SEALED] for at in range(HEADER, len(bundle), SEALED)]
    count = len(frames)
    order = data.draw(st.lists(st.integers(0, count - 1), max_size=2 * count))
    assume(order != list(range(count)))
    assert_refused(bundle[:HEADER] + b"".join(frames[at] for at in order), file)


@given(st.binary(min_size=1, max_size=6 * FRAME), st.data())
def test_frame_of_another_bundle_of_the_same_file_and_key_is_refused(
    file: bytes, data: st.DataObject
) -> None:
    one, other = sealed(file), sealed(file)
    assert one != other
    start = HEADER + SEALED * data.draw(st.integers(0, (len(file) - 1) // FRAME))
    end = start + SEALED
    assert_refused(one[:start] + other[start:end] + one[end:], file)
    assert_refused(other[:HEADER] + one[HEADER:], file)


#: Six frames, none like another.
SIX = bytes(range(6 * FRAME))


def refused_at(bundle: bytes) -> tuple[int, bytes]:
    """Which frame did not open, and what had come before: no digest of the whole was needed."""
    came, pieces = bytearray(), unseal(io.BytesIO(bundle), KEY, subject(SIX))
    with pytest.raises(SealedDamagedError, match=r"frame \d of the sealed bundle") as caught:
        take(pieces, came)
    return int(caught.value.detail.split()[1]), bytes(came)


@pytest.mark.parametrize("kept", range(1, 6))
def test_cut_between_frames_shows_at_the_frame_that_became_the_last(kept: int) -> None:
    bundle = sealed(SIX)[: HEADER + kept * SEALED]
    assert refused_at(bundle) == (kept - 1, SIX[: (kept - 1) * FRAME])


@pytest.mark.parametrize(("first", "second"), [(i, j) for j in range(6) for i in range(j)])
def test_two_exchanged_frames_show_at_the_first(first: int, second: int) -> None:
    bundle = sealed(SIX)
    frames = [bundle[at : at + SEALED] for at in range(HEADER, len(bundle), SEALED)]
    frames[first], frames[second] = frames[second], frames[first]
    found = refused_at(bundle[:HEADER] + b"".join(frames))
    assert found == (first, SIX[: first * FRAME])


def test_bundles_under_one_key_share_no_nonce() -> None:
    # Under equal nonces equal files would be equal before the tags.
    one, other = sealed(SIX), sealed(SIX)
    assert all(
        one[at : at + FRAME] != other[at : at + FRAME] for at in range(HEADER, len(one), SEALED)
    )
    zeros = sealed(bytes(6 * FRAME))
    assert len({zeros[at : at + FRAME] for at in range(HEADER, len(zeros), SEALED)}) == 6


@pytest.mark.parametrize("word", ["tenant_id", "version_id", "sha256", "kind"])
def test_bundle_of_another_subject_is_refused(word: str) -> None:
    file = b"weights"
    assert_refused(sealed(file), file, replace(subject(file), **{word: "another"}))


def test_names_that_only_join_to_the_same_text_are_other_subjects() -> None:
    file = b"weights"
    about = replace(subject(file), tenant_id="tn_", version_id="1mdv_1")
    assert_refused(sealed(file), file, about)


def test_other_data_key_is_refused() -> None:
    assert_refused(sealed(b"weights", new_data_key()), b"weights")


def test_other_data_key_is_refused_even_under_this_ones_id() -> None:
    file = b"weights"
    header, foreign = sealed(file)[:HEADER], sealed(file, new_data_key())
    # Magic, version, frame size and key id of ours; nonce prefix and frames of the other.
    assert_refused(header[:20] + foreign[20:], file)


@given(st.binary(max_size=100))
def test_what_is_no_bundle_is_refused(file: bytes) -> None:
    assert_refused(file, b"")


def test_file_that_changes_while_it_is_sealed_is_no_bundle() -> None:
    with pytest.raises(SealedDamagedError, match="changed while it was sealed"):
        list(seal(io.BytesIO(b"weights"), KEY, subject(b"other weights")))


def test_reader_and_sealer_hold_a_frame_or_two_whatever_the_size() -> None:
    class Zeros:
        """A file of zeros that tells how much of it was asked for at once."""

        def __init__(self, size: int) -> None:
            self.left, self.asked = size, 0

        def read(self, size: int, /) -> bytes:
            self.asked = max(self.asked, size)
            piece = bytes(min(size, self.left))
            self.left -= len(piece)
            return piece

    size = 8 * FRAME_BYTES + 1
    digest = hashlib.sha256(bytes(size)).hexdigest()
    source = Zeros(size)
    pieces = list(seal(source, KEY, Subject("tn_1", "mdv_1", digest)))
    assert source.asked == FRAME_BYTES
    assert max(map(len, pieces)) == FRAME_BYTES + 16
    back = unseal(io.BytesIO(b"".join(pieces)), KEY, Subject("tn_1", "mdv_1", digest))
    assert {len(piece) for piece in back} == {FRAME_BYTES, 1}
