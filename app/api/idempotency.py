"""The Idempotency-Key header: at most one effect, and the same answer each time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from flask import Response, request
from sqlalchemy.orm import Session

from app.api.audit import record_reply
from app.api.parts import parts, principal
from app.api.replies import Reply
from app.errors import InvalidInputError
from app.jobs.idempotency import KeptAnswer, claim_key, keep_answer

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEY_PATTERN = r"^[\x21-\x7e]{1,255}$"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")


@dataclass(frozen=True, slots=True)
class Claim:
    """A request's key, and the digest of what it asks for."""

    key: str
    request_sha256: str

    def recall(self, session: Session) -> Reply | None:
        """The answer given before, if any; holds the claim until the transaction ends."""
        kept = claim_key(session, principal().tenant_id, self.key, self.request_sha256)
        return Reply(kept.status, dict(kept.body), kept.location) if kept else None

    def keep(self, session: Session, reply: Reply) -> None:
        """Store the answer with the work it tells of."""
        keep_answer(
            session,
            principal().tenant_id,
            self.key,
            self.request_sha256,
            KeptAnswer(reply.status, reply.body, reply.location),
        )


def read_claim(*, with_body: bool = True) -> Claim | None:
    """The claim that this request's header makes.

    The digest covers method, path, query and body; of a streamed upload, which is read only
    once and later, the announced length instead of the body.

    Raises:
        InvalidInputError: ``idempotency_key_invalid``.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidInputError(
            f"{HEADER} must be 1 to 255 visible ASCII characters", code="idempotency_key_invalid"
        )
    digest = hashlib.sha256()
    payload = request.get_data(cache=True) if with_body else str(request.content_length).encode()
    for piece in (request.method.encode(), request.path.encode(), request.query_string, payload):
        digest.update(len(piece).to_bytes(8, "big"))
        digest.update(piece)
    return Claim(key, digest.hexdigest())


def once(work: Callable[[Session], Reply], **headers: str) -> Response:
    """Do ``work`` in one transaction with its key, or repeat the answer it gave before.

    An error is not kept: nothing happened, so the same key may try again. The audit log's entry
    is written in the same transaction, so a repetition writes none.
    """
    claim = read_claim()
    with parts().db.tenant(principal().tenant_id) as session:
        kept = claim.recall(session) if claim else None
        if kept is None:
            reply = work(session)
            record_reply(session, reply)
            if claim:
                claim.keep(session, reply)
    if kept is not None:
        return replay(kept, **headers)
    return reply.response(**headers)


def replay(reply: Reply, **headers: str) -> Response:
    """An answer given before, marked as such."""
    response = reply.response(**headers)
    response.headers[REPLAYED] = "true"
    return response
