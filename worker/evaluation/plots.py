"""The plots of a report as SVG that stands in a page: no script, no file, no font of its own."""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.evaluation.calibration import ReliabilityBin
from worker.evaluation.confusion import Confusion, Floats, Ints

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, MUTED, RULE = "#221c1a", "#7a716c", "#e7e1dc"
#: The darkroom's safelight.
ACCENT, ACCENT_SOFT = "#b4351f", "#efb8a6"
_SCALE = ["#f8f3ef", "#f9ded2", "#ec9f86", "#cf5a3e", "#8f2413"]
#: More classes than this cannot be read in one matrix.
MOST_CLASSES = 20
_NUMBERED_CLASSES = 12
_NAME_LENGTH = 18
# Matplotlib's settings belong to the whole process.
_lock = threading.Lock()


def plot_reliability(bins: list[ReliabilityBin]) -> str:
    """Accuracy against confidence, with how many images have which confidence below."""
    from matplotlib.gridspec import GridSpec
    from matplotlib.ticker import MaxNLocator

    with _drawing():
        figure = _figure(5.6, 5.2)
        grid = GridSpec(2, 1, figure=figure, height_ratios=(3.4, 1), hspace=0.12)
        above = figure.add_subplot(grid[0])
        below = figure.add_subplot(grid[1], sharex=above)
        line = []
        for each in bins:
            if each.accuracy is None or each.confidence is None:
                continue
            middle, width = (each.low + each.high) / 2, (each.high - each.low) * 0.92
            above.bar(middle, each.accuracy, width, color=ACCENT_SOFT, linewidth=0)
            low, high = sorted((each.accuracy, each.confidence))
            above.bar(middle, high - low, width, low, color=ACCENT, alpha=0.22, linewidth=0)
            below.bar(middle, each.images, width, color=ACCENT, linewidth=0)
            line.append((each.confidence, each.accuracy))
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 4)))
        above.plot(*np.array(line).T, color=ACCENT, linewidth=1.6, marker="o", markersize=3.5)
        above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that was right")
        above.tick_params(labelbottom=False)
        below.set(xlabel="confidence", ylabel="images")
        below.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        for axes in (above, below):
            _tidy(axes)
        return _as_svg(figure, "Reliability: accuracy against confidence")


def plot_confusion(confusion: Confusion, classes: Sequence[str], chosen: Ints) -> str:
    """The part of the confusion matrix that the ``chosen`` classes make, rows as shares.

    Answers outside of the part count in the rows' sums, so that a row need not add up to 1.
    """
    from matplotlib.colors import LinearSegmentedColormap

    matrix, shares = _part_of(confusion, chosen)
    names = [_shorten(classes[index]) for index in chosen]
    ticks = np.arange(len(chosen))
    with_numbers = len(chosen) <= _NUMBERED_CLASSES
    side = 2.2 + (0.36 if with_numbers else 0.22) * len(chosen)
    with _drawing():
        figure = _figure(side + 0.9, side)
        axes = figure.add_subplot()
        axes.pcolormesh(
            shares,
            vmin=0,
            vmax=1,
            cmap=LinearSegmentedColormap.from_list("safelight", _SCALE),
            edgecolors="white",
            linewidth=1,
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        axes.set_xticks(ticks + 0.5, names, rotation=90 if len(chosen) > 6 else 0)
        axes.set_yticks(ticks + 0.5, names)
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            # A class may be called $x$, which is no formula.
            text.set_parse_math(False)
        axes.set(xlabel="answered", ylabel="true")
        axes.tick_params(length=0, colors=INK)
        for spine in axes.spines.values():
            spine.set_visible(False)
        if with_numbers:
            for (row, column), count in np.ndenumerate(matrix):
                colour = "white" if shares[row, column] > 0.55 else INK
                if count:
                    axes.text(
                        column + 0.5,
                        row + 0.5,
                        f"{count:,}",
                        ha="center",
                        va="center",
                        color=colour,
                    )
        return _as_svg(figure, "Confusion matrix")


def _part_of(confusion: Confusion, chosen: Ints) -> tuple[Ints, Floats]:
    """The counts of the chosen classes' cells, and as shares of the rows' images."""
    place = np.full(confusion.classes, -1)
    place[chosen] = np.arange(len(chosen))
    rows, columns = place[confusion.true], place[confusion.answered]
    inside = (rows >= 0) & (columns >= 0)
    matrix = np.zeros((len(chosen), len(chosen)), dtype=np.int64)
    matrix[rows[inside], columns[inside]] = confusion.counts[inside]
    support = np.bincount(confusion.true, weights=confusion.counts, minlength=confusion.classes)
    return matrix, matrix / np.maximum(support[chosen], 1)[:, None]


@contextmanager
def _drawing() -> Iterator[None]:
    """Matplotlib's settings for our plots, which hold for the whole process while they do."""
    from matplotlib import rc_context

    # Text stays text: small, searchable, and in the page's own font.
    settings = rc_context({"svg.fonttype": "none", "svg.hashsalt": "darkroom"})
    with _lock, settings, warnings.catch_warnings():
        # Of letters that its own font lacks; the browser's has them.
        warnings.simplefilter("ignore", UserWarning)
        yield


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: it keeps every figure, and belongs to one thread.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _tidy(axes: Any) -> None:
    axes.grid(axis="y", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=MUTED)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    for name, spine in axes.spines.items():
        spine.set_visible(name == "bottom")
        spine.set_color(RULE)


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_LENGTH else f"{name[: _NAME_LENGTH - 1]}…"


def _as_svg(figure: Figure, title: str) -> str:
    """The figure as an ``svg`` element that scales with the page; the same figure, same text."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    # Ids are unique within one figure only.
    prefix = re.sub(r"[^a-z]", "", title.lower())[:12]
    svg = re.sub(r'(\bid="|xlink:href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    return re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        rf'viewBox="\1" role="img" aria-label="{title}">',
        svg,
        count=1,
    )
