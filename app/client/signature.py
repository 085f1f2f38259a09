"""For receivers of webhooks: was this sent by the service, unaltered and just now?

After the Standard Webhooks specification, version 1.0.0, so that its libraries in any language do
the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any

_PREFIX = "whsec_"
TOLERANCE_SECONDS = 300


class SignatureError(Exception):
    """What came is not what the service sent, or not when: answer 401 and do nothing."""


def verify_webhook(
    headers: Mapping[str, str],
    body: bytes,
    secret: str,
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
) -> dict[str, Any]:
    """The event in a delivery, ``{type, timestamp, data}``, if it is signed with ``secret``.

    ``headers`` are the request's, their names in any case; ``body`` is as it came, before
    any parsing. A repeat has the same header ``webhook-id``, which is signed too.

    Raises:
        SignatureError: it is not; or not older or newer than the tolerance allows.
        ValueError: the secret is none.
    """
    key = _key(secret)
    found = {str(name).lower(): value for name, value in headers.items()}
    try:
        delivery_id, timestamp = found["webhook-id"], found["webhook-timestamp"]
        signatures = found["webhook-signature"]
    except KeyError as error:
        raise SignatureError(f"the header {error.args[0]} is missing") from None
    # Digits only: what int() lets pass besides would be another text than the signed one.
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        raise SignatureError("the header webhook-timestamp is no number of seconds")
    if abs(time.time() - int(timestamp)) > tolerance_seconds:
        raise SignatureError("it was sent too long ago, or one of the two clocks is wrong")
    signed = f"{delivery_id}.{timestamp}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
    if not any(_is(each, expected) for each in signatures.split(" ")):
        raise SignatureError("no signature is by this secret")
    event: dict[str, Any] = json.loads(body)
    return event


def _is(signature: str, expected: bytes) -> bool:
    """Whether a signature is the expected one, in a time that tells nothing of how far it is."""
    version, _, text = signature.partition(",")
    return version == "v1" and hmac.compare_digest(text.encode(), expected)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("a webhook's secret is whsec_ and base64, as it was shown when made")
    return key
