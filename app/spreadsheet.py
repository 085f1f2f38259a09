"""Cells of CSV that a spreadsheet opens without running anything."""

from __future__ import annotations

_FORMULA_STARTS = tuple("=+-@\t\r\n＝＋－＠")


def safe_cell(text: str | None) -> str | None:
    """The text as a cell that no spreadsheet takes for a formula.

    One that begins with ``= + - @``, their full-width forms, a tab or a line break gets an
    apostrophe in front, as OWASP's page on CSV injection advises; quoting alone does not help,
    for the quotes are gone before a spreadsheet looks.
    """
    return f"'{text}" if text and text.startswith(_FORMULA_STARTS) else text
