"""Output: tables and colours on a terminal, plain aligned lines in a pipe, JSON for machines.

Answers go to stdout; progress, notes and errors to stderr, so that a pipe gets only answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from app.cli.words import STATE_STYLE, harmless

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

#: Fields of an error's ``errors`` that say where, in the order they are shown.
_WHERE = ("line", "pointer", "ordinal", "custom_id", "name")
_MOST_ERRORS = 10
#: Columns between two cells of a table.
_GAP = 2


def stdout() -> Console:
    """The console that answers are written to."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console for progress, notes and errors."""
    return _console(sys.stderr)


def _console(file: Any) -> Console:
    from rich.console import Console

    if file.isatty():
        return Console(file=file, highlight=False)
    # A pipe has no width: nothing may be cut or wrapped.
    return Console(file=file, highlight=False, width=10_000, color_system=None)


def print_json(body: Any) -> None:
    """One JSON document on stdout, indented."""
    sys.stdout.write(json.dumps(body, indent=2, ensure_ascii=False, default=str) + "\n")


def print_json_lines(bodies: Iterable[Any]) -> None:
    """One JSON object a line, written as they come."""
    for body in bodies:
        sys.stdout.write(json.dumps(body, ensure_ascii=False, default=str) + "\n")


def state_text(state: str) -> Text:
    """A state in its colour."""
    from rich.text import Text

    return Text(state.replace("_", " "), style=STATE_STYLE.get(state, ""))


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    right: Sequence[str] = (),
    wrap: Sequence[str] = (),
    spare: Sequence[str] = (),
    empty: str = "none",
) -> None:
    """A table on stdout; columns named in ``right`` stand right, those in ``wrap`` may wrap.

    Where the terminal is too narrow, columns of ``spare`` are left out, the last one first: an
    id that is cut is of no use. In a pipe: all columns, aligned, nothing cut.
    """
    if not rows:
        note(empty)
        return
    rows = [[_cell(cell) for cell in row] for row in rows]
    console = stdout()
    if not console.is_terminal:
        _print_aligned(columns, rows, right)
        return
    from rich.box import SIMPLE_HEAD
    from rich.cells import cell_len
    from rich.table import Table

    widths = {
        name: max(cell_len(name), *(cell_len(str(row[place])) for row in rows))
        for place, name in enumerate(columns)
    }
    shown = list(columns)
    for name in reversed(spare):
        fixed = (12 if each in wrap else widths[each] for each in shown)
        if sum(fixed) + _GAP * (len(shown) - 1) <= console.width:
            break
        shown.remove(name)
    table = Table(
        box=SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        show_edge=False,
        collapse_padding=True,
    )
    for name in shown:
        is_wrapped = name in wrap
        table.add_column(
            name,
            justify="right" if name in right else "left",
            no_wrap=not is_wrapped,
            overflow="fold" if is_wrapped else "ellipsis",
            min_width=None if is_wrapped else widths[name],
        )
    places = [columns.index(name) for name in shown]
    for row in rows:
        table.add_row(*(row[place] for place in places))
    console.print(table)


def _cell(value: Any) -> Text:
    from rich.text import Text

    text = value.copy() if isinstance(value, Text) else Text(str(value))
    # As long as before, so that styles stay where they were.
    text.plain = harmless(text.plain)
    return text


def _print_aligned(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Sequence[str]
) -> None:
    cells = [[name.upper() for name in columns], *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(columns))]
    for row in cells:
        line = (
            cell.rjust(width) if name in right else cell.ljust(width)
            for name, cell, width in zip(columns, row, widths, strict=True)
        )
        sys.stdout.write("  ".join(line).rstrip() + "\n")


def print_fields(pairs: Iterable[tuple[str, Any]]) -> None:
    """Names and values below each other; values that are None are left out."""
    shown = [(name, value) for name, value in pairs if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    console = stdout()
    from rich.text import Text

    for name, value in shown:
        line = Text(f"{name:<{width}}  ", style="bold")
        line.append(_cell(value if isinstance(value, Text) else Text(str(value), style="not bold")))
        console.print(line, soft_wrap=True)


def say(message: str, *, style: str = "") -> None:
    """A line of the answer on stdout."""
    stdout().print(harmless(message, lines=True), style=style or None, markup=False, soft_wrap=True)


def answer(body: Any, line: str, *, as_json: bool) -> None:
    """The answer of a command: a line, or the JSON document ``body`` for machines."""
    if as_json:
        print_json(body)
    else:
        say(line)


def note(message: str, *, style: str = "dim") -> None:
    """A line for people on stderr."""
    stderr().print(harmless(message, lines=True), style=style, markup=False, soft_wrap=True)


def warn(message: str) -> None:
    """A line on stderr that wants to be seen."""
    stderr().print(harmless(message, lines=True), style="yellow", markup=False, soft_wrap=True)


def print_error(
    detail: str,
    code: str,
    *,
    errors: Sequence[Mapping[str, Any]] = (),
    total: int | None = None,
    request_id: str | None = None,
) -> None:
    """An error as a sentence with its code, and its single faults below it, on stderr."""
    from rich.text import Text

    console = stderr()
    line = Text()
    line.append("error: ", style="bold red")
    line.append(harmless(detail, lines=True))
    line.append(f" [{code}]", style="dim")
    console.print(line, soft_wrap=True)
    told = len(errors) == 1 and detail.endswith(str(errors[0].get("detail", "")) or "\0")
    print_faults(console.print, () if told else errors, total if not told else 0)
    # A refusal explains itself; only a fault of the service needs its log.
    if request_id and code in ("internal_error", "http_500"):
        console.print(f"  its log has more under request {request_id}", style="dim")


def print_faults(
    print_line: Callable[..., None], errors: Sequence[Mapping[str, Any]], total: int | None
) -> None:
    """The single faults of an input, the first ten of ``total``."""
    for error in errors[:_MOST_ERRORS]:
        where = ", ".join(f"{name} {error[name]}" for name in _WHERE if error.get(name) is not None)
        detail = error.get("detail", "")
        text = harmless(f"  {where}: {detail}" if where else f"  {detail}")
        print_line(text, markup=False, soft_wrap=True)
    left = (total or len(errors)) - min(len(errors), _MOST_ERRORS)
    if left > 0:
        print_line(f"  … and {left:,} more", style="dim")
