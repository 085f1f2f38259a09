"""The curves of a training drawn with characters: loss, accuracy and learning rate by epoch.

Dots of Braille letters, two wide and four high in each, carry the lines. Above each plot stand
the numbers that matter, so that a narrow or colourless terminal loses none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from app.client.values import Metric

#: Bits of the dots of a Braille letter, U+2800 and on, from its top row down.
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_STYLES = ("cyan", "yellow", "magenta")
#: Columns of a plot that still shows something, with its axis and labels.
_LEAST_WIDTH, _MOST_WIDTH = 37, 60
_LABEL_WIDTH = 8
_LEAST_ROWS, _MOST_ROWS = 2, 8
_GAP = 3
_SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric by epoch; where a number was not finite, the line has a gap."""

    name: str
    epochs: Sequence[int]
    values: Sequence[float | None]

    def finite(self) -> list[tuple[int, float]]:
        """Epochs that have a number."""
        pairs = zip(self.epochs, self.values, strict=True)
        return [(epoch, value) for epoch, value in pairs if value is not None]


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves of one measure over each other."""

    title: str
    curves: Sequence[Curve]
    best: Callable[[Iterable[tuple[int, float]]], tuple[int, float]]
    best_word: str = "best"


def read_plots(metrics: Iterable[Metric]) -> list[Plot]:
    """The plots that a training's metrics have numbers for."""
    found: dict[str, list[tuple[int, float | None]]] = {}
    for metric in metrics:
        found.setdefault(metric.name, []).append((metric.step, metric.value))
    curves = {
        name: Curve(name, [epoch for epoch, _ in points], [value for _, value in points])
        for name, points in found.items()
    }

    def of_splits(measure: str) -> list[Curve]:
        named = {split: curves.get(f"{split}_{measure}") for split in _SPLITS}
        return [Curve(split, c.epochs, c.values) for split, c in named.items() if c is not None]

    rate = curves.get("learning_rate")
    plots = [
        Plot("loss", of_splits("loss"), _lowest),
        Plot("accuracy", of_splits("accuracy"), _highest),
        Plot("learning rate", [rate] if rate is not None else [], _highest, "most"),
    ]
    return [plot for plot in plots if any(curve.finite() for curve in plot.curves)]


def draw_plots(plots: Sequence[Plot], width: int, height: int) -> list[Text]:
    """The plots as lines of at most ``width`` columns, beside each other where they fit.

    On a terminal of ``height`` lines the plots get lower, and the last ones give way. One too
    narrow for any gets none.
    """
    if not plots or width < _LEAST_WIDTH:
        return []
    abreast = min(len(plots), (width + _GAP) // (_LEAST_WIDTH + _GAP))
    columns = min((width + _GAP) // abreast - _GAP, _MOST_WIDTH)
    rows = [list(plots[at : at + abreast]) for at in range(0, len(plots), abreast)]
    while len(rows) > 1 and _needed_lines(rows) > height:
        rows.pop()
    spare = max(height - _needed_lines(rows), 0)
    plot_rows = min(_MOST_ROWS, _LEAST_ROWS + spare // len(rows))
    lines: list[Text] = []
    for row in rows:
        head = max(len(plot.curves) for plot in row)
        # All have the same epochs: of plots below each other only the lowest says which.
        axis = abreast > 1 or row is rows[-1]
        drawn = [_draw(plot, columns, plot_rows, head, axis=axis) for plot in row]
        lines += _beside(drawn, columns)
    return lines


def _needed_lines(rows: Sequence[Sequence[Plot]]) -> int:
    """Of the lowest plots, with title and numbers above each and the epochs below."""
    heads = sum(1 + max(len(plot.curves) for plot in row) + _LEAST_ROWS for row in rows)
    return heads + 2 * (len(rows) if len(rows[0]) > 1 else 1)


def _lowest(points: Iterable[tuple[int, float]]) -> tuple[int, float]:
    return min(points, key=lambda point: point[1])


def _highest(points: Iterable[tuple[int, float]]) -> tuple[int, float]:
    return max(points, key=lambda point: point[1])


def _draw(plot: Plot, width: int, rows: int, head: int, *, axis: bool) -> list[Text]:
    from rich.text import Text

    lines = [Text(f"{plot.title:<11}{'first':>6}{'last':>7}{plot.best_word:>7}", style="bold")]
    several = len(plot.curves) > 1
    for curve, style in zip(plot.curves, _STYLES, strict=False):
        lines.append(_numbers(plot, curve, style if several else _STYLES[0], named=several))
    lines += [Text("")] * (1 + head - len(lines))
    finite = [value for curve in plot.curves for _, value in curve.finite()]
    epochs = [epoch for curve in plot.curves for epoch in curve.epochs]
    canvas = _Canvas(width - _LABEL_WIDTH, rows, _span(epochs), _span(finite))
    for number, curve in enumerate(plot.curves):
        for stretch in _unbroken(curve):
            canvas.draw(stretch, number)
    labels = {rows - 1: _short(min(finite)), 0: _short(max(finite))}
    if min(finite) == max(finite):
        labels = {rows // 2: _short(max(finite))}
    for at in range(rows):
        line = Text(f"{labels.get(at, ''):>{_LABEL_WIDTH - 2}} ", style="dim")
        line.append("┤" if at in labels else "│")
        lines.append(line.append_text(canvas.row(at)))
    if not axis:
        return lines
    space = " " * (_LABEL_WIDTH - 1)
    lines.append(Text(space + "└" + "─" * canvas.columns, style="dim"))
    first, last = f"epoch {min(epochs)}", str(max(epochs)) if max(epochs) > min(epochs) else ""
    lines.append(Text(f"{space} {first}{last:>{canvas.columns - len(first)}}", style="dim"))
    return lines


def _numbers(plot: Plot, curve: Curve, style: str, *, named: bool) -> Text:
    """The name of a curve, its first, last and best value, and the epoch of the best."""
    from rich.text import Text

    finite = curve.finite()
    line = Text(f"{curve.name if named else '':<10}", style=style)
    if not finite:
        return line.append(" not finite", style="default")
    epoch, best = plot.best(finite)
    last = curve.values[-1]
    cells = [_short(finite[0][1]), "–" if last is None else _short(last), _short(best)]
    numbers = "".join(f"{cell:>7}" for cell in cells)
    return line.append(numbers, style="default").append(f" @{epoch}", style="dim")


def _unbroken(curve: Curve) -> Iterator[list[tuple[int, float]]]:
    """The stretches of a curve between its gaps."""
    line: list[tuple[int, float]] = []
    for epoch, value in zip(curve.epochs, curve.values, strict=True):
        if value is not None:
            line.append((epoch, value))
        elif line:
            yield line
            line = []
    if line:
        yield line


def _span(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _short(value: float) -> str:
    """What matters in six columns: ``0.9778``, ``12.35``, ``0.0012``, ``1.3e-7``."""
    if value == 0 or 0.001 <= abs(value) < 10:
        return f"{value:.4f}"
    text = f"{value:.4g}"
    if "e" not in text and len(text) <= 6:
        return text
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits}e{int(power)}"


def _beside(drawn: Sequence[list[Text]], columns: int) -> list[Text]:
    """Drawings of equal height beside each other, as lines."""
    from rich.text import Text

    lines = []
    for parts in zip(*drawn, strict=True):
        line = Text()
        for part in parts[:-1]:
            padded = part.copy()
            padded.pad_right(columns + _GAP - padded.cell_len)
            line.append_text(padded)
        lines.append(line.append_text(parts[-1]))
    return lines


class _Canvas:
    """A field of Braille letters in which lines are drawn; a later line covers an earlier one."""

    def __init__(
        self, columns: int, rows: int, across: tuple[float, float], up: tuple[float, float]
    ) -> None:
        self.columns = columns
        self._across, self._up = across, up
        self._right, self._bottom = 2 * columns - 1, 4 * rows - 1
        self._bits = [[0] * columns for _ in range(rows)]
        self._owner: list[list[int]] = [[0] * columns for _ in range(rows)]

    def draw(self, points: Sequence[tuple[float, float]], owner: int) -> None:
        """Join the points by straight lines; a single one is a dot."""
        places = [self._place(*point) for point in points]
        self._dot(*places[0], owner)
        for (x, y), (to_x, to_y) in pairwise(places):
            steps = max(abs(to_x - x), abs(to_y - y))
            for step in range(1, steps + 1):
                share = step / steps
                self._dot(round(x + share * (to_x - x)), round(y + share * (to_y - y)), owner)

    def row(self, at: int) -> Text:
        """A line of the canvas in its colours."""
        from rich.text import Text

        line = Text()
        for bits, owner in zip(self._bits[at], self._owner[at], strict=True):
            line.append(chr(0x2800 + bits) if bits else " ", style=_STYLES[owner] if bits else "")
        return line

    def _place(self, across: float, up: float) -> tuple[int, int]:
        return (
            round(_share(across, self._across) * self._right),
            round((1 - _share(up, self._up)) * self._bottom),
        )

    def _dot(self, x: int, y: int, owner: int) -> None:
        row, column = y // 4, x // 2
        self._bits[row][column] |= _DOTS[y % 4][x % 2]
        self._owner[row][column] = owner


def _share(value: float, span: tuple[float, float]) -> float:
    low, high = span
    if not math.isfinite(high - low) or high == low:
        return 0.5
    return (value - low) / (high - low)
