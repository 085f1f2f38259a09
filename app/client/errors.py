"""The one error of the client: what the service answered, or why there is no answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Codes of the client's own; every other code is the service's.
UNREACHABLE = "unreachable"
NO_KEY = "no_key"
WAIT_TIMEOUT = "wait_timeout"
LOCAL_FILE = "local_file"
DAMAGED = "damaged"

#: Answers that say "not now": the same call may succeed in a moment.
RETRY_STATUS = frozenset({429, 502, 503, 504})
#: A service that stays away longer is gone, not restarting.
OUTAGE_SECONDS = 300.0


class ApiError(Exception):
    """Why a call did not do what it was asked.

    ``status`` is the HTTP status, 0 where the service was not reached or the fault is on this
    side; ``errors`` lists single faults of the input, ``errors_total`` counts them all.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str,
        status: int = 0,
        errors: Sequence[Mapping[str, Any]] = (),
        errors_total: int | None = None,
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code
        self.status = status
        self.errors = [dict(error) for error in errors]
        self.errors_total = errors_total if errors_total is not None else len(self.errors)
        self.request_id = request_id
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def from_answer(
        cls,
        status: int,
        body: bytes,
        *,
        reason: str = "",
        request_id: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> ApiError:
        """The error in an answer: a problem document (RFC 9457) or whatever a proxy sent."""
        try:
            problem = json.loads(body)
        except ValueError:
            problem = None
        if not isinstance(problem, dict):
            return cls(
                f"the service answered {status} {reason}".rstrip(),
                code=f"http_{status}",
                status=status,
                request_id=request_id,
                retry_after_seconds=retry_after_seconds,
            )
        errors = problem.get("errors")
        # Not a problem document, such as /readyz with the words of its parts: tell them.
        words = ", ".join(f"{name} {word}" for name, word in problem.items())
        return cls(
            str(problem.get("detail") or f"the service answered {status}: {words}"),
            code=str(problem.get("code") or f"http_{status}"),
            status=status,
            errors=errors if isinstance(errors, list) else (),
            errors_total=problem.get("errors_total"),
            request_id=problem.get("request_id") or request_id,
            retry_after_seconds=retry_after_seconds,
        )

    @property
    def may_pass(self) -> bool:
        """Whether the service is away or says "not now"."""
        return self.code == UNREACHABLE or self.status in RETRY_STATUS

    def as_dict(self) -> dict[str, Any]:
        """The error as plain JSON values."""
        body: dict[str, Any] = {"code": self.code, "status": self.status, "detail": self.detail}
        if self.errors:
            body["errors"] = self.errors
            body["errors_total"] = self.errors_total
        if self.request_id:
            body["request_id"] = self.request_id
        return body
