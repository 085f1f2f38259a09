"""Whether Redis keeps the bells it was given, and Celery takes none but JSON."""

from __future__ import annotations

from celery import Celery
from redis import Redis

from app.queues.address import redis_py_url

_JSON = ["json"]


def eviction_policy(redis_url: str) -> str | None:
    """The ``maxmemory-policy`` of Redis, or None where a managed one does not tell it.

    Raises:
        redis.RedisError: it does not answer.
    """
    with Redis.from_url(
        redis_py_url(redis_url), socket_connect_timeout=5, socket_timeout=5
    ) as client:
        # INFO and not CONFIG, which managed ones forbid.
        policy = client.info("memory").get("maxmemory_policy")
    return None if policy is None else str(policy)


def eviction_fault(policy: str | None) -> str | None:
    """A sentence where Redis would throw bells away when its memory is full."""
    if policy in (None, "noeviction"):
        return None
    return (
        f"Redis runs with maxmemory-policy={policy}: with its memory full it would throw bells "
        "away. Set maxmemory-policy=noeviction in its configuration."
    )


def message_faults(celery: Celery) -> list[str]:
    """A sentence for each setting by which a message could be more than JSON."""
    found = {
        "accept_content": list(celery.conf.accept_content),
        "task_serializer": [celery.conf.task_serializer],
        "result_serializer": [celery.conf.result_serializer],
    }
    return [
        f"Celery runs with {name}={value}: a message could run code. Only JSON may be taken."
        for name, value in found.items()
        if value != _JSON
    ]
