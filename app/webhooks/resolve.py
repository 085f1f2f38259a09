"""Asks the system for the addresses of a name, once and not for longer than a few seconds."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import Future

#: The system's own limit is half a minute and more, and no call can end it.
LOOKUP_SECONDS = 5.0
#: Look-ups of one process, those that hang too: each of them holds a thread until it ends.
_MOST = 32
_slots = threading.BoundedSemaphore(_MOST)


def look_up(host: str, *, seconds: float = LOOKUP_SECONDS) -> tuple[str, ...]:
    """The addresses of a host, in the order in which they should be tried.

    Raises:
        OSError: it was not found; TimeoutError where that took too long or too many hang.
    """
    slots = _slots
    if not slots.acquire(blocking=False):
        raise TimeoutError("too many names are being looked up")
    answer: Future[tuple[str, ...]] = Future()
    # Nobody waits for a look-up that hangs, not even the end of the process.
    thread = threading.Thread(target=_ask, args=(host, answer, slots), name="look-up", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        slots.release()
        raise TimeoutError("no thread is left to look up a name") from error
    return answer.result(seconds)


def _ask(host: str, answer: Future[tuple[str, ...]], slots: threading.BoundedSemaphore) -> None:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        answer.set_result(tuple(dict.fromkeys(str(each[4][0]) for each in found)))
    except UnicodeError:
        answer.set_exception(OSError(f"{host} is no name"))
    except OSError as error:
        answer.set_exception(error)
    finally:
        slots.release()
