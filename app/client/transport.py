"""One road to the service: keys, retries with back-off, and errors as sentences."""

from __future__ import annotations

import json as jsonlib
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx2

from app.client.address import Address
from app.client.errors import NO_KEY, RETRY_STATUS, UNREACHABLE, ApiError

#: Of what is used up, what a short wait does not bring back: room in the store, a day's budget, a
#: month's training.
USED_UP = ("too_many_bytes", "query_budget_spent", "too_many_training_minutes")
#: The service still works on the first call under this Idempotency-Key.
IN_FLIGHT = "idempotency_key_in_flight"
_TRIES = 5
_LONGEST_PAUSE_SECONDS = 10.0

Query = Mapping[str, str | int | float | bool | None]
#: Called with why a call is about to be tried again, and the seconds until then.
OnRetry = Callable[[ApiError, float], None]


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer (or a 304) read whole."""

    status: int
    headers: httpx2.Headers
    content: bytes

    def json(self) -> dict[str, Any]:
        """The JSON object in the body.

        Raises:
            ApiError: the body is something else, so this is no Darkroom.
        """
        try:
            body = jsonlib.loads(self.content)
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise ApiError(
                "the answer is no JSON object; is this address a Darkroom?",
                code="not_darkroom",
                status=self.status,
            )
        return body

    @property
    def retry_after_seconds(self) -> float | None:
        """The ``Retry-After`` header in seconds, if it was sent."""
        return _retry_after(self.headers)


def road(*parts: str | int) -> str:
    """The path below ``/v1`` of these parts; whatever a user typed stays one part."""
    return "/".join(("/v1", *(quote(str(part), safe="") for part in parts)))


def back_off(attempt: int) -> float:
    """Seconds to pause after failed attempt 0, 1, …: exponential, with full jitter."""
    return random.uniform(0.05, min(5.0, 0.25 * 2**attempt))  # noqa: S311  no secret here


class Transport:
    """Calls the service; safe to share between threads.

    ``pause`` waits between tries, and tests replace it; ``on_retry`` hears of each wait first.
    """

    def __init__(
        self,
        address: Address,
        *,
        timeout_seconds: float = 30.0,
        http: httpx2.BaseTransport | None = None,
        links_http: httpx2.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
        on_retry: OnRetry | None = None,
    ) -> None:
        self.address = address
        self.pause = pause
        self._on_retry = on_retry
        self._timeout = httpx2.Timeout(timeout_seconds, connect=5.0)
        self._client = httpx2.Client(
            base_url=address.url,
            timeout=self._timeout,
            transport=http,
            trust_env=not address.is_local,
            headers={"User-Agent": "darkroom-client", "Accept": "application/json"},
        )
        # Presigned links carry their own right; the key never goes to another host.
        # Links of a service on this machine may lead to it too, past any proxy.
        direct = dict.fromkeys(("all://127.0.0.1", "all://localhost", "all://[::1]"))
        self._links = httpx2.Client(timeout=self._timeout, transport=links_http, mounts=direct)
        # Set once the service has answered: only then is a refused connection a restart.
        self._met = False

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        self._links.close()

    def put_link(self, url: str, body: bytes, *, tries: int = _TRIES) -> str:
        """Send ``body`` to a presigned link; the ETag of what was stored, without quotes.

        Raises:
            ApiError: the object store refused, or could not be reached (``unreachable``).
        """
        attempt = 0
        while True:
            try:
                response = self._links.put(url, content=body)
                if response.status_code < 400:
                    return str(response.headers.get("ETag", "")).strip('"')
                error = ApiError(
                    f"the object store refused a part with status {response.status_code}",
                    code="part_refused",
                    status=response.status_code,
                )
                # 400 and 403 are expired or wrong links: only a fresh link helps.
                final = response.status_code < 500 and response.status_code != 429
            except httpx2.TransportError as fault:
                error = ApiError(
                    f"the object store at {httpx2.URL(url).host} was not reached", code=UNREACHABLE
                )
                # A store this client cannot see at all will not appear by asking again.
                final = attempt == 0 and isinstance(fault, httpx2.ConnectError)
            attempt += 1
            if final or attempt >= tries:
                raise error
            self.pause(back_off(attempt - 1))

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        json: Any = None,
        content: Callable[[], Iterable[bytes]] | None = None,
        headers: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        timeout_seconds: float | None = None,
        tries: int = _TRIES,
    ) -> Answer:
        """The answer to one request, tried again while the service says "not now".

        ``content`` makes a fresh body for each try. Every POST carries an Idempotency-Key, so
        a second try never does a thing twice.

        Raises:
            ApiError: the service refused, or could not be reached.
        """
        sent = self._headers(method, headers, idempotency_key)
        timeout = self._timeout
        if timeout_seconds is not None:
            timeout = httpx2.Timeout(timeout_seconds, connect=5.0)
        attempt = 0
        while True:
            try:
                response = self._client.request(
                    method,
                    path,
                    params=_plain(query),
                    headers=sent,
                    timeout=timeout,
                    **_body(json, content),
                )
                self._met = True
                if response.status_code < 400:
                    return Answer(response.status_code, response.headers, response.content)
                error = self._refusal(response)
            except httpx2.TransportError as fault:
                error = self._lost(fault)
            attempt += 1
            if attempt >= tries or not self._worth_another(error):
                raise error
            seconds = _pause_before(error, attempt - 1)
            if self._on_retry is not None:
                self._on_retry(error, seconds)
            self.pause(seconds)

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str] | None = None, query: Query | None = None
    ) -> Iterator[httpx2.Response]:
        """The open answer to one GET, not tried again.

        Raises:
            ApiError: refused, or the connection was lost; also while the block reads.
        """
        try:
            with self._client.stream(
                "GET",
                path,
                params=_plain(query) or None,
                headers=self._headers("GET", headers, None),
            ) as response:
                self._met = True
                if response.status_code >= 400:
                    response.read()
                    raise self._refusal(response)
                yield response
        except httpx2.TransportError as fault:
            raise self._lost(fault) from fault

    def pages(
        self, path: str, query: Query | None = None, *, limit: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Every object of a list, fetched page by page as it is iterated."""
        asked = dict(query or {})
        if limit is not None:
            asked["limit"] = limit
        while True:
            body = self.call("GET", path, query=asked).json()
            yield from body["data"]
            after = body.get("next_cursor") or body.get("last_id")
            if not body.get("has_more") or after is None:
                return
            asked["after"] = after

    def _headers(
        self, method: str, extra: Mapping[str, str] | None, idempotency_key: str | None
    ) -> dict[str, str]:
        sent = dict(extra or {})
        if self.address.key is not None:
            sent["Authorization"] = f"Bearer {self.address.key}"
        if method == "POST":
            sent["Idempotency-Key"] = idempotency_key or str(uuid.uuid4())
        return sent

    def _worth_another(self, error: ApiError) -> bool:
        if error.code == UNREACHABLE:
            return self._met
        # Stored bytes do not go by themselves; a large file would be sent in vain again and again.
        if error.code in USED_UP:
            return False
        return error.status in RETRY_STATUS or error.code == IN_FLIGHT

    def _refusal(self, response: httpx2.Response) -> ApiError:
        if response.status_code == 401 and self.address.key is None:
            return ApiError(
                f"the Darkroom at {self.address.url} wants an API key: set DARKROOM_API_KEY, or "
                "run where `darkroom up` keeps its data",
                code=NO_KEY,
                status=401,
            )
        return ApiError.from_answer(
            response.status_code,
            response.content,
            reason=response.reason_phrase,
            request_id=response.headers.get("X-Request-Id"),
            retry_after_seconds=_retry_after(response.headers),
        )

    def _lost(self, fault: httpx2.TransportError) -> ApiError:
        url = self.address.url
        if isinstance(fault, httpx2.UnsupportedProtocol):
            detail = f"{url} is no address: it begins with http:// or https://"
        elif isinstance(fault, (httpx2.ConnectError, httpx2.ConnectTimeout)):
            detail = (
                f"no Darkroom at {url}: start one with `darkroom up`, or set DARKROOM_URL, or "
                "DARKROOM_DATA to the folder of one that runs"
            )
        elif isinstance(fault, httpx2.TimeoutException):
            detail = f"the Darkroom at {url} did not answer in time"
        else:
            detail = f"the connection to the Darkroom at {url} was lost"
        return ApiError(detail, code=UNREACHABLE)


def _body(json: Any, content: Callable[[], Iterable[bytes]] | None) -> dict[str, Any]:
    if content is not None:
        return {"content": content()}
    return {"json": json} if json is not None else {}


def _plain(query: Query | None) -> dict[str, str | int | float]:
    """Query parameters without those that are None; truth as ``true`` and ``false``."""
    return {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in (query or {}).items()
        if value is not None
    }


def _retry_after(headers: httpx2.Headers) -> float | None:
    value = headers.get("Retry-After", "")
    # The other form of RFC 9110, a date, is never sent by the service.
    return float(value) if value.isdigit() else None


def _pause_before(error: ApiError, attempt: int) -> float:
    if error.retry_after_seconds is not None:
        return min(error.retry_after_seconds, _LONGEST_PAUSE_SECONDS)
    return back_off(attempt)
