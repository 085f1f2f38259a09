"""One look at a plain name tells what the close judgement would."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from app.uploads import names

#: Words that decide, and the characters between them.
_PIECES = (
    "con", "COM1", "lpt9", "labels.csv", "Thumbs.db", "desktop.ini", "__MACOSX", "._a", "..", ".",
    "/", "//", "\\", "C:", " ", "-", "a", "Z9", "img (1)", "n0144/v_00.JPEG", "\r", "\x85",
    "\u202e", "\u017f", "\u212a", "\xe9", "x" * 250,
)  # fmt: skip


@given(st.lists(st.sampled_from(_PIECES), max_size=6).map("".join) | st.text(max_size=300))
@example("icons/../a.jpg")
@example("a" * 255)
@example("a" * 256)
@example("a\n")
def test_a_plain_name_is_judged_as_closely_as_any_other(text: str) -> None:
    raw = text.encode(errors="surrogatepass")
    assert names.judge_name(raw, text) == names._judge_closely(raw, text)


def test_the_names_that_people_give_are_plain() -> None:
    for name in ("0001.jpg", "cats/IMG_2024 (1).JPEG", "n01440764/val_00000293.png", "a/b-c/d+e.x"):
        assert names._PLAIN.fullmatch(name)
