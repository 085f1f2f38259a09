"""Follows a job's events over server-sent events, and goes on after a lost connection."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from app.client.errors import OUTAGE_SECONDS, ApiError
from app.client.transport import Transport, back_off, road
from app.client.values import Event

_FIRST_RETRY_SECONDS = 1.0


@dataclass(slots=True)
class _Place:
    """How far a stream has been read, and how long to stay away when it closes."""

    last_id: str
    retry_seconds: float = _FIRST_RETRY_SECONDS


def follow_events(
    transport: Transport, job_id: str, *, after: int, now: Callable[[], float] = time.monotonic
) -> Iterator[Event]:
    """Every event with a number above ``after``, each once, until the one that ends the job.

    Raises:
        ApiError: refused, or away for longer than a restart takes.
    """
    place, met, heard = _Place(str(after)), False, now()
    while True:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": place.last_id}
        try:
            with transport.stream(road("jobs", job_id, "events"), headers=headers) as response:
                met, heard = True, now()
                if response.status_code == 204:
                    return
                for event in _read(response.iter_lines(), place):
                    heard = now()
                    yield event
                    if event.is_last:
                        return
        except ApiError as error:
            if not met or not error.may_pass or now() - heard > OUTAGE_SECONDS:
                raise
            transport.pause(back_off(4))
        else:
            transport.pause(place.retry_seconds)


def _read(lines: Iterable[str], place: _Place) -> Iterator[Event]:
    """The events in a stream; one that was cut off before its empty line is not there."""
    number, data = "", ""
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            number = value
        elif name == "data":
            data = value
        elif name == "retry" and value.isdigit():
            place.retry_seconds = int(value) / 1000
        elif not line and data:
            # Before the caller sees it: whatever it does with it, it has had it.
            place.last_id = number
            yield Event.from_dict(json.loads(data))
            number, data = "", ""
