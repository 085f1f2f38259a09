"""Every refusal as a problem document (RFC 9457), and nothing of the inside in any of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NoReturn

from flask import Flask, Response, request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException

from app.api.parts import request_id
from app.api.schemas.base import pattern_words
from app.errors import DarkroomError, InvalidInputError, NotFoundError, UnauthorizedError
from app.log import get_logger

MEDIA_TYPE = "application/problem+json"
_FAULTS_SHOWN = 100
_DEFAULT_RETRY_SECONDS = 2

#: Words for what the framework refuses before any of our code runs.
_HTTP_DETAILS = {
    404: ("not_found", "there is nothing at this address"),
    405: ("method_not_allowed", "this address does not know that method; see the Allow header"),
    413: ("too_large", "the body is larger than this address takes"),
}

log = get_logger(__name__)


def register_problems(app: Flask) -> None:
    """Answer every error of the application with a problem document."""
    app.register_error_handler(DarkroomError, _from_darkroom)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(Exception, _from_unexpected)


def raise_invalid(error: ValidationError) -> NoReturn:
    """Raise what the schemas found as an error with pointers.

    A path that no id or name can have is an address where nothing is.
    """
    if error.title.endswith("Path"):
        fault = error.errors(include_url=False)[0]
        words = _pattern_words(fault) or f"can be no {fault['loc'][-1]}"
        raise NotFoundError(
            f"there is nothing at this address: {str(fault['input'])[:100]!r} {words}"
        )
    found = error.errors(include_url=False, include_input=False)
    place = "parameter" if error.title.endswith("Query") else "field"
    body = {} if error.title.endswith("Query") else json.loads(request.get_data() or b"{}")
    # Branches of a union tell the same fault several times.
    told = dict.fromkeys((_pointer(fault, body), _detail(fault, place)) for fault in found)
    faults = [{"pointer": pointer, "detail": detail} for pointer, detail in told]
    first = faults[0]
    where = f" at {first['pointer']}" if first["pointer"] else ""
    raise InvalidInputError(
        f"the request is not valid{where}: {first['detail']}",
        code="request_invalid",
        errors=faults[:_FAULTS_SHOWN],
        total=len(faults),
    )


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    more: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """A problem document as an answer."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "request_id": request_id(),
        **(more or {}),
    }
    # ASCII only: whatever a client sent and sees again here, the answer can be encoded.
    return Response(json.dumps(body), status, headers, content_type=MEDIA_TYPE)


def _from_darkroom(error: DarkroomError) -> Response:
    if error.status == 500:
        return _from_unexpected(error)
    headers: dict[str, str] = {}
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = 'Bearer realm="darkroom"'
    retry = error.retry_after_seconds
    if retry is None and error.status in (429, 503):
        retry = _DEFAULT_RETRY_SECONDS
    if retry is not None:
        headers["Retry-After"] = str(retry)
    if error.status >= 500:
        log.warning("part_unavailable", code=error.code, detail=error.detail)
    body = error.as_dict()
    return problem(
        error.status,
        body.pop("code"),
        body.pop("detail"),
        more=body,
        headers=headers,
    )


def _from_http(error: HTTPException) -> Response:
    status = error.code or 500
    if status >= 500:
        return _from_unexpected(error)
    code, detail = _HTTP_DETAILS.get(
        status, (HTTPStatus(status).phrase.lower().replace(" ", "_"), error.description or "")
    )
    kept = {name: value for name, value in error.get_headers() if name in ("Allow", "Retry-After")}
    return problem(status, code, detail, headers=kept)


def _from_unexpected(error: Exception) -> Response:
    log.error("request_failed", method=request.method, path=request.path, exc_info=error)
    return problem(
        500,
        "internal_error",
        "something went wrong inside the service; name the request_id when you report it",
    )


def _detail(fault: ErrorDetails, place: str) -> str:
    """What is wrong, in words that need no regular expression."""
    if fault["type"] == "extra_forbidden":
        return f"there is no {place} of this name here; see /v1/docs"
    return _pattern_words(fault) or str(fault["msg"])


def _pattern_words(fault: ErrorDetails) -> str | None:
    return pattern_words(str(fault.get("ctx", {}).get("pattern", "")))


def _pointer(fault: ErrorDetails, body: Any) -> str:
    """Where a fault is, without the steps that name branches of our schemas.

    Only steps that lead somewhere in the client's own body are its words.
    """
    location = fault["loc"]
    if not body:
        return _join(location)
    steps: list[int | str] = []
    for step in location:
        if step in (body if isinstance(body, dict) else ()) or (
            isinstance(body, list) and isinstance(step, int) and step < len(body)
        ):
            body = body[step]
        elif not (fault["type"] == "missing" and step == location[-1]):
            continue
        steps.append(step)
    return _join(steps)


def _join(steps: Iterable[int | str]) -> str:
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
