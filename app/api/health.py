"""Health: whether the process lives, and whether its parts answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from flask import Response, current_app

from app.api.parts import parts
from app.api.replies import send
from app.api.resource import Resource
from app.api.schemas.service import LiveAnswer, PartWord, ReadyAnswer
from app.db.durable import durability_faults
from app.errors import DarkroomError
from app.log import get_logger

#: A part that takes longer is not ready, whatever it says in the end.
_PATIENCE_SECONDS = 3.0

resource = Resource("health", "Health", "Whether the service can work.", prefix=None)
log = get_logger(__name__)


@resource.route_as("get", "/livez", answers={200: LiveAnswer}, guarded=False)
def get_live() -> Response:
    """Tell that the process answers; touches no other part."""
    return send(LiveAnswer(status="live"))


@resource.route_as("get", "/readyz", answers={200: ReadyAnswer, 503: ReadyAnswer}, guarded=False)
def get_ready() -> Response:
    """Tell whether database and object store answer; 503 names the part that does not."""
    probes: Probes = current_app.extensions.setdefault("darkroom.probes", Probes())
    here = parts()

    def database() -> bool:
        with here.db.anonymous() as session:
            faults = durability_faults(session)
        if faults and here.settings.require_durable:
            # Dispatcher and workers refuse to start on it; no job may be accepted either.
            log.error("database_not_durable", faults=faults)
            return False
        return True

    words = probes.run(
        {
            "database": database,
            "object_store": lambda: here.store.bucket_exists(here.settings.bucket),
        }
    )
    ready = all(word == "ok" for word in words.values())
    answer = ReadyAnswer(
        status="ready" if ready else "not_ready",
        database=words["database"],
        object_store=words["object_store"],
    )
    return send(answer, 200 if ready else 503)


class Probes:
    """Looks at parts with bounded patience; at most one look at each part is under way."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="ready")
        self._lock = threading.Lock()
        self._under_way: dict[str, Future[bool]] = {}

    def run(self, probes: dict[str, Callable[[], bool]]) -> dict[str, PartWord]:
        """Part → whether its probe said yes in time."""
        with self._lock:
            for name, probe in probes.items():
                last = self._under_way.get(name)
                if last is None or last.done():
                    self._under_way[name] = self._pool.submit(probe)
            looks = {name: self._under_way[name] for name in probes}
        return {name: _word(name, look) for name, look in looks.items()}


def _word(name: str, look: Future[bool]) -> PartWord:
    try:
        return "ok" if look.result(_PATIENCE_SECONDS) else "failing"
    except TimeoutError:
        log.warning("part_slow", part=name)
    except DarkroomError as error:
        log.warning("part_failing", part=name, detail=error.detail)
    except Exception as error:
        log.warning("part_failing", part=name, exc_info=error)
    return "failing"
