"""Single byte ranges of RFC 9110, section 14."""

from __future__ import annotations

import re

from flask import request

_ONE = re.compile(r"bytes=\s*(?:([0-9]{1,18})-([0-9]{0,18})|-([0-9]{1,18}))\s*", re.IGNORECASE)


class RangeNotSatisfiableError(Exception):
    """The range begins after the end of the file."""


def wanted_range(size: int, etag: str) -> tuple[int, int] | None:
    """First byte and length that this request asks for, or None for the whole.

    Several ranges, other units and nonsense are ignored, as the standard allows; so is a
    range of another file than ``If-Range`` names.

    Raises:
        RangeNotSatisfiableError: no byte of the range exists.
    """
    match = _ONE.fullmatch(request.headers.get("Range", ""))
    if match is None:
        return None
    condition = request.headers.get("If-Range")
    if condition is not None and condition.strip() != f'"{etag}"':
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        length = min(int(suffix), size)
        begin = size - length
    else:
        begin = int(first)
        end = min(int(last) if last else size - 1, size - 1)
        if last and int(last) < begin:
            return None
        length = end - begin + 1
    if length <= 0 or begin >= size:
        raise RangeNotSatisfiableError
    return begin, length
