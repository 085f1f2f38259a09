"""Numbers, sizes, times and states as people read them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from app.client.values import Speed

STATE_STYLE: dict[str, str] = {
    "succeeded": "green",
    "ready": "green",
    "partially_succeeded": "yellow",
    "failed": "bold red",
    "expired": "red",
    "cancelled": "dim",
    "cancelling": "yellow",
    "paused": "yellow",
    "archived": "dim",
    "running": "cyan",
    "finalizing": "cyan",
    "validating": "blue",
    "queued": "blue",
    "receiving": "blue",
    "stored": "blue",
    "pending": "blue",
    "ok": "green",
    "warn": "yellow",
    "fail": "bold red",
}

#: Controls of the terminal, C0 and C1; in a message a line break and a tab are no danger.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f]")
_CONTROLS_BUT_SPACE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def harmless(text: str, *, lines: bool = False) -> str:
    """The text with each control character shown as ``\ufffd``; ``lines`` keeps breaks and tabs.

    Names, classes and errors were written by others: a terminal must not obey them.
    """
    return (_CONTROLS_BUT_SPACE if lines else _CONTROLS).sub("\ufffd", text)


def bytes_text(count: float | None) -> str:
    """``1.5 MB``; decimal units."""
    if count is None:
        return "–"
    step = 0
    while count >= 999.5 and step < len(_UNITS) - 1:
        count /= 1000
        step += 1
    digits = 0 if step == 0 or count >= 99.5 else 1
    return f"{count:.{digits}f} {_UNITS[step]}"


def count_text(count: int | None, noun: str = "", plural: str | None = None) -> str:
    """``1,797 images``; the noun in its plural where it belongs."""
    if count is None:
        return "–"
    word = noun if count == 1 or not noun else plural or f"{noun}s"
    return f"{count:,} {word}".rstrip()


def rate_text(per_second: float | None) -> str:
    """``1,240`` or ``3.4``: three digits that matter."""
    if per_second is None:
        return "–"
    return f"{per_second:,.0f}" if per_second >= 100 else f"{per_second:.3g}"


def duration_text(seconds: float | None) -> str:
    """``0.8 s``, ``42 s``, ``3:05``, ``1:02:03``."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago_text(moment: datetime | None, now: datetime | None = None) -> str:
    """``5 min ago``; the date for what is older than a month."""
    if moment is None:
        return "–"
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    for unit, length, limit in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 36), ("d", 86400, 31)):
        if seconds / length < limit:
            return f"{max(0, round(seconds / length))} {unit} ago"
    return moment.date().isoformat()


def day_or_minute(moment: datetime, now: datetime | None = None) -> str:
    """``2026-12-24``; with hour and minute, ``2026-11-30 19:01 UTC``, within two days from now."""
    moment = moment.astimezone(UTC)
    if abs(moment - (now or datetime.now(UTC))) > timedelta(days=2):
        return moment.date().isoformat()
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def speed_text(speed: Speed) -> str:
    """``1,240 images/s, the network alone 5,300, on NVIDIA H200, float32 (12,000 images)``."""
    return (
        f"{rate_text(speed.images_per_second)} images/s, the network alone "
        f"{rate_text(speed.forward_images_per_second)}, on {speed.device} "
        f"({count_text(speed.images, 'image')})"
    )


def score_text(score: float | None) -> str:
    """A score with four digits."""
    return "–" if score is None else f"{score:.4f}"


def without_recipe(body: Mapping[str, Any] | None) -> dict[str, Any]:
    """A job's options or a version's lineage; the many fields of a recipe stand by themselves."""
    return {name: value for name, value in (body or {}).items() if name != "recipe"}


def pairs_text(body: Mapping[str, Any] | None) -> str | None:
    """``epochs=6 recipe.seed=0``: the plain values of a mapping; None where it has none.

    Long lists and long texts are for ``--json``.
    """
    parts: list[str] = []
    for name, value in (body or {}).items():
        if isinstance(value, dict):
            inner = pairs_text({f"{name}.{key}": each for key, each in value.items()})
            parts.extend([inner] if inner else [])
        elif isinstance(value, float):
            parts.append(f"{name}={value:.4g}")
        elif isinstance(value, list) and value:
            text = ",".join(
                f"{each:.4g}" if isinstance(each, float) else str(each) for each in value
            )
            parts.append(f"{name}={text}" if len(text) <= 60 else f"{name}=({len(value):,})")
        elif isinstance(value, (str, int)) and value != "":
            parts.append(f"{name}={value}")
    return " ".join(parts) or None
