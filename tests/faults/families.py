"""The families of faults: a function each, told by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.trial import Trial

Work = Callable[[Trial], None]


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of fault, and the function that makes it happen under load."""

    name: str
    about: str
    work: Work
    #: Part of ``make faults QUICK=1``.
    quick: bool


FAMILIES: dict[str, Family] = {}


def family(
    name: str | None = None, *, quick: bool = False, about: str | None = None
) -> Callable[[Work], Work]:
    """Enter a function as a family, by its own name and docstring unless told otherwise."""

    def enter(work: Work) -> Work:
        called = name or work.__name__
        told = about or (work.__doc__ or "").split("\n", maxsplit=1)[0]
        FAMILIES[called] = Family(called, told, work, quick)
        return work

    return enter
