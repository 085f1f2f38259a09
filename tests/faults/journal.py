"""The client: submits over HTTP, and writes down every 202 before it goes on.

What it was promised is what stands in its journal, not what the database says.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.clock import monotonic_seconds

#: Beyond this a request is given up and sent again under the same key.
_ANSWER_SECONDS = 15.0
#: A service that stays away longer than this is a failed run.
_PATIENCE_SECONDS = 120.0
_NOT_NOW = frozenset({409, 429, 500, 502, 503, 504})


class NoAnswerError(Exception):
    """The service accepted nothing within the client's patience."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A tenant as a client: its id (for the oracle) and its key."""

    tenant_id: str
    key: str


class Journal:
    """Accepted jobs, one fsynced line each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def write(self, **line: Any) -> None:
        """Append a line; it outlives this process and the machine."""
        with self._lock:
            os.write(self._handle, json.dumps(line).encode() + b"\n")
            os.fsync(self._handle)

    def job_ids(self, family: str) -> dict[str, str]:
        """Ids of the accepted jobs of a family by the key they were asked for under."""
        lines = [json.loads(line) for line in self._path.read_text().splitlines()]
        return {line["key"]: line["job"] for line in lines if line["family"] == family}

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._handle)


class Client:
    """Posts until there is an answer, always under the same Idempotency-Key."""

    def __init__(self, port: Callable[[], int], journal: Journal) -> None:
        self._port = port
        self._journal = journal
        #: Requests that got no answer and were sent again.
        self.unheard = 0

    def submit(self, caller: Caller, family: str, body: dict[str, Any]) -> str:
        """The id of the job that the service accepted for ``body``; it stands in the journal.

        Raises:
            NoAnswerError: it did not within the client's patience, or refused.
        """
        key = uuid.uuid4().hex
        answer = self.post(caller, "/v1/jobs", json.dumps(body).encode(), key=key)
        self._journal.write(
            family=family, key=key, tenant=caller.tenant_id, job=answer["id"], kind=body["kind"]
        )
        return str(answer["id"])

    def post(
        self,
        caller: Caller,
        path: str,
        body: bytes,
        *,
        key: str,
        media_type: str = "application/json",
    ) -> dict[str, Any]:
        """The body of the first 2xx."""
        until = monotonic_seconds() + _PATIENCE_SECONDS
        said = "nothing"
        while monotonic_seconds() < until:
            status, content = self._try(caller, path, body, key, media_type)
            if 200 <= status < 300:
                answer: dict[str, Any] = json.loads(content)
                return answer
            said = f"{status} {content.decode(errors='replace')[:500]}"
            if status and status not in _NOT_NOW:
                break
            threading.Event().wait(0.1)
        raise NoAnswerError(f"POST {path} was answered with {said}")

    def _try(
        self, caller: Caller, path: str, body: bytes, key: str, media_type: str
    ) -> tuple[int, bytes]:
        """Status and body; 0 where no answer came."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port(), timeout=_ANSWER_SECONDS)
        headers = {
            "Authorization": f"Bearer {caller.key}",
            "Content-Type": media_type,
            "Idempotency-Key": key,
        }
        try:
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            self.unheard += 1
            return 0, b""
        finally:
            connection.close()
