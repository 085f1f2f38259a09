"""Fetch and decode joined by a bounded queue: a chunk's images as pixels, in order."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt

from app.errors import DarkroomError
from app.models.spec import PreprocessSpec
from app.points import reach
from worker.pipeline.channel import Channel, ChannelClosedError
from worker.pipeline.decode import DecodePool
from worker.pipeline.fetch import FetchedItem, fetch_items
from worker.pipeline.retry import RetryBudget
from worker.pipeline.timing import Stopwatch
from worker.pipeline.values import ItemRef, Store

#: A run ends at whichever comes first: large photos go a few at a time, so that all
#: children have work, small pictures many at a time, so that messages cost little. The
#: pixels that come out are bounded too: a network that takes large images may fill memory.
_RUN_ITEMS = 32
_RUN_BYTES = 512 * 1024
_RUN_PIXEL_BYTES = 32 * 1024 * 1024
#: Failed reads that are tried again: so many, or one for so many items where those are more.
_RETRIES = 32
_ITEMS_PER_RETRY = 128


@dataclass(frozen=True, slots=True)
class DecodedItem:
    """One item's pixels, uint8 [height, width, 3], or its error."""

    item: ItemRef
    pixels: npt.NDArray[np.uint8] | None = None
    error: DarkroomError | None = None


@dataclass(frozen=True, slots=True)
class _Run:
    items: list[DecodedItem]
    decode_seconds: float


class DecodedStream:
    """The items of a chunk, fetched and decoded ahead of the reader, in their order.

    Use as a context manager: leaving it ends every stage, whatever state it is in.
    A stage that fails unexpectedly ends the others and raises here.
    """

    def __init__(
        self,
        items: Sequence[ItemRef],
        *,
        store: Store,
        decoder: DecodePool,
        preprocess: PreprocessSpec,
        on_fetched: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_fetched`` hears of every try to read from the store that ended."""
        self._items = items
        self._on_fetched = on_fetched
        self._store = store
        self._decoder = decoder
        self._preprocess = preprocess
        fitting = _RUN_PIXEL_BYTES // math.prod(preprocess.output_shape)
        self._run_items = min(_RUN_ITEMS, max(fitting, 1))
        self._halt = threading.Event()
        # Every child at work and one run waiting for each: more would only hold memory.
        self._runs: Channel[Future[_Run]] = Channel(2 * decoder.processes)
        self._pool = ThreadPoolExecutor(decoder.processes, thread_name_prefix="decode")
        self._fetcher = threading.Thread(target=self._fetch, name="fetch", daemon=True)
        self._fetch_watch = Stopwatch()
        self.decode_seconds = 0.0

    @property
    def fetch_seconds(self) -> float:
        """Seconds spent reading from the store so far."""
        return self._fetch_watch.seconds

    def __enter__(self) -> DecodedStream:
        self._fetcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._halt.set()
        self._runs.close()
        self._fetcher.join()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __iter__(self) -> Iterator[DecodedItem]:
        for future in self._runs:
            run = future.result()
            self.decode_seconds += run.decode_seconds
            yield from run.items

    def _fetch(self) -> None:
        try:
            budget = RetryBudget(
                # More for an epoch's images than for a chunk's.
                total=max(_RETRIES, len(self._items) // _ITEMS_PER_RETRY),
                halt=self._halt,
                on_end=self._on_fetched,
            )
            fetched = fetch_items(
                self._items, store=self._store, max_bytes=self._decoder.max_bytes, budget=budget
            )
            with closing(fetched):  # type: ignore[type-var]
                self._cut_runs(fetched)
            self._runs.finish()
        except ChannelClosedError:
            pass
        except BaseException as error:
            self._runs.fail(error)

    def _cut_runs(self, fetched: Iterator[FetchedItem]) -> None:
        run: list[FetchedItem] = []
        run_bytes = 0
        while not self._halt.is_set():
            with self._fetch_watch:
                entry = next(fetched, None)
            if entry is not None:
                run.append(entry)
                run_bytes += len(entry.data)
            if run and (entry is None or len(run) >= self._run_items or run_bytes >= _RUN_BYTES):
                self._runs.put(self._pool.submit(self._decode, run))
                run, run_bytes = [], 0
            if entry is None:
                return

    def _decode(self, run: list[FetchedItem]) -> _Run:
        reach("fetched")
        fetched = [entry for entry in run if entry.error is None]
        decoded = self._decoder.decode([entry.data for entry in fetched], self._preprocess)
        reach("decoded")
        rows = iter(zip(decoded.pixels, decoded.errors, strict=True))
        items: list[DecodedItem] = []
        for entry in run:
            if entry.error is not None:
                items.append(DecodedItem(entry.item, error=entry.error))
                continue
            pixels, error = next(rows)
            items.append(DecodedItem(entry.item, None if error else pixels, error))
        return _Run(items, decoded.seconds)
