"""The keys of the audit log, derived from the pepper: the database alone cannot make a link.

The pepper and not the sealing keys: those are rotated, and what they sealed is sealed again; an
entry is never written again, so a key that left the keyring would leave a chain that nobody can
check. The pepper lives as long as the API keys made under it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from typing import Any, Self

from app.errors import SettingsError
from app.settings import Settings

_DERIVED_FOR = b"darkroom audit log, 1"
_PEPPER_MIN_CHARACTERS = 32


@dataclass(frozen=True, slots=True, repr=False)
class AuditKey:
    """One key; ``id`` names it in the rows and tells nothing of it."""

    id: str
    secret: bytes

    @classmethod
    def derive(cls, pepper: str) -> Self:
        """The key that belongs to a pepper.

        Raises:
            SettingsError: the pepper is missing or too short.
        """
        if len(pepper) < _PEPPER_MIN_CHARACTERS:
            raise SettingsError(
                f"DARKROOM_KEY_PEPPER must have {_PEPPER_MIN_CHARACTERS} characters or more: the "
                "audit log is signed with a key that is derived from it"
            )
        secret = hmac.digest(pepper.encode(), _DERIVED_FOR, "sha256")
        return cls(hashlib.sha256(b"id" + secret).hexdigest()[:8], secret)

    def sign(self, purpose: str, *parts: Any) -> bytes:
        """HMAC-SHA-256 over the parts, in one unambiguous form; 32 bytes."""
        text = json.dumps([purpose, *parts], ensure_ascii=True, separators=(",", ":"))
        return hmac.digest(self.secret, text.encode(), "sha256")


@dataclass(frozen=True, slots=True)
class AuditKeys:
    """The key that signs now, and those that signed under earlier peppers."""

    active: AuditKey
    known: dict[str, AuditKey]

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The keys of the settings' peppers.

        Raises:
            SettingsError: a pepper is missing or too short.
        """
        active = AuditKey.derive(settings.key_pepper.get_secret_value())
        old = [
            AuditKey.derive(pepper.strip())
            for pepper in settings.old_key_peppers.get_secret_value().split(",")
            if pepper.strip()
        ]
        return cls(active, {key.id: key for key in (*old, active)})
