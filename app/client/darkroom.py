"""The service as one Python object."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Self

import httpx2

from app.client.address import find_address
from app.client.artifacts import Artifacts
from app.client.audit import Audit
from app.client.catalogue import Catalogue
from app.client.datasets import Datasets
from app.client.jobs import Jobs
from app.client.keys import Keys
from app.client.models import Models
from app.client.transport import OnRetry, Transport
from app.client.uploads import Uploads
from app.client.webhooks import Webhooks


class Darkroom:
    """A connection to one Darkroom; a context manager, safe to share between threads.

    ``url`` and ``key`` default to DARKROOM_URL and DARKROOM_API_KEY, else to the
    ``client.json`` of a `darkroom up` on this machine. ``http`` and ``links_http`` stand in for
    the network, to the service and to presigned links. A call that the service cannot take now
    (429, 503) is tried again a few times; ``on_retry`` is told why, and after how many seconds.

        with Darkroom() as darkroom:
            added = darkroom.uploads.add("photos.zip")
            darkroom.jobs.wait(added.job.id)
            job = darkroom.jobs.submit_predict({"upload": added.upload.id}, "digits")
            darkroom.jobs.wait(job.id)
            for result in darkroom.jobs.results(job.id):
                print(result.custom_id, result.prediction)
    """

    def __init__(
        self,
        url: str | None = None,
        key: str | None = None,
        *,
        timeout_seconds: float = 30.0,
        http: httpx2.BaseTransport | None = None,
        links_http: httpx2.BaseTransport | None = None,
        pause: Callable[[float], None] = time.sleep,
        on_retry: OnRetry | None = None,
    ) -> None:
        self.address = find_address(url, key)
        self.transport = Transport(
            self.address,
            timeout_seconds=timeout_seconds,
            http=http,
            links_http=links_http,
            pause=pause,
            on_retry=on_retry,
        )
        self.uploads = Uploads(self.transport)
        self.jobs = Jobs(self.transport)
        self.datasets = Datasets(self.transport)
        self.models = Models(self.transport)
        self.catalogue = Catalogue(self.transport)
        self.artifacts = Artifacts(self.transport)
        self.keys = Keys(self.transport)
        self.webhooks = Webhooks(self.transport)
        self.audit = Audit(self.transport)

    def openapi(self) -> dict[str, Any]:
        """The service's OpenAPI document."""
        return self.transport.call("GET", "/v1/openapi.json").json()

    def workers(self) -> list[dict[str, Any]]:
        """The worker processes that the service knows; needs the scope ``admin``."""
        return list(self.transport.pages("/v1/workers"))

    def quotas(self) -> dict[str, dict[str, int]]:
        """Each quota of the tenant by its name: ``{"limit": …, "used": …}``."""
        found: dict[str, Any] = self.transport.call("GET", "/v1/quotas").json()
        return {name: quota for name, quota in found.items() if isinstance(quota, dict)}

    def input_locations(self) -> list[str]:
        """The `s3://bucket/prefix/` below which jobs may read; `*` is anywhere, none nowhere."""
        found: list[str] = self.transport.call("GET", "/v1/quotas").json()["input_locations"]
        return found

    def counters(self) -> dict[str, float]:
        """The API process's own counters by name, e.g. its peak of memory in bytes."""
        text = self.transport.call("GET", "/metrics").content.decode()
        pairs = (line.rsplit(" ", 1) for line in text.splitlines() if line[:1] not in ("", "#"))
        return {name: float(value) for name, value in pairs}

    def close(self) -> None:
        """Close all connections."""
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
