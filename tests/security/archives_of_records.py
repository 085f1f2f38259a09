"""Archives of record files that lie about their count, or are bombs."""

from __future__ import annotations

import gzip
import struct

from tests.security.archive_cases import MIB, good_zip, refuse
from tests.security.raw_archives import ZipMember


def _idx(count: int, rows: int, columns: int, body: bytes) -> bytes:
    return b"\x00\x00\x08\x03" + struct.pack(">3I", count, rows, columns) + body


refuse(
    "records-count-lies",
    "records_invalid",
    lambda: good_zip(ZipMember(b"train-images-idx3-ubyte", _idx(2**32 - 1, 4096, 4096, b"x"))),
)
refuse(
    "records-of-a-pixel",
    "archive_too_large",
    lambda: good_zip(ZipMember(b"train-images-idx3-ubyte", _idx(32 * MIB, 1, 1, bytes(32 * MIB)))),
)


def _records_bomb() -> bytes:
    """Files that alone may expand as they do, and together may not."""
    packed = gzip.compress(_idx(3, 4096, 4096, bytes(48 * MIB)), 1)
    names = [b"%d/train-images-idx3-ubyte.gz" % number for number in range(3)]
    return good_zip(*[ZipMember(name, packed) for name in names])


refuse("records-bomb-in-gzip", "archive_bomb", _records_bomb)
refuse(
    "records-label-lies",
    "records_invalid",
    lambda: good_zip(ZipMember(b"data_batch_1.bin", b"\xff" * 3073)),
)
