"""Reading request bodies: bounded, in one way only, and never more than was asked for."""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn, cast

from flask import Request, request
from werkzeug.exceptions import ClientDisconnected

from app.api.pace import PacedSocket
from app.errors import DarkroomError, InvalidInputError, TooLargeError

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


class TooSlowBodyError(DarkroomError):
    """The body did not arrive in time."""

    code = "request_too_slow"
    status = 408


class StrictRequest(Request):
    """A request whose JSON has one meaning only, whoever reads it.

    Refused: other media types, other encodings than UTF-8, duplicate names, NaN and infinities,
    NUL characters and lone surrogates in strings (PostgreSQL stores neither), deep nesting.
    """

    max_form_parts = 0
    #: Set by the route: no body at all stands for an empty object.
    body_optional = False

    def get_data(self, *args: Any, **words: Any) -> Any:
        """The whole body.

        Raises:
            BadRequestError: ``body_incomplete``.
            TooSlowBodyError: it did not arrive in time.
            TooLargeError: it has more than :data:`JSON_MAX_BYTES`.
        """
        # One more than is taken: the framework cuts a body of unknown length there without a word.
        self.max_content_length = JSON_MAX_BYTES + 1
        try:
            raw = super().get_data(*args, **words)
        except Exception as error:
            raise_body_fault(error)
        if len(raw) > JSON_MAX_BYTES:
            raise TooLargeError("the body is larger than this address takes")
        return raw

    def begin_upload(self, least_rate: float) -> None:
        """Let the body take any time, at ``least_rate`` bytes a second."""
        if (pace := self.pace) is not None:
            pace.begin_upload(least_rate)

    @property
    def pace(self) -> PacedSocket | None:
        """The clock of this body, where our server counts."""
        found: PacedSocket | None = getattr(self.environ.get("wsgi.input"), "pace", None)
        return found

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
        raw = self.get_data(cache=True)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            raise _invalid_json(f"byte {error.start} is not UTF-8") from None
        check_json(text)
        return text


def refuse_repeated() -> None:
    """Refuse a query that names a parameter twice: others may read the other one.

    Raises:
        InvalidInputError: ``parameter_repeated``.
    """
    for name, values in request.args.lists():
        if len(values) > 1:
            raise InvalidInputError(
                f"the parameter {name[:100]!r} stands twice", code="parameter_repeated"
            )


def refuse_encodings() -> None:
    """Refuse a body that would have to be unpacked first: it may hold a thousand times more.

    Raises:
        MediaTypeError: ``content_encoding_unsupported``.
    """
    words = (
        request.headers.get("Content-Encoding", ""),
        request.headers.get("Transfer-Encoding", ""),
    )
    given = [word.strip().lower() for each in words for word in each.split(",")]
    if odd := [word for word in given if word not in ("", "identity", "chunked")]:
        raise MediaTypeError(
            f"send the body as it is: the encoding {odd[0][:40]!r} is not taken",
            code="content_encoding_unsupported",
        )


def raise_body_fault(error: Exception) -> NoReturn:
    """Raise what happened while the body was read in our words.

    Raises:
        BadRequestError: ``body_incomplete``.
        TooSlowBodyError: it did not arrive in time.
    """
    pace = cast(StrictRequest, request).pace
    if pace is not None and pace.is_over:
        raise TooLargeError("the body is larger than this address takes") from error
    if pace is not None and pace.is_cut:
        raise TooSlowBodyError(
            "the body did not arrive in time: JSON has 30 s, a file may take longer as long as "
            "it keeps coming"
        ) from error
    if isinstance(error, (ClientDisconnected, OSError)):
        raise body_incomplete() from error
    # Servers have errors of their own for broken chunked bodies.
    if type(error).__module__.startswith("gunicorn."):
        raise BadRequestError("the chunked body is broken", code="body_incomplete") from error
    raise error


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
