"""The address of Redis as the client library spells it; imports no Celery."""

from __future__ import annotations


def redis_py_url(redis_url: str) -> str:
    """The same address in redis-py's spelling."""
    if redis_url.startswith("redis+socket://"):
        return "unix://" + redis_url.removeprefix("redis+socket://")
    return redis_url
