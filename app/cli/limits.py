"""``--deadline``, ``--max-failed`` and spans of time as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

DeadlineText = Annotated[
    str | None,
    typer.Option(
        "--deadline",
        metavar="WHEN",
        # A short example: in 80 columns a longer one is cut.
        help="End by then or expire: 2026-12-01T18:00Z, or 90m, 2h, 1d from now.",
        show_default=False,
    ),
]
MaxFailedTexts = Annotated[
    list[str] | None,
    typer.Option(
        "--max-failed",
        metavar="N|N%",
        help="Stop once more images failed than so many, or than such a part; repeat for both.",
        show_default=False,
    ),
]
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SPAN = re.compile(r"([0-9]{1,6})([smhd])")


def read_deadline(text: str | None, now: datetime | None = None) -> datetime | None:
    """A moment with its offset (the machine's own where none is given), or a time from now."""
    if text is None:
        return None
    span = _SPAN.fullmatch(text)
    if span:
        begin = now or datetime.now(UTC)
        return begin + timedelta(**{_UNITS[span[2]]: int(span[1])})
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is neither a moment such as 2026-12-01T18:00:00+01:00 nor a time from now "
            "such as 90m, 2h or 1d",
            param_hint="--deadline",
        ) from None
    return moment if moment.tzinfo is not None else moment.astimezone()


def read_seconds(text: str, param_hint: str) -> int:
    """The seconds of a span such as ``90m``, ``2h`` or ``1d``; ``0`` is none."""
    if text == "0":
        return 0
    span = _SPAN.fullmatch(text)
    if span is None:
        raise typer.BadParameter(
            f"{text!r} is no span of time such as 90m, 2h or 1d", param_hint=param_hint
        )
    return int(timedelta(**{_UNITS[span[2]]: int(span[1])}).total_seconds())


def read_max_failed(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """``["100", "5%"]`` as the service's ``max_failed``."""
    budget: dict[str, Any] = {}
    for text in texts or ():
        number, percent = text.removesuffix("%"), text.endswith("%")
        try:
            value: float = float(number) / 100 if percent else int(number)
        except ValueError:
            value = -1
        if not 0 <= value <= (1 if percent else 2**63 - 1):
            raise typer.BadParameter(
                f"{text!r} is neither a number of images such as 100 nor a part such as 5%",
                param_hint="--max-failed",
            )
        name = "fraction" if percent else "items"
        if name in budget:
            raise typer.BadParameter(
                "one number of images and one part at most", param_hint="--max-failed"
            )
        budget[name] = value
    return budget or None
