"""What authentication, the tenant layer and rate limits add to a poll.

``make bench ONLY=api [POLLS=4000]``. The same poll of the same job goes through the application as
it is, and through one in which nobody is asked for a key, no request is counted, and the question
goes to the database under a role that row level security does not bind. The two take turns within
one run, so that what else the machine does falls on both; no socket is between.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flask import g, request
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

from app.api.app import _begin as begin_request
from app.api.app import create_app
from app.db.session import Database
from app.log import configure_logging
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.scopes import Principal, Scope
from tests.api_client import Api, import_body, make_app, make_key
from tests.bench.service import local_parts, say
from tests.factories import make_tenant
from tests.local_parts import scratch_folder

POLLS = int(os.environ.get("POLLS") or 4000)
_WARM = 300
#: The issue's bound.
MOST_ADDED_MS = 1.0

_UNBOUND = """
    SELECT answer.*
    FROM (SELECT %(tenant_id)s::text) AS bound (tenant_id)
    CROSS JOIN LATERAL ({question} OFFSET 0) AS answer
"""


class _BareDatabase(Database):
    """A database whose questions no tenant is bound to."""

    def ask_as(self, tenant_id: str, question: str, words: Mapping[str, Any]) -> Sequence[Any]:
        """The same rows, found by the WHERE alone."""
        return self.ask(_UNBOUND.format(question=question), {**words, "tenant_id": tenant_id})


def main() -> None:
    """Measure, and print one line."""
    configure_logging("ERROR")
    with scratch_folder("darkroom-bench-") as folder, local_parts(folder) as parts:
        settings = parts.settings.model_copy(update={"max_requests_per_minute": 10_000_000})
        database = Database.from_settings(settings)
        tenant_id = make_tenant(database)
        key = make_key(database, settings, tenant_id)
        app = make_app(settings, ObjectStore.from_settings(settings))
        job = Api(app, key)("POST", "/v1/jobs", json=import_body()).json["id"]
        full, bare = _poll(app, job, key), _poll(_bare_app(settings, tenant_id), job, None)
        for _ in range(_WARM):
            full(), bare()
        pairs = [(full(), bare()) for _ in range(POLLS)]
        database.close()
    poll, without = (statistics.median(each) for each in zip(*pairs, strict=True))
    added = [one - other for one, other in pairs]
    say(
        f"api poll_ms={poll:.3f} bare_ms={without:.3f} added_ms={statistics.median(added):.3f} "
        f"ratio={poll / without:.2f} added_mean_ms={statistics.fmean(added):.3f} polls={POLLS}"
    )
    if statistics.fmean(added) >= MOST_ADDED_MS:
        raise SystemExit(f"authentication and limits add {MOST_ADDED_MS} ms or more to a poll")


def _bare_app(settings: Settings, tenant_id: str) -> Any:
    """The application without the three; everything else of it is the same."""
    app = create_app(settings)
    principal = Principal(tenant_id, "key_none", frozenset({Scope.ADMIN}))
    operations = {
        name: replace(operation, guarded=False)
        for resource in app.extensions["darkroom.resources"]
        for name, operation in resource.operations.items()
    }

    def begin() -> None:
        begin_request(operations.get(request.endpoint or ""))
        g.principal = principal

    app.before_request_funcs[None] = [begin]
    here = app.extensions["darkroom"]
    database = _BareDatabase(settings.system_url, pool_size=2)
    app.extensions["darkroom"] = replace(here, db=database)
    return app


def _poll(app: Any, job_id: str, key: str | None) -> Callable[[], float]:
    """One poll through the application, in milliseconds."""
    headers = Headers({"Authorization": f"Bearer {key}"} if key else {})
    environ = EnvironBuilder(path=f"/v1/jobs/{job_id}", headers=headers).get_environ()

    def poll() -> float:
        statuses: list[str] = []
        began = time.perf_counter()
        answer = app({**environ}, lambda status, _headers: statuses.append(status))
        body = b"".join(answer)
        answer.close()
        milliseconds = (time.perf_counter() - began) * 1000
        assert statuses == ["200 OK"], statuses
        assert job_id.encode() in body
        return milliseconds

    return poll


if __name__ == "__main__":
    main()
