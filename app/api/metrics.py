"""Operations counters of this process, in the text format of Prometheus."""

from __future__ import annotations

import resource as limits
import sys

from flask import Response, current_app
from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest

from app.api.resource import Resource

MEDIA_TYPE = "text/plain"
#: getrusage counts kilobytes, but bytes on macOS.
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024

resource = Resource("metrics", "Health", "What the service takes.", prefix=None)


@resource.route_as("get", "/metrics", answers={200: MEDIA_TYPE}, guarded=False)
def get_metrics() -> Response:
    """Read the process's counters: memory, processor time, open files. No tenant's data."""
    registry = current_app.extensions.setdefault("darkroom.metrics", make_registry())
    return Response(
        generate_latest(registry), content_type=f"{MEDIA_TYPE}; version=0.0.4; charset=utf-8"
    )


def make_registry() -> CollectorRegistry:
    """A registry of its own for each application, so that two in one process do not collide."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    peak = Gauge(
        "process_peak_resident_memory_bytes",
        "Most resident memory that the process ever held, in bytes.",
        registry=registry,
    )
    peak.set_function(lambda: limits.getrusage(limits.RUSAGE_SELF).ru_maxrss * _RSS_UNIT_BYTES)
    return registry
