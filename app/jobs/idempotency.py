"""One POST, one effect: the answer that a client's Idempotency-Key stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from app.errors import ConflictError, InvalidInputError
from app.jobs.tables import IdempotencyKey

_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")


@dataclass(frozen=True, slots=True)
class KeptAnswer:
    """An answer given once, to be given again."""

    status: int
    body: Mapping[str, Any]
    location: str | None


def claim_key(session: Session, tenant_id: str, key: str, request_sha256: str) -> KeptAnswer | None:
    """The answer kept under ``key``, or None where the caller is the first to use it.

    The claim is an advisory lock that lasts as long as the caller's transaction: work and
    :func:`keep_answer` must happen in the same one, so that both are there or neither.

    Raises:
        ConflictError: ``idempotency_key_in_flight``: another transaction holds the claim.
        InvalidInputError: ``idempotency_key_reused``: it stands for another request.
    """
    name = f"darkroom.idempotency:{tenant_id}:{key}"
    if not session.scalar(_LOCK, {"name": name}):
        raise ConflictError(
            "the first request under this Idempotency-Key is still at work; ask again",
            code="idempotency_key_in_flight",
            retry_after_seconds=1,
        )
    row = session.scalar(
        select(IdempotencyKey).where(
            IdempotencyKey.tenant_id == tenant_id, IdempotencyKey.key == key
        )
    )
    if row is None:
        return None
    if row.request_sha256 != request_sha256:
        raise InvalidInputError(
            "this Idempotency-Key was used for another request; take a fresh one",
            code="idempotency_key_reused",
        )
    return KeptAnswer(row.status, row.body, row.location)


def keep_answer(
    session: Session, tenant_id: str, key: str, request_sha256: str, answer: KeptAnswer
) -> None:
    """Store the answer that ``key`` stands for from now on."""
    session.add(
        IdempotencyKey(
            tenant_id=tenant_id,
            key=key,
            request_sha256=request_sha256,
            status=answer.status,
            body=dict(answer.body),
            location=answer.location,
        )
    )
    session.flush()
