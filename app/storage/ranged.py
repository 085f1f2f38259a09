"""A seekable file over an object: archives are read from S3 without a disk between."""

from __future__ import annotations

import io
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from app.errors import InvalidInputError, StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from app.storage.s3 import ObjectStore

_BLOCK_BYTES = 8 * 1024 * 1024
#: The block in hand and the one before: an archive's end and its beginning.
_BLOCKS_KEPT = 2
_BUFFER_BYTES = 1024 * 1024
_ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.1


def open_ranged(
    store: ObjectStore,
    bucket: str,
    key: str,
    *,
    block_bytes: int = _BLOCK_BYTES,
    on_block: Callable[[], None] = lambda: None,
) -> io.BufferedReader:
    """A buffered, seekable, read-only file over an object, with bounded memory.

    ``on_block`` hears of every block that came from the store.

    Raises:
        ObjectMissingError: there is no such object.
        StorageError: the store failed; reading raises it too.
        InvalidInputError: ``object_changed``, from a read after the object was replaced.
    """
    return io.BufferedReader(RangedFile(store, bucket, key, block_bytes, on_block), _BUFFER_BYTES)


class RangedFile(io.RawIOBase):
    """Reads an object by ranged GETs of whole blocks, keeping the two last used."""

    def __init__(
        self,
        store: ObjectStore,
        bucket: str,
        key: str,
        block_bytes: int,
        on_block: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        self._store = store
        self._bucket = bucket
        self._key = key
        self._block_bytes = block_bytes
        self._on_block = on_block
        info = store.head(bucket, key)
        self._size = info.size
        self._etag = info.etag
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def tell(self) -> int:
        """The offset of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to ``offset``; costs nothing until the next read."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"cannot seek to {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` from the block at hand; fewer bytes at a block's end, 0 at the end."""
        if self._position >= self._size:
            return 0
        number, start = divmod(self._position, self._block_bytes)
        block = self._block(number)
        view = memoryview(buffer).cast("B")
        count = min(len(view), len(block) - start)
        view[:count] = memoryview(block)[start : start + count]
        self._position += count
        return count

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            # Let the old one go first, so that never more than the kept ones are in memory.
            while len(self._blocks) >= _BLOCKS_KEPT:
                self._blocks.popitem(last=False)
            block = self._blocks[number] = self._fetch(number)
            self._on_block()
        else:
            self._blocks.move_to_end(number)
        return block

    def _fetch(self, number: int) -> bytes:
        start = number * self._block_bytes
        length = min(self._block_bytes, self._size - start)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                with self._store.open(self._bucket, self._key, start, length) as stream:
                    if stream.etag != self._etag:
                        raise InvalidInputError(
                            f"s3://{self._bucket}/{self._key} was replaced while it was read",
                            code="object_changed",
                        )
                    return stream.read()
            except StorageError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("the loop returns or raises")
