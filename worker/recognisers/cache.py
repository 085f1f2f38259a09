"""Recognisers kept warm between chunks, the least recently used let go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future

from worker.recognisers.load import Recogniser


class RecogniserCache:
    """Warm recognisers by version id, at most ``max_bytes`` of weights; thread-safe.

    Two threads that ask for one version at once wait for one load. The newest recogniser
    stays even where it alone is over the bound.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Future[Recogniser]] = OrderedDict()
        self._lock = threading.Lock()
        # Outlives the recogniser: loaded again it would have to learn what fits once more.
        self._fitting: dict[str, int | None] = {}

    def get(self, version_id: str, load: Callable[[], Recogniser]) -> Recogniser:
        """The warm recogniser of a version, or the one that ``load`` gives.

        Raises:
            Exception: whatever ``load`` raised; the next caller tries again.
        """
        with self._lock:
            entry = self._entries.get(version_id)
            is_first = entry is None
            if entry is None:
                entry = self._entries[version_id] = Future()
            self._entries.move_to_end(version_id)
        if is_first:
            self._fill(version_id, entry, load)
        return entry.result()

    def version_ids(self) -> list[str]:
        """Versions that are warm now, the most recently used first."""
        with self._lock:
            return [key for key, entry in reversed(self._entries.items()) if _is_warm(entry)]

    def forget(self, version_id: str) -> None:
        """Let a version go; whoever computes with it keeps it until the end of the chunk."""
        with self._lock:
            self._entries.pop(version_id, None)

    def _fill(
        self, version_id: str, entry: Future[Recogniser], load: Callable[[], Recogniser]
    ) -> None:
        try:
            recogniser = load()
        except BaseException as error:
            self.forget(version_id)
            entry.set_exception(error)
            return
        recogniser.fitting_images = self._fitting.pop(version_id, None)
        entry.set_result(recogniser)
        self._let_go()

    def _let_go(self) -> None:
        with self._lock:
            warm = [(key, entry) for key, entry in self._entries.items() if _is_warm(entry)]
            total = sum(entry.result().bytes for _, entry in warm)
            for key, entry in warm[:-1]:
                if total <= self._max_bytes:
                    return
                total -= entry.result().bytes
                self._fitting[key] = entry.result().fitting_images
                del self._entries[key]


def _is_warm(entry: Future[Recogniser]) -> bool:
    return entry.done() and entry.exception() is None
