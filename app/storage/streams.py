"""The two ends of an object's bytes: a body that is read, a file that is written."""

from __future__ import annotations

import contextlib
import hashlib
import io
from types import TracebackType
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError
from urllib3.exceptions import HTTPError

from app.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from app.storage.s3 import ObjectStore, PartInfo

#: S3 takes at most 10,000 parts; a part grows by one unit each time this many are sent,
#: which is room for 55,000 units.
_PARTS_PER_STEP = 1000


class ObjectStream:
    """An open object body of ``size`` bytes; ends with all of them or raises."""

    def __init__(self, body: Any, size: int, where: str, etag: str) -> None:
        self.size = size
        self.etag = etag
        self._body = body
        self._left = size
        self._where = where

    def read(self, size: int = -1, /) -> bytes:
        """At most ``size`` bytes, all that are left where it is negative; b"" at the end.

        Raises:
            StorageError: the body ended early or the connection broke.
        """
        if self._left == 0 or size == 0:
            return b""
        wanted = self._left if size < 0 else min(size, self._left)
        try:
            data: bytes = self._body.read(wanted)
        except (BotoCoreError, HTTPError, OSError) as error:
            raise self._short(type(error).__name__) from error
        if not data or (size < 0 and len(data) < wanted):
            raise self._short("it ended early")
        self._left -= len(data)
        return data

    def close(self) -> None:
        """Give the connection back; one that is read to the end is used again."""
        if self._body is not None:
            self._body.close()

    def __enter__(self) -> ObjectStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _short(self, why: str) -> StorageError:
        done = self.size - self._left
        return StorageError(f"{self._where} broke at byte {done} of {self.size}: {why}")


class ObjectWriter(io.RawIOBase):
    """A write-only file whose bytes become one object; made by ``ObjectStore.writer``.

    Closing it stores nothing: only the end of the ``writer`` block does, so that a file
    that was left by an exception never appears.
    """

    def __init__(
        self, store: ObjectStore, bucket: str, key: str, content_type: str, part_bytes: int
    ) -> None:
        super().__init__()
        self._store = store
        self._bucket = bucket
        self._key = key
        self._content_type = content_type
        self._unit_bytes = part_bytes
        self._buffer = bytearray()
        self._multipart_id: str | None = None
        self._parts: list[PartInfo] = []
        self._hash = hashlib.sha256()
        self.size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of what was written so far, in hex."""
        return self._hash.hexdigest()

    def writable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def write(self, data: ReadableBuffer, /) -> int:
        """Take all of ``data``, sending a part whenever one is full."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self.size += len(view)
        position = 0
        while position < len(view):
            room = self._part_bytes - len(self._buffer)
            self._buffer += view[position : position + room]
            position += room
            if len(self._buffer) >= self._part_bytes:
                self._send_part()
        return len(view)

    def complete(self) -> None:
        """Store the object: one PUT where it is small, else the last part and the sum."""
        if self._multipart_id is None:
            self._store.put(self._bucket, self._key, bytes(self._buffer), self._content_type)
        else:
            if self._buffer:
                self._send_part()
            self._store.complete_multipart(self._bucket, self._key, self._multipart_id, self._parts)
        self._multipart_id = None
        self._buffer.clear()

    def abort(self) -> None:
        """Discard what was sent; a store that does not answer leaves it to the sweeper."""
        self._buffer.clear()
        if self._multipart_id is None:
            return
        with contextlib.suppress(StorageError):
            self._store.abort_multipart(self._bucket, self._key, self._multipart_id)
        self._multipart_id = None

    @property
    def _part_bytes(self) -> int:
        return self._unit_bytes * (1 + len(self._parts) // _PARTS_PER_STEP)

    def _send_part(self) -> None:
        if self._multipart_id is None:
            self._multipart_id = self._store.begin_multipart(
                self._bucket, self._key, self._content_type
            )
        # The buffer itself and no copy of it: a part is most of the memory of an upload.
        body, self._buffer = self._buffer, bytearray()
        self._parts.append(
            self._store.put_part(
                self._bucket, self._key, self._multipart_id, len(self._parts) + 1, body
            )
        )
