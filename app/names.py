"""The one rule for names that clients choose: models, datasets, aliases, keys, tenants."""

from __future__ import annotations

import re

from app.errors import InvalidInputError

#: No ``@`` (it parts a name from its version), no ``/`` (names stand in paths).
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}")


def check_name(text: str, what: str) -> str:
    """The name itself, if it fits the rule; ``what`` says in one word what it names.

    Raises:
        InvalidInputError: ``<what>_name_invalid``.
    """
    if not _NAME.fullmatch(text):
        raise InvalidInputError(
            f"{text[:120]!r} is no name for a{'n' if what[0] in 'aeiou' else ''} {what}: use 1 to "
            "100 letters, digits, '.', '_' or '-', and begin with a letter or digit",
            code=f"{what}_name_invalid",
        )
    if _ID.fullmatch(text):
        # A reference such as ``mdv_…`` would be read as an id, so the name could not be reached.
        raise InvalidInputError(
            f"{text!r} is no name for a {what}: it looks like an id",
            code=f"{what}_name_invalid",
        )
    return text


def check_alias(text: str) -> str:
    """The alias itself, if it fits the rule for names and is not a version number.

    Raises:
        InvalidInputError: ``alias_name_invalid``.
    """
    check_name(text, "alias")
    if text.isdigit():
        raise InvalidInputError(
            f"{text!r} is no name for an alias: digits alone mean a version number",
            code="alias_name_invalid",
        )
    return text
