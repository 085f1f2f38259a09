"""The Celery application: bells over Redis, nothing kept there that cannot be lost."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from celery import Celery
from kombu.entity import Queue as KombuQueue
from kombu.transport.virtual import QoS

from app.queues.names import Queue
from app.settings import Settings


def make_celery(settings: Settings) -> Celery:
    """A Celery application as delivery needs it; opens no connection yet.

    PostgreSQL is the truth and a message only a doorbell, so everything in Celery that would
    keep state in Redis is off.
    """
    # Bells that a stopping worker has not answered are rung again. Kombu would put them back, and
    # write them to a file in /tmp where Redis is away.
    QoS.restore_at_shutdown = False
    app = Celery("darkroom", broker=kombu_url(settings.redis_url.get_secret_value()))
    app.conf.update(
        # JSON only: a message must never be able to run code.
        accept_content=["json"],
        task_serializer="json",
        result_serializer="json",
        # Results are rows in SQL.
        task_ignore_result=True,
        result_backend=None,
        # A bell lost between pop and ack is rung again by the dispatcher; acknowledging late
        # merely makes that rarer.
        task_acks_late=True,
        worker_prefetch_multiplier=1,
        task_queues=[
            KombuQueue(queue.value, routing_key=queue.value)  # type: ignore[no-untyped-call]
            for queue in Queue
        ],
        task_create_missing_queues=False,
        task_default_queue=Queue.IO.value,
        broker_transport_options={
            # Keeps no copy of a bell in Redis while a worker answers it: the dispatcher rings
            # again what gets lost. With copies, an acknowledgement that met a dead Redis kept
            # its place among the prefetched for good, and a worker with none left was deaf.
            "ack_emulation": False,
            "socket_keepalive": True,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
            "health_check_interval": 10,
            "retry_on_timeout": True,
            # Publishing waits for no dead Redis: the dispatcher comes again anyway, and has
            # other work. Workers reconnect by broker_connection_max_retries instead.
            "max_retries": 1,
            "interval_start": 0.2,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # No remote control, no events: fewer keys in Redis, nothing to steer from outside.
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_send_sent_event=False,
        # Our own logging stays.
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
    )
    return app


def kombu_url(redis_url: str) -> str:
    """The broker URL in kombu's spelling: redis-py's ``unix://`` is its ``redis+socket://``.

    Over TLS kombu checks no certificate unless it is told to; redis-py does, and so do we.
    """
    if redis_url.startswith("unix://"):
        return "redis+socket://" + redis_url.removeprefix("unix://")
    if redis_url.startswith("rediss://"):
        parts = urlsplit(redis_url)
        checks = {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}
        return urlunsplit(parts._replace(query=urlencode(checks | dict(parse_qsl(parts.query)))))
    return redis_url


def bell(chunk_id: str, tenant_id: str) -> dict[str, Any]:
    """The whole content of a message: ids to look up, never data to trust."""
    return {"chunk_id": chunk_id, "tenant_id": tenant_id}
