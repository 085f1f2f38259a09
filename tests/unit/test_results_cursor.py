"""Cursors of results: what was given is taken back, all else is refused."""

from __future__ import annotations

import pytest

from app.errors import InvalidInputError
from app.jobs.results import _read_cursor


@pytest.mark.parametrize("ended", [True, False])
def test_first_page_is_by_recording_only_while_the_job_is_open(ended: bool) -> None:
    assert _read_cursor(None, ended=ended) == (not ended, ())


@pytest.mark.parametrize("ended", [True, False])
def test_cursor_keeps_its_order_when_the_job_ends(ended: bool) -> None:
    assert _read_cursor("s.12.7", ended=ended) == (True, (12, 7))
    assert _read_cursor("o.7", ended=ended) == (False, (7,))


@pytest.mark.parametrize(
    "cursor", ["", "s", "s.1", "o", "o.1.2", "o.-1", "x.1", "o.1x", "s.1.٣", "o." + "9" * 19, "o."]
)
def test_cursor_that_was_never_given_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        _read_cursor(cursor, ended=True)
    assert caught.value.code == "bad_cursor"
