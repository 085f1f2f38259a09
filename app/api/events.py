"""What happened to a job, as a stream of server-sent events that loses none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from flask import Response, request

from app.api.parts import Parts, parts, principal
from app.api.replies import as_json, page_fields, send
from app.api.resource import Resource
from app.api.schemas.events import LAST_EVENT_PATTERN, EventAnswer, EventPage, EventsQuery
from app.api.schemas.jobs import JobPath
from app.clock import monotonic_seconds
from app.errors import InvalidInputError, UnavailableError
from app.jobs.events import TERMINAL_EVENT_TYPES, Event, has_ended, page_events
from app.log import get_logger
from app.tenants.scopes import Scope

log = get_logger(__name__)

resource = Resource("events", "Events", "What happened to a job, as it happens.")

STREAM = "text/event-stream"
#: The first where the client does not mind.
_FORMS = (STREAM, "application/json")
#: Proxies close what is silent, and only a write tells that the client has gone.
_HEARTBEAT_SECONDS = 15.0
#: Then the client comes back: its key is checked again, and others get the place.
_LONGEST_SECONDS = 300.0
#: When to come back, in milliseconds: after a loss, and where all places are taken.
_RETRY_MS, _RETRY_FULL_MS = 1_000, 3_000
_PAGE = 200


@resource.route_as(
    "get",
    "/jobs/<job_id>/events",
    answers={200: (EventPage, STREAM), 204: None},
    scope=Scope.JOBS_READ,
    takes=["LastEventId"],
)
def list_events(path: JobPath, query: EventsQuery) -> Response:
    """Follow what happens to a job.

    A stream of server-sent events: `id` is the event's number, `event` its type, `data` the
    event as JSON. It ends with the event that ends the job. After a lost connection go on with
    `Last-Event-ID`, as browsers do by themselves: each event comes once. 204 means that the job
    has ended and nothing follows. If too many wait already, the stream has what there is and
    then closes; `retry` says when to come back. With `Accept: application/json` the answer is a
    page of the events so far.
    """
    here, tenant_id = parts(), principal().tenant_id
    last = _last_event_id()
    after = query.after if last is None else last
    if request.accept_mimetypes.best_match(_FORMS, default=STREAM) != STREAM:
        with here.db.tenant(tenant_id) as session:
            has_ended(session, tenant_id, path.job_id)
            rows, has_more = page_events(
                session, tenant_id, path.job_id, after=after, limit=query.limit
            )
        return send(
            EventPage(**page_fields(rows, has_more, show_event, lambda row: str(row.number)))
        )
    stream = _Stream(here, tenant_id, path.job_id, after)
    first = stream.look()
    if first.is_last and not first.rows:
        return Response(status=204)
    headers = {
        # nginx would hold events back until it has a buffer full of them.
        "X-Accel-Buffering": "no",
        "Cache-Control": "no-store",
    }
    pieces: Iterator[str] = iter(()) if request.method == "HEAD" else stream.pieces(first)
    return Response(pieces, 200, headers, content_type=f"{STREAM}; charset=utf-8")


def show_event(event: Event) -> EventAnswer:
    """An event as an answer."""
    return EventAnswer.model_validate(
        {
            "id": str(event.number),
            "type": event.type,
            "job_id": event.job_id,
            "created_at": event.created_at,
            "data": event.data,
        }
    )


def _last_event_id() -> int | None:
    given = request.headers.get("Last-Event-ID")
    if given is None:
        return None
    if not re.fullmatch(LAST_EVENT_PATTERN, given.strip()):
        raise InvalidInputError(
            "Last-Event-ID must be the id of an event of this job: a number",
            code="last_event_id_invalid",
        )
    return int(given)


@dataclass(frozen=True, slots=True)
class _Look:
    """The events after some number, and whether none will ever follow them."""

    rows: list[Event]
    is_last: bool


class _Stream:
    """One client that follows one job."""

    def __init__(self, here: Parts, tenant_id: str, job_id: str, after: int) -> None:
        self._here = here
        self._tenant_id = tenant_id
        self._job_id = job_id
        self._after = after

    def look(self) -> _Look:
        """The next events; a transaction of its own, so that no connection is held between."""
        with self._here.db.tenant(self._tenant_id) as session:
            # The job first: where it has ended by now, the events read next are all there are.
            is_over = has_ended(session, self._tenant_id, self._job_id)
            rows, has_more = page_events(
                session, self._tenant_id, self._job_id, after=self._after, limit=_PAGE
            )
        if rows:
            self._after = rows[-1].number
        ended = bool(rows) and rows[-1].type in TERMINAL_EVENT_TYPES
        return _Look(rows, not has_more and (is_over or ended))

    def pieces(self, seen: _Look) -> Iterator[str]:
        """The stream's text from ``seen`` on, until the job's last event or the longest time."""
        try:
            yield from self._pieces(seen)
        except UnavailableError as error:
            # The head of the answer is gone already: the client comes back and goes on.
            log.warning("part_unavailable", code=error.code, detail=error.detail)

    def _pieces(self, seen: _Look) -> Iterator[str]:
        yield f"retry: {_RETRY_MS}\n\n"
        yield from map(_as_text, seen.rows)
        while seen.rows and not seen.is_last:
            seen = self.look()
            yield from map(_as_text, seen.rows)
        if seen.is_last:
            return
        slots = self._here.slots
        # From here on it waits, and holds a place until the client goes or the job ends.
        with slots.take() as taken:
            if not taken:
                yield f"retry: {_RETRY_FULL_MS}\n\n"
                return
            until = monotonic_seconds() + _LONGEST_SECONDS
            while not seen.is_last and monotonic_seconds() < until and not slots.is_closing:
                seen = self._wait()
                yield from map(_as_text, seen.rows) if seen.rows else (":\n\n",)

    def _wait(self) -> _Look:
        """The next events as soon as there are any; none after the time of a heartbeat."""
        seen = _Look([], False)

        def is_news() -> bool:
            nonlocal seen
            seen = self.look()
            return bool(seen.rows) or seen.is_last

        self._here.slots.wait_until(is_news, _HEARTBEAT_SECONDS)
        return seen


def _as_text(event: Event) -> str:
    data = json.dumps(as_json(show_event(event)), separators=(",", ":"))
    return f"id: {event.number}\nevent: {event.type}\ndata: {data}\n\n"
