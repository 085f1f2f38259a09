"""Rows of one step, each handled by itself: one that nobody can handle keeps no other waiting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from app.errors import UnavailableError
from app.log import get_logger

log = get_logger(__name__)

T = TypeVar("T")


def each_apart(rows: Iterable[Any], handle: Callable[[Any], T]) -> list[T]:
    """What ``handle`` answers for the rows; one with a fault nobody knows is logged and left out.

    Raises:
        UnavailableError: the database does not answer; the rows after it are left.
    """
    answers = []
    for row in rows:
        try:
            answers.append(handle(row))
        except UnavailableError:
            raise
        except Exception:
            log.exception("row_left", row=row.id, step=handle.__qualname__)
    return answers
