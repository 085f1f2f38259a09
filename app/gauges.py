"""Serves a process's own gauges to Prometheus, where the setting names a port."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from app.log import get_logger
from app.settings import Settings

log = get_logger(__name__)


def make_registry() -> CollectorRegistry:
    """A registry with what the process takes: memory, processor time, start time, open files."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    return registry


def serve_gauges(settings: Settings, registry: CollectorRegistry) -> int | None:
    """Serve ``/metrics`` from a thread until the process ends; the port, None where it is off.

    A port that is taken is no reason not to work.
    """
    if not settings.metrics_port:
        return None
    try:
        server, _ = start_http_server(settings.metrics_port, settings.api_host, registry)
    except OSError as error:
        log.warning("gauges_not_served", port=settings.metrics_port, error=str(error))
        return None
    log.info("gauges_served", port=server.server_port)
    return int(server.server_port)
