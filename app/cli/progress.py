"""Progress of uploads, jobs and downloads: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

from app.cli.console import note, stderr
from app.cli.words import bytes_text, count_text, duration_text, rate_text

#: Plain lines come so often, and whenever the title changes.
_PLAIN_SECONDS = 5.0
#: The rate of a transfer is measured over about so long.
_WINDOW_SECONDS = 5.0

#: Lines of a drawing, of so many columns and so many of them.
Draw = Callable[[int, int], Iterable[Any]]


class Bar:
    """Something that moves from 0 to a total; a context manager. Writes to stderr."""

    def __init__(self, title: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._now = now
        self._live: Any = None
        self._task: Any = None
        self._said = now()
        self._told = title
        self._draw: Draw = lambda _width, _height: ()

    def draw_above(self, draw: Draw) -> None:
        """Show what ``draw`` gives for so many columns and lines, on terminals only.

        Called before the bar is entered; it is asked anew each time the bar moves.
        """
        self._draw = draw

    def __enter__(self) -> Self:
        console = stderr()
        if console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            draw = self._draw

            class Drawing(Progress):
                """A bar below what is drawn, which moves with it."""

                def get_renderables(self) -> Iterator[Any]:
                    yield from draw(console.width, console.height - 2)
                    yield from super().get_renderables()

            self._live = Drawing(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None, complete_style="cyan", finished_style="green"),
                TextColumn("{task.fields[share]}", justify="right", markup=False),
                TextColumn("{task.fields[facts]}", style="dim", markup=False),
                console=console,
                expand=True,
            )
            self._task = self._live.add_task(self._title, total=None, share="", facts="")
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(
        self, fraction: float | None, facts: str, *, title: str | None = None, last: bool = False
    ) -> None:
        """Move to ``fraction`` (None: not known yet) with a line of facts beside it."""
        self._title = title or self._title
        share = "" if fraction is None else f"{fraction:4.0%}"
        if self._live is not None:
            known = {} if fraction is None else {"total": 1.0, "completed": fraction}
            self._live.update(
                self._task, description=self._title, share=share, facts=facts, **known
            )
            return
        moment = self._now()
        if last or self._title != self._told or moment - self._said >= _PLAIN_SECONDS:
            self._said, self._told = moment, self._title
            told = " ".join(part for part in (share.strip(), facts) if part)
            note(f"{self._title}: {told}" if told else self._title)

    def line(self, text: str) -> None:
        """A lasting line above the bar; a terminal too narrow for it keeps to the drawing."""
        if self._live is not None:
            if len(text) <= self._live.console.width:
                self._live.console.print(text, markup=False)
        else:
            note(text)


class TransferBar(Bar):
    """A bar for bytes that measures its own rate; :meth:`moved` fits the client's on_progress."""

    def __init__(self, title: str, *, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__(title, now=now)
        self._marks: list[tuple[float, int]] = []
        self._begun = now()

    def moved(self, done: int, total: int) -> None:
        """Show ``done`` of ``total`` bytes."""
        moment = self._now()
        if self._marks and done < self._marks[-1][1]:
            # The stream started over.
            self._marks.clear()
        self._marks.append((moment, done))
        while len(self._marks) > 2 and moment - self._marks[0][0] > _WINDOW_SECONDS:
            self._marks.pop(0)
        begun, before = self._marks[0]
        rate = (done - before) / (moment - begun) if moment > begun else None
        facts = f"{bytes_text(done)} of {bytes_text(total)}"
        if done >= total:
            spent = moment - self._begun
            mean = f", {bytes_text(total / spent)}/s" if spent > 0 else ""
            self.show(1.0, f"{bytes_text(total)} in {duration_text(spent)}{mean}", last=True)
            return
        if rate:
            facts += f", {bytes_text(rate)}/s, {duration_text((total - done) / rate)} left"
        self.show(done / total if total else None, facts)


def images_facts(
    done: int,
    total: int,
    failed: int,
    per_second: float | None,
    eta_seconds: float | None,
    *,
    noun: str = "image",
) -> str:
    """``1,200 of 1,797 images, 3 failed, 512 images/s, 1.2 s left``."""
    parts = [f"{done:,} of {count_text(total, noun)}"]
    if failed:
        parts.append(f"{failed:,} failed")
    if per_second:
        parts.append(f"{rate_text(per_second)} images/s")
    if eta_seconds is not None and done < total:
        parts.append(f"{duration_text(eta_seconds)} left")
    return ", ".join(parts)
