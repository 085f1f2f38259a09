"""Sortable ids with a prefix that says what they name: ``job_01k8…``.

48 bits of milliseconds and 80 random bits in Crockford's base 32 (the ULID layout), so that
ids made later sort later and an index grows at its end.
"""

from __future__ import annotations

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_LENGTH = 26

JOB = "job"
CHUNK = "chk"
WORKER = "wrk"
UPLOAD = "upl"
DATASET = "dst"
DATASET_VERSION = "dsv"
MODEL = "mdl"
MODEL_VERSION = "mdv"
ARTIFACT = "art"
TENANT = "ten"
KEY = "key"
WEBHOOK = "whk"
DELIVERY = "dlv"
GRANT = "grt"
EVALUATION = "evl"
ALIAS_MOVE = "mov"
REQUEST = "req"
AUDIT_ENTRY = "aud"


def id_before(prefix: str, seconds: float) -> str:
    """Less than every id made within the last ``seconds``."""
    return _id(prefix, int((time.time() - seconds) * 1000), 0)


def new_id(prefix: str) -> str:
    """A fresh id such as ``job_01k8z…``; about 2^80 of them fit in one millisecond."""
    return _id(prefix, time.time_ns() // 1_000_000, secrets.randbits(80))


def id_at(prefix: str, seconds: float) -> str:
    """A fresh id of a moment, in seconds since 1970: where another clock than ours must count."""
    return _id(prefix, int(seconds * 1000), secrets.randbits(80))


def _id(prefix: str, milliseconds: int, rest: int) -> str:
    value = milliseconds << 80 | rest
    digits = [_ALPHABET[(value >> shift) & 31] for shift in range(5 * (_LENGTH - 1), -1, -5)]
    return f"{prefix}_{''.join(digits)}"
