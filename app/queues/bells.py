"""What a worker takes from Redis: bells of ours, made anew, and nothing else.

Whoever can write to Redis could push anything. Kombu and Celery end the whole process on a
message that is no JSON or of another shape, and one of the right shape may name tasks of
Celery's own, calls to follow and times to wait until. So only two ids are taken out of a
message; what the worker sees is built here.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, redis
from kombu.utils.uuid import uuid

from app.ids import CHUNK, TENANT
from app.log import get_logger
from app.queues.celery import bell
from app.queues.names import QUEUE_OF_TASK, celery_task_name

log = get_logger(__name__)

#: A bell's body has 150 bytes or so.
_MAX_BODY_CHARACTERS = 4096
_CHUNK_ID = re.compile(rf"{CHUNK}_[0-9a-z]{{26}}")
_TENANT_ID = re.compile(rf"{TENANT}_[0-9a-z]{{26}}")
_TASKS = {celery_task_name(task): queue for task, queue in QUEUE_OF_TASK.items()}
#: What Python raises where a text is no JSON, or kombu where it is odd JSON.
_NOT_JSON = (ValueError, TypeError, KeyError, ArithmeticError, RecursionError)


def use_bell_transport() -> None:
    """Let every connection of this process to Redis take bells only."""
    for scheme in ("redis", "rediss"):
        TRANSPORT_ALIASES[scheme] = f"{__name__}:BellTransport"


def read_bell(message: Any, queue: str) -> dict[str, Any] | None:
    """A message as :func:`app.queues.publish.ring` makes it, of the same task and ids.

    None where ``message`` is no bell that is rung in this queue.
    """
    try:
        task, body = message["headers"]["task"], message["body"]
        if not isinstance(task, str) or _TASKS.get(task) != queue:
            return None
        if not isinstance(body, str) or len(body) > _MAX_BODY_CHARACTERS:
            return None
        arguments, words, _ = json.loads(base64.b64decode(body, validate=True))
        chunk_id, tenant_id = words.pop("chunk_id"), words.pop("tenant_id")
        if arguments or words or not _CHUNK_ID.fullmatch(chunk_id):
            return None
        if not _TENANT_ID.fullmatch(tenant_id):
            return None
    except (*_NOT_JSON, AttributeError, binascii.Error):
        return None
    return _message(task, queue, bell(chunk_id, tenant_id))


def _message(task: str, queue: str, words: dict[str, Any]) -> dict[str, Any]:
    """Version 2 of Celery's message protocol, as kombu's Redis transport keeps it."""
    task_id = uuid()
    body = json.dumps([[], words, {"callbacks": None, "errbacks": None, "chain": None}])
    return {
        "body": base64.b64encode(body.encode()).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            "lang": "py",
            "task": task,
            "id": task_id,
            "root_id": task_id,
            "retries": 0,
            "timelimit": [None, None],
            "ignore_result": True,
        },
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_tag": uuid(),
            "delivery_info": {"exchange": "", "routing_key": queue},
            "body_encoding": "base64",
        },
    }


class BellChannel(redis.Channel):
    """Survives what is no JSON at all."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except _NOT_JSON as error:
            log.warning("message_refused", reason=type(error).__name__)
            return True


class BellTransport(redis.Transport):
    """Hands bells to their consumers and drops the rest."""

    Channel = BellChannel

    def _deliver(self, message: Any, queue: str) -> None:
        found = read_bell(message, queue)
        if found is None:
            log.warning("message_refused", queue=queue, reason="no bell")
            return
        super()._deliver(found, queue)  # type: ignore[no-untyped-call]
