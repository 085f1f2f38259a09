"""Makes, rotates, lists and revokes API keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.client.transport import Transport, road
from app.client.values import Budget, Key


class Keys:
    """``darkroom.keys``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        name: str,
        scopes: Sequence[str],
        *,
        expires_at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Key:
        """Make a key; its ``text`` is in this answer and never again."""
        body: dict[str, Any] = {"name": name, "scopes": list(scopes)}
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        answer = self._transport.call(
            "POST", "/v1/keys", json=body, idempotency_key=idempotency_key
        )
        return _key(answer.json())

    def rotate(
        self,
        key_id: str,
        *,
        overlap_seconds: int | None = None,
        expires_at: datetime | None = None,
        idempotency_key: str | None = None,
    ) -> Key:
        """Make the key's successor; both serve for ``overlap_seconds``, a day if left out.

        The new key's ``text`` is in this answer and never again.
        """
        body: dict[str, Any] = {}
        if overlap_seconds is not None:
            body["overlap_seconds"] = overlap_seconds
        if expires_at is not None:
            body["expires_at"] = expires_at.isoformat()
        answer = self._transport.call(
            "POST", road("keys", key_id, "rotate"), json=body, idempotency_key=idempotency_key
        )
        return _key(answer.json())

    def list(self) -> Iterator[Key]:
        """Every key, without secrets."""
        return map(_key, self._transport.pages("/v1/keys"))

    def budget(self, key_id: str) -> Budget:
        """How many images a day the key may have answered, and had planned today."""
        answer = self._transport.call("GET", road("keys", key_id, "budget"))
        return Budget.from_dict(answer.json())

    def set_budget(self, key_id: str, max_items_per_day: int | None) -> Budget:
        """Bound the images a day that the key may have answered; None for any number."""
        answer = self._transport.call(
            "PUT", road("keys", key_id, "budget"), json={"max_items_per_day": max_items_per_day}
        )
        return Budget.from_dict(answer.json())

    def revoke(self, key_id: str) -> None:
        """End a key at once."""
        self._transport.call("DELETE", road("keys", key_id))


def _key(body: Mapping[str, Any]) -> Key:
    return Key.from_dict(body)
