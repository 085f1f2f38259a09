"""Rows of a CSV that anybody may have written, with bounded memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator


class CsvRows:
    """The rows of a CSV with the line each begins on, counted from 1, or what is wrong there.

    A row has at most ``longest`` characters, over however many lines its quotes stretch: the
    standard library bounds a single cell, but neither a line nor the cells of a row. After a
    bad row reading goes on with the next line; after bytes that are no text it ends.
    """

    def __init__(self, text: io.TextIOBase, *, longest: int, strict: bool = False) -> None:
        self._text = text
        self._longest = longest
        self._left = 0
        self._lines = 0
        self._reader = csv.reader(_Lines(self), strict=strict)

    def __iter__(self) -> Iterator[tuple[int, list[str] | Exception]]:
        while True:
            first, self._left = self._lines + 1, self._longest
            try:
                yield first, next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield first, error
            except UnicodeDecodeError as error:
                yield first, error
                return

    def next_line(self) -> str:
        """The next line for the reader.

        Raises:
            csv.Error: the row is too long; the rest of this line is passed.
            StopIteration: there is none.
        """
        line = self._text.readline(self._left + 1)
        if not line:
            raise StopIteration
        self._lines += 1
        if len(line) > self._left:
            while line and not line.endswith(("\n", "\r")):
                line = self._text.readline(self._longest)
            raise csv.Error(f"a row has more than {self._longest} characters")
        self._left -= len(line)
        return line


class _Lines:
    """What the reader asks for lines: an iterator that an error does not end."""

    def __init__(self, rows: CsvRows) -> None:
        self._rows = rows

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        return self._rows.next_line()
