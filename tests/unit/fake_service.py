"""A service in memory for the client's and the command line's tests: answers are queued by road."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import httpx2

from app.client import Darkroom

Reply = httpx2.Response | Exception | Callable[[httpx2.Request], httpx2.Response]

URL = "http://darkroom.test"
KEY = "dk_test"
#: An archive whose images are packed.
UPLOAD = {
    "id": "upl_1",
    "kind": "archive",
    "state": "ready",
    "filename": "photos.zip",
    "size_bytes": 1500000,
    "image_count": 4,
    "failed_count": 0,
}


class FakeService:
    """Gives the replies queued for ``METHOD /path`` in turn, the last one again and again."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self.pauses: list[float] = []
        self._replies: dict[str, list[Reply]] = defaultdict(list)

    def on(self, road: str, *replies: Reply) -> None:
        """Queue replies for a road such as ``GET /v1/jobs``."""
        self._replies[road].extend(replies)

    def asked(self, road: str) -> list[httpx2.Request]:
        """The requests that took a road, in order."""
        return [each for each in self.requests if f"{each.method} {each.url.path}" == road]

    @property
    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._answer)

    def client(self, **words: Any) -> Darkroom:
        """A client of the service; ``words`` are further ones of :class:`Darkroom`."""
        http = self.transport
        return Darkroom(URL, KEY, http=http, links_http=http, pause=self.pauses.append, **words)

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        queued = self._replies.get(f"{request.method} {request.url.path}")
        if not queued:
            return problem(404, "not_found", f"nothing at {request.url.path}")
        reply = queued.pop(0) if len(queued) > 1 else queued[0]
        if isinstance(reply, Exception):
            raise reply
        return reply(request) if callable(reply) else reply


def sent(service: FakeService, road: str) -> Any:
    """The body of the last request that took a road."""
    return json.loads(service.asked(road)[-1].content)


def answer(body: Any, status: int = 200, **headers: str) -> httpx2.Response:
    """A JSON answer; ``Retry_After`` becomes ``Retry-After``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, json=body, headers=named)


def problem(status: int, code: str, detail: str, **more: Any) -> httpx2.Response:
    """An RFC 9457 answer."""
    headers = {"Retry-After": str(more.pop("retry_after"))} if "retry_after" in more else {}
    body = {"status": status, "code": code, "detail": detail, **more}
    return httpx2.Response(
        status,
        content=json.dumps(body),
        headers={"Content-Type": "application/problem+json", **headers},
    )


def page(rows: list[Any], *, more: bool = False, cursor: str | None = None) -> httpx2.Response:
    """One page of a list."""
    ids = [row.get("id") for row in rows]
    return answer(
        {
            "data": rows,
            "first_id": ids[0] if ids else None,
            "last_id": ids[-1] if ids else None,
            "next_cursor": cursor,
            "has_more": more,
        }
    )


def job(state: str = "succeeded", **fields: Any) -> dict[str, Any]:
    """A job as the service shows it."""
    counts = {"total": 4, "done": 4, "succeeded": 4, "failed": 0, "skipped": 0, "cancelled": 0}
    counts.update(fields.pop("counts", {}))
    return {
        "id": "job_1",
        "kind": "predict",
        "state": state,
        "created_at": "2026-11-01T10:00:00+00:00",
        "running_at": "2026-11-01T10:00:01+00:00",
        "ended_at": "2026-11-01T10:00:03+00:00" if state == "succeeded" else None,
        "counts": counts,
        "progress": {"fraction": None, "step": None, "steps": None, "unit": None},
        "images_per_second": 2.0,
        "eta_seconds": None,
        "result": None,
        "error": None,
        **fields,
    }
