"""Sealed bundles: a file in frames of AES-256-GCM, of which nothing is read unauthenticated.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway and Vizár, "Online Authenticated-
Encryption and its Nonce-Reuse Misuse-Resistance", CRYPTO 2015, figure 8): each frame's nonce
is a random prefix of the bundle, the frame's number and whether it is the last. A frame that
was moved, left out, added, or taken from another bundle therefore does not open, nor does one
that became the last because the bundle was cut.

    header   "DRSEAL" version(2) frame bytes(4) data key's id(8) nonce prefix(8)    28 bytes
    frame    ciphertext (of frame bytes of the file, the last of what is left) tag(16)
    nonce    nonce prefix(8) number(3) 1 for the last frame, else 0(1)

Numbers are big-endian. Every frame's associated data are the header and the :class:`Subject`.

Memory: two frames, whatever the size.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from app.errors import DarkroomError

#: Bytes of the file in a frame: large enough that 16 bytes of tag are nothing, small enough
#: that a reader holds little.
FRAME_BYTES = 1024 * 1024
DATA_KEY_BYTES = 32
_MAGIC = b"DRSEAL"
_VERSION = 1
_HEADER = struct.Struct(">6sHI8s8s")
_TAG_BYTES = 16
_MOST_FRAMES = 2**24
#: A reader holds frames, and their size stands in a header that is not authenticated yet.
_MOST_FRAME_BYTES = 16 * 1024 * 1024


class SealedDamagedError(DarkroomError):
    """The sealed bundle was cut, changed, put together anew, or is another's; nothing is used."""

    code = "weights_sealed_damaged"
    status = 409


@dataclass(frozen=True, slots=True)
class Subject:
    """What a bundle is, and whose; one that is not exactly this does not open."""

    tenant_id: str
    version_id: str
    #: SHA-256 of the file in clear, in hex.
    sha256: str
    #: ``weights``, or which checkpoint of the version's training.
    kind: str = "weights"


class Readable(Protocol):
    """Anything with the bytes of a file or an object."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; b"" at the end."""
        ...


def new_data_key() -> bytes:
    """A random key for the bundles of one version."""
    return os.urandom(DATA_KEY_BYTES)


def seal(
    source: Readable, data_key: bytes, subject: Subject, *, frame_bytes: int = FRAME_BYTES
) -> Iterator[bytes]:
    """The bundle of a file, piece by piece.

    One data key may seal many bundles: their nonces differ by 64 random bits.

    Raises:
        SealedDamagedError: the file has not the subject's digest; what was yielded is no bundle.
    """
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    prefix = os.urandom(8)
    header = _HEADER.pack(_MAGIC, _VERSION, frame_bytes, data_key_id(data_key), prefix)
    cipher, about = AESGCM(data_key), _associated_data(header, subject)
    digest = hashlib.sha256()
    yield header
    for number, (frame, is_last) in enumerate(_frames(source, frame_bytes)):
        digest.update(frame)
        yield cipher.encrypt(_nonce(prefix, number, is_last), frame, about)
    if digest.hexdigest() != subject.sha256:
        raise SealedDamagedError("the file changed while it was sealed")


def unseal(source: Readable, data_key: bytes, subject: Subject) -> Iterator[bytes]:
    """The file in a bundle, piece by piece, each authenticated before it is yielded.

    That a bundle was cut shows only at its end: use nothing of it before the iterator has
    ended by itself.

    Raises:
        SealedDamagedError: the bundle is not whole, not unchanged, or not of this subject.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    header = _read(source, _HEADER.size)
    frame_bytes, prefix = _parse(header, data_key)
    cipher, about = AESGCM(data_key), _associated_data(header, subject)
    digest = hashlib.sha256()
    for number, (frame, is_last) in enumerate(_frames(source, frame_bytes + _TAG_BYTES)):
        try:
            piece = cipher.decrypt(_nonce(prefix, number, is_last), frame, about)
        except InvalidTag:
            raise SealedDamagedError(
                f"frame {number} of the sealed bundle does not open: it was changed, moved, cut, "
                "or belongs to another version"
            ) from None
        digest.update(piece)
        yield piece
    if not hmac.compare_digest(digest.hexdigest(), subject.sha256):
        raise SealedDamagedError("what was sealed has another digest than its version")


def data_key_id(data_key: bytes) -> bytes:
    """Eight bytes that tell data keys apart and tell nothing else of them."""
    return hmac.digest(data_key, b"darkroom data key id", "sha256")[:8]


def is_bundle(head: bytes) -> bool:
    """Whether bytes at the beginning of a file are those of a bundle."""
    return head.startswith(_MAGIC)


def _parse(header: bytes, data_key: bytes) -> tuple[int, bytes]:
    """Frame size and nonce prefix; they are authenticated with the first frame."""
    if len(header) < _HEADER.size or not is_bundle(header):
        raise SealedDamagedError("it is no sealed bundle, or its header is damaged")
    _, version, frame_bytes, key_id, prefix = _HEADER.unpack(header)
    if version != _VERSION:
        raise SealedDamagedError(f"the sealed bundle has format {version}, not {_VERSION}")
    if not 0 < frame_bytes <= _MOST_FRAME_BYTES:
        raise SealedDamagedError(f"the sealed bundle has frames of {frame_bytes} bytes")
    if key_id != data_key_id(data_key):
        raise SealedDamagedError("the bundle was sealed with another data key than its version's")
    return frame_bytes, prefix


def _frames(source: Readable, size: int) -> Iterator[tuple[bytes, bool]]:
    """Pieces of ``size`` bytes, the last of what is left, and whether it is the last.

    At least one: an empty file is one empty frame.
    """
    piece = _read(source, size)
    while len(piece) == size:
        following = _read(source, size)
        if not following:
            break
        yield piece, False
        piece = following
    yield piece, True


def _read(source: Readable, size: int) -> bytes:
    """Exactly ``size`` bytes, less only at the end."""
    pieces, left = [], size
    while left and (piece := source.read(left)):
        pieces.append(piece)
        left -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _nonce(prefix: bytes, number: int, is_last: bool) -> bytes:
    if number >= _MOST_FRAMES:
        raise SealedDamagedError(f"a sealed bundle has at most {_MOST_FRAMES} frames")
    return prefix + number.to_bytes(3, "big") + bytes([is_last])


def _associated_data(header: bytes, subject: Subject) -> bytes:
    # JSON, so that no two subjects have the same bytes wherever one name ends.
    return header + json.dumps(asdict(subject), sort_keys=True).encode()
