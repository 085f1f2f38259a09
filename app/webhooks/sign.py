"""Signs deliveries as the Standard Webhooks specification says, version 1.0.0.

``v1,`` and the base64 of HMAC-SHA-256 over ``<id>.<timestamp>.<body>``; while a secret is being
replaced one signature by each, with a space between, of which a receiver takes any.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from standardwebhooks import Webhook as Signer


def signed_headers(
    delivery_id: str, at: datetime, body: str, secrets: Iterable[bytes]
) -> dict[str, str]:
    """The headers by which a receiver knows who sent this, and when; unsigned without secrets."""
    headers = {"webhook-id": delivery_id, "webhook-timestamp": str(int(at.timestamp()))}
    signatures = [Signer(secret).sign(delivery_id, at, body) for secret in secrets]
    if signatures:
        headers["webhook-signature"] = " ".join(signatures)
    return headers
