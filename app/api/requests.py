"""Reading request bodies: bounded, in one way only, and never more than was asked for."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from flask import Request
from werkzeug.exceptions import ClientDisconnected

from app.errors import DarkroomError, InvalidInputError

MIB = 1024 * 1024
#: Inline items and class lists are the largest bodies there are.
JSON_MAX_BYTES = 2 * MIB
_MAX_DEPTH = 32


class BadRequestError(DarkroomError):
    """The request cannot be read at all."""

    code = "bad_request"
    status = 400


class MediaTypeError(DarkroomError):
    """The body is of a kind that this address does not take."""

    code = "unsupported_media_type"
    status = 415


class StrictRequest(Request):
    """A request whose JSON has one meaning only, whoever reads it.

    Refused: other media types, other encodings than UTF-8, duplicate names, NaN and infinities,
    NUL characters and lone surrogates in strings (PostgreSQL stores neither), deep nesting.
    """

    max_form_parts = 0
    #: Set by the route: no body at all stands for an empty object.
    body_optional = False

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:  # noqa: ARG002
        """The body's text after it was checked; schemas read it as JSON a second time.

        Raises:
            MediaTypeError: it is not declared as JSON.
            BadRequestError: it is not JSON, or of the kinds refused above.
        """
        if self.body_optional and self.mimetype == "" and not self.get_data(cache=True):
            return "{}"
        if not self.is_json:
            raise MediaTypeError("send JSON, with Content-Type: application/json")
        self.max_content_length = JSON_MAX_BYTES
        try:
            raw = self.get_data(cache=True)
        except ClientDisconnected:
            raise body_incomplete() from None
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise _invalid_json(f"byte {error.start} is not UTF-8") from None
        check_json(text)
        return text


def check_json(text: str) -> None:
    """Raise BadRequestError where ``text`` is not one JSON object of unambiguous meaning."""
    try:
        body = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise _invalid_json(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError:
        raise _invalid_json("a number has too many digits") from None
    if not isinstance(body, dict):
        raise _invalid_json("it must be an object")
    _check_values(body)


def body_incomplete() -> BadRequestError:
    """The error of a body that ended before its announced length."""
    return BadRequestError(
        "the body ended before its announced length; send it again", code="body_incomplete"
    )


def _check_values(body: dict[str, Any]) -> None:
    pending: list[tuple[Any, int]] = [(body, 1)]
    while pending:
        value, depth = pending.pop()
        if depth > _MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, dict):
            for name, inner in value.items():
                _check_text(name)
                pending.append((inner, depth + 1))
        elif isinstance(value, list):
            pending.extend((inner, depth + 1) for inner in value)
        elif isinstance(value, str):
            _check_text(value)


def _check_text(value: str) -> None:
    if "\0" in value:
        raise InvalidInputError("strings must not hold NUL characters", code="nul_character")
    # Cheap for what is common: ASCII cannot hold surrogates.
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidInputError(
            "strings must not hold half of a surrogate pair", code="lone_surrogate"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    body = dict(pairs)
    if len(body) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise BadRequestError(
                    f"the name {name[:100]!r} stands twice in one object", code="duplicate_name"
                )
            seen.add(name)
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid_json(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _invalid_json("a number is too large")
    return value


def _invalid_json(why: str) -> BadRequestError:
    return BadRequestError(f"the body is not valid JSON: {why}", code="invalid_json")


def _too_deep() -> BadRequestError:
    return BadRequestError(f"the body is nested deeper than {_MAX_DEPTH} levels", code="too_deep")
