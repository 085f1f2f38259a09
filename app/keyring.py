"""Seals small secrets for the database: the data keys of weights, the secrets of webhooks.

A token reads ``k1.<key id>.<base64url of nonce, ciphertext and tag>``: AES-256-GCM (NIST SP
800-38D) under one of the installation's sealing keys, whose id stands in front so that keys can
be rotated. What a token belongs to is bound to it: in another row it does not open.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.errors import DarkroomError, InvalidInputError, SettingsError
from app.settings import Settings

KEY_BYTES = 32
_VERSION = "k1"
_NONCE_BYTES = 12
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,32}")
_HOW = (
    "DARKROOM_SEALING_KEYS holds id:base64 of 32 random bytes, more of them with commas; "
    "`darkroom sealing new-key` makes one"
)


class SealError(DarkroomError):
    """A sealed secret does not open: it was altered, moved, or its key is not here."""

    code = "seal_broken"
    status = 500


class Keyring:
    """The sealing keys by id; the first one seals, all of them open. Threads share it."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise SettingsError(f"no sealing key is set: {_HOW}")
        self._keys = dict(keys)
        self._ciphers = {key_id: AESGCM(key) for key_id, key in self._keys.items()}
        #: The id of the key that seals.
        self.active_id = next(iter(self._keys))

    @classmethod
    def from_settings(cls, settings: Settings) -> Keyring:
        """The keys that the settings name.

        Raises:
            SettingsError: there is none, or one is not ``id:base64`` of 32 bytes.
        """
        return cls(_parse(settings.sealing_keys.get_secret_value()))

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of all keys, the active one first."""
        return tuple(self._keys)

    def seal(self, secret: bytes, about: str) -> str:
        """A token that opens only under the same ``about``, such as ``webhook:<id>``."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        head = f"{_VERSION}.{self.active_id}"
        sealed = self._ciphers[self.active_id].encrypt(nonce, secret, _bound(head, about))
        return f"{head}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, token: str, about: str) -> bytes:
        """The secret in a token.

        Raises:
            SealError: ``seal_broken``, or ``sealing_key_missing`` where its key is not here.
        """
        key_id = key_id_of(token)
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise SealError(
                f"this was sealed under the key {key_id!r}, which DARKROOM_SEALING_KEYS does not "
                "hold; put the key back",
                code="sealing_key_missing",
            )
        head, _, text = token.rpartition(".")
        try:
            raw = base64.b64decode(text, altchars=b"-_", validate=True)
            return cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(head, about))
        except (InvalidTag, ValueError, binascii.Error):
            raise SealError("a sealed secret was altered, or belongs to something else") from None

    def reseal(self, token: str, about: str) -> str:
        """The same secret under the active key; the token itself where that sealed it already.

        Raises:
            SealError: as :meth:`open`.
        """
        if key_id_of(token) == self.active_id:
            return token
        return self.seal(self.open(token, about), about)

    def derive(self, purpose: str, key_id: str | None = None) -> bytes:
        """32 bytes for one other purpose, such as a MAC (HKDF-SHA-256, RFC 5869).

        Of the active key where ``key_id`` is left out.

        Raises:
            SealError: ``sealing_key_missing``.
        """
        key = self._keys.get(key_id or self.active_id)
        if key is None:
            raise SealError(
                f"DARKROOM_SEALING_KEYS does not hold the key {key_id!r}; put it back",
                code="sealing_key_missing",
            )
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=f"darkroom:{purpose}".encode()).derive(key)


def key_id_of(token: str) -> str:
    """The id of the key that sealed a token.

    Raises:
        SealError: it is no token.
    """
    version, _, rest = token.partition(".")
    key_id = rest.partition(".")[0]
    if version != _VERSION or not _KEY_ID.fullmatch(key_id):
        raise SealError("this is no sealed secret of Darkroom")
    return key_id


def check_key_id(key_id: str) -> None:
    """Raise InvalidInputError where this is no name of a sealing key."""
    if not _KEY_ID.fullmatch(key_id):
        raise InvalidInputError(
            "a sealing key is called by 1 to 32 letters, digits, hyphens or underscores",
            code="sealing_key_invalid",
        )


def new_key_text(key_id: str) -> str:
    """A fresh key as the setting takes it."""
    return f"{key_id}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def _bound(head: str, about: str) -> bytes:
    return f"{head}\n{about}".encode()


def _parse(text: str) -> dict[str, bytes]:
    """The keys of the setting, in order; no error ever shows one."""
    keys: dict[str, bytes] = {}
    for number, word in enumerate(text.replace("\n", ",").split(","), start=1):
        if not word.strip():
            continue
        key_id, _, encoded = word.strip().partition(":")
        try:
            # Both alphabets of base64, with or without padding.
            encoded = encoded.strip().rstrip("=").replace("-", "+").replace("_", "/")
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if not _KEY_ID.fullmatch(key_id) or len(key) != KEY_BYTES:
            raise SettingsError(f"sealing key number {number} is not valid: {_HOW}")
        if key_id in keys:
            raise SettingsError(f"two sealing keys are called {key_id!r}: each needs its own id")
        keys[key_id] = key
    return keys
