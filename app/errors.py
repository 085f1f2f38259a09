"""One root for every error that a user may read: what went wrong, where, and what to do.

Stdlib only, so that the torch half of the worker can raise the same errors on a bare machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class DarkroomError(Exception):
    """Something a caller can act on.

    ``code`` is stable and documented, ``status`` is the HTTP answer, ``retryable`` tells
    whether the same call may succeed later. ``errors`` lists single faults inside one
    input, each a mapping with ``pointer`` or ``line`` and ``detail``; ``total`` counts
    them all where the list was cut.
    """

    code = "internal_error"
    status = 500
    retryable = False

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[Mapping[str, Any]] = (),
        total: int | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        if code is not None:
            self.code = code
        self.errors = [dict(error) for error in errors]
        self.total = total
        self.retry_after_seconds = retry_after_seconds

    def as_dict(self) -> dict[str, Any]:
        """The error as it stands in a failed item, a failed job and a problem document."""
        body: dict[str, Any] = {"code": self.code, "detail": self.detail}
        if self.errors:
            body["errors"] = self.errors
            body["errors_total"] = self.total if self.total is not None else len(self.errors)
        return body


class InvalidInputError(DarkroomError):
    """The caller's input is wrong and stays wrong; the detail says where and what to do."""

    code = "invalid_input"
    status = 422


class NotFoundError(DarkroomError):
    """No such thing for this tenant."""

    code = "not_found"
    status = 404


class ConflictError(DarkroomError):
    """The thing is not in a state that allows this."""

    code = "conflict"
    status = 409


class UnauthorizedError(DarkroomError):
    """No key, or a key that is not valid."""

    code = "unauthorized"
    status = 401


class ForbiddenError(DarkroomError):
    """The key is valid but lacks the scope."""

    code = "forbidden"
    status = 403


class TooLargeError(DarkroomError):
    """Larger than a stated limit."""

    code = "too_large"
    status = 413


class TooManyError(DarkroomError):
    """A quota of the tenant is used up; later, or after it has made room, the same may pass."""

    code = "too_many"
    status = 429
    retryable = True


class UnavailableError(DarkroomError):
    """A part the service needs does not answer; try again."""

    code = "unavailable"
    status = 503
    retryable = True


class SettingsError(DarkroomError):
    """A setting is missing or wrong; the process does not start."""

    code = "settings_invalid"


class ItemError(DarkroomError):
    """One image could not be recognised; its neighbours are unharmed.

    Codes: ``object_missing``, ``empty``, ``undecodable``, ``truncated``,
    ``unsupported_format``, ``too_large``, ``decode_timeout``, ``not_finite``, ``fetch_failed``,
    ``worker_killed``, ``location_not_allowed``, ``internal_error``; from an archive also
    ``member_damaged`` and those of :class:`app.uploads.names.Refusal`.
    """

    code = "undecodable"
    status = 422


class ObjectMissingError(DarkroomError):
    """No object at this bucket and key; trying again does not help."""

    code = "object_missing"
    status = 422


class StorageError(UnavailableError):
    """The object store did not answer, or answered short; trying again may help."""

    code = "fetch_failed"


class StorageAwayError(StorageError):
    """The object store as a whole is away, failing or full, which passes: it is waited for."""


class FencedError(DarkroomError):
    """The lease went to another attempt; whatever this one computed must be discarded."""

    code = "fenced"
    status = 409
