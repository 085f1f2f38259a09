"""Asks the system for the addresses of a name, once and not for longer than a few seconds."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from concurrent.futures import Future

from app.clock import monotonic_seconds

#: The system's own limit is half a minute and more, and no call can end it.
LOOKUP_SECONDS = 5.0
#: Look-ups of one process, those that hang too: each of them holds a thread until it ends.
_MOST = 32
#: Look-ups of one tenant, whose name servers may hang on purpose.
_MOST_EACH = 8


class Slots:
    """Places for look-ups, of which a tenant holds only a share. Threads share it."""

    def __init__(self, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._held: Counter[str] = Counter()
        self._freed = threading.Condition()

    def take(self, tenant_id: str, seconds: float) -> bool:
        """Hold a place for the tenant, after a wait where its share is used up; false if in vain.

        Where all places are held nobody waits: they hang, or others wait for them already.
        """
        with self._freed:
            until = monotonic_seconds() + seconds
            while self._held[tenant_id] >= self._most_each:
                if not self._freed.wait(max(0.0, until - monotonic_seconds())):
                    return False
            if self._held.total() >= self._most:
                return False
            self._held[tenant_id] += 1
            return True

    def give_back(self, tenant_id: str) -> None:
        """Let go of a place."""
        with self._freed:
            self._held[tenant_id] -= 1
            if not self._held[tenant_id]:
                del self._held[tenant_id]
            self._freed.notify_all()


_slots = Slots(_MOST, _MOST_EACH)


def look_up(host: str, tenant_id: str, *, seconds: float = LOOKUP_SECONDS) -> tuple[str, ...]:
    """The addresses of a tenant's host, in the order in which they should be tried.

    Raises:
        OSError: it was not found; TimeoutError where that took too long or too many hang.
    """
    slots, until = _slots, monotonic_seconds() + seconds
    if not slots.take(tenant_id, seconds):
        raise TimeoutError("too many names are being looked up")
    answer: Future[tuple[str, ...]] = Future()
    # Nobody waits for a look-up that hangs, not even the end of the process.
    thread = threading.Thread(
        target=_ask, args=(host, tenant_id, answer, slots), name="look-up", daemon=True
    )
    try:
        thread.start()
    except RuntimeError as error:
        slots.give_back(tenant_id)
        raise TimeoutError("no thread is left to look up a name") from error
    return answer.result(max(0.0, until - monotonic_seconds()))


def _ask(host: str, tenant_id: str, answer: Future[tuple[str, ...]], slots: Slots) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        answer.set_result(tuple(dict.fromkeys(str(each[4][0]) for each in found)))
    except UnicodeError:
        answer.set_exception(OSError(f"{host} is no name"))
    except OSError as error:
        answer.set_exception(error)
    finally:
        slots.give_back(tenant_id)
