"""Bytes of a chunk's items from the object store, in order.

Items that lie one behind the other in one object are one ranged GET whose stream is cut as
it arrives; whole objects are fetched a few at a time ahead of the reader.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby

from app.errors import DarkroomError, StorageAwayError, StorageError, TooLargeError
from worker.pipeline.retry import RetryBudget
from worker.pipeline.values import ByteStream, ItemRef, Store

_READ_BYTES = 1024 * 1024
#: What a run of small items is read in.
_PIECE_BYTES = 128 * 1024
#: Bytes between two items of one object (an archive's headers) that are cheaper to read
#: and drop than to open a second stream for.
_GAP_BYTES = 64 * 1024
_FETCH_THREADS = 8


@dataclass(frozen=True, slots=True)
class FetchedItem:
    """One item's bytes, or the error that kept them away."""

    item: ItemRef
    data: bytes = b""
    error: DarkroomError | None = None


def fetch_items(
    items: Sequence[ItemRef], *, store: Store, max_bytes: int, budget: RetryBudget
) -> Iterator[FetchedItem]:
    """Yield every item with its bytes or its error, in the order of ``items``.

    Permanent errors are never tried again, transient ones within ``budget``. Anything that
    is no storage error is a fault of ours and is raised.
    """
    for is_run, groups in groupby(_one_get_each(items, max_bytes), lambda group: len(group) > 1):
        if is_run:
            for group in groups:
                yield from _fetch_run(group, store, budget)
        else:
            singles = [group[0] for group in groups]
            yield from _fetch_ahead(singles, store, max_bytes, budget)


def _one_get_each(items: Sequence[ItemRef], max_bytes: int) -> Iterator[list[ItemRef]]:
    """Cut the items into groups that one GET serves each."""
    group: list[ItemRef] = []
    for item in items:
        if group and not _follows(group[-1], item, max_bytes):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _follows(before: ItemRef, item: ItemRef, max_bytes: int) -> bool:
    if (
        before.offset is None
        or item.offset is None
        or (before.bucket, before.key)
        != (
            item.bucket,
            item.key,
        )
    ):
        return False
    if before.length is None or item.length is None:
        return False
    if before.length > max_bytes or item.length > max_bytes:
        return False
    return 0 <= item.offset - (before.offset + before.length) <= _GAP_BYTES


def _fetch_run(group: list[ItemRef], store: Store, budget: RetryBudget) -> Iterator[FetchedItem]:
    """One ranged GET for the whole group; a broken stream is opened again where it broke."""
    done = 0
    failures = 0
    while done < len(group):
        try:
            if budget.is_hopeless:
                raise _store_away(group[done])
            for fetched in _cut_stream(group[done:], store):
                budget.answered()
                done += 1
                failures = 0
                yield fetched
        except (DarkroomError, OSError) as raised:
            error = _as_storage_error(raised, group[done])
            failures += 1
            if budget.wait_to_retry(error, failures):
                continue
            if error.retryable:
                # Only this item failed for certain; the next one may lie on healthy disks.
                yield FetchedItem(group[done], error=error)
                done, failures = done + 1, 0
                continue
            for item in group[done:]:
                yield FetchedItem(item, error=error)
            return


def _cut_stream(group: list[ItemRef], store: Store) -> Iterator[FetchedItem]:
    first, last = group[0], group[-1]
    position, _ = _range(first)
    end = sum(_range(last))
    with closing(store.open(first.bucket, first.key, position, end - position)) as body:
        stream = _Buffered(body)
        for item in group:
            offset, length = _range(item)
            _read_exactly(stream, offset - position, item)
            data = _read_exactly(stream, length, item)
            position = offset + length
            yield FetchedItem(item, data)


class _Buffered:
    """Reads a stream in large pieces: a client's own read costs more than a tiny image is worth."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._data = b""
        self._position = 0

    def read(self, size: int) -> bytes:
        """The next bytes, at most ``size``; empty at the end."""
        if self._position == len(self._data):
            if size >= _PIECE_BYTES:
                return self._stream.read(size)
            self._data, self._position = self._stream.read(_PIECE_BYTES), 0
        piece = self._data[self._position : self._position + size]
        self._position += len(piece)
        return piece


def _range(item: ItemRef) -> tuple[int, int]:
    """Offset and length of an item of a run, where both are known."""
    assert item.offset is not None
    assert item.length is not None
    return item.offset, item.length


def _fetch_ahead(
    items: list[ItemRef], store: Store, max_bytes: int, budget: RetryBudget
) -> Iterator[FetchedItem]:
    """Fetch single items in a few threads, never more than twice their number ahead."""
    threads = min(_FETCH_THREADS, len(items))
    waiting: deque[Future[FetchedItem]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="fetch")
    try:
        for item in items:
            waiting.append(pool.submit(_fetch_single, item, store, max_bytes, budget))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _fetch_single(item: ItemRef, store: Store, max_bytes: int, budget: RetryBudget) -> FetchedItem:
    failures = 0
    while True:
        try:
            if budget.is_hopeless:
                raise _store_away(item)
            data = _read_single(item, store, max_bytes)
            budget.answered()
            return FetchedItem(item, data)
        except (DarkroomError, OSError) as raised:
            error = _as_storage_error(raised, item)
            failures += 1
            if not budget.wait_to_retry(error, failures):
                return FetchedItem(item, error=error)


def _read_single(item: ItemRef, store: Store, max_bytes: int) -> bytes:
    if item.length is not None and item.length > max_bytes:
        raise _too_large(item, max_bytes)
    if item.offset is not None and item.length is not None:
        stream = store.open(item.bucket, item.key, item.offset, item.length)
        with closing(stream):
            return _read_exactly(stream, item.length, item)
    parts: list[bytes] = []
    size = 0
    with closing(store.open(item.bucket, item.key, item.offset)) as stream:
        while part := stream.read(_READ_BYTES):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise _too_large(item, max_bytes)
    return b"".join(parts)


def _read_exactly(stream: ByteStream | _Buffered, length: int, item: ItemRef) -> bytes:
    first = stream.read(min(length, _READ_BYTES)) if length else b""
    if len(first) == length:
        return first
    parts = [first]
    missing = length - len(first)
    while missing:
        part = stream.read(min(missing, _READ_BYTES))
        if not part:
            raise StorageError(
                f"{item.bucket}/{item.key} ended {missing} bytes before the end of item "
                f"{item.ordinal}"
            )
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def _store_away(item: ItemRef) -> StorageAwayError:
    return StorageAwayError(
        f"{item.bucket}/{item.key} was not asked for: the object store failed again and again"
    )


def _too_large(item: ItemRef, max_bytes: int) -> TooLargeError:
    return TooLargeError(f"{item.key} is larger than the limit of {max_bytes} bytes")


def _as_storage_error(raised: DarkroomError | OSError, item: ItemRef) -> DarkroomError:
    if isinstance(raised, DarkroomError):
        return raised
    return StorageAwayError(f"reading {item.bucket}/{item.key} failed: {raised}")
