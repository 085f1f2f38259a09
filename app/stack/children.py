"""Which processes make up Darkroom on one machine, and what each is told by its environment."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from app.stack.supervisor import ChildSpec

#: Time gunicorn gives requests in flight; below the drain time, so that it ends by itself.
API_GRACE_SECONDS = 20
#: A request that shows no life for so long is cut; long polls and uploads stay below it.
API_TIMEOUT_SECONDS = 120

#: On one machine the API, the database and the dispatcher go before the workers: who asks waits for
#: an answer, and work that takes minutes does not notice.
WORKER_NICENESS = 10

#: Roles above row level security.
_NOT_HANDED_ON = frozenset({"SYSTEM_DATABASE_URL", "ADMIN_DATABASE_URL"})


def child_specs(
    *,
    data_dir: Path,
    host: str,
    port: int,
    api_threads: int,
    inference_workers: int,
    environment: Mapping[str, str],
    system_url: str,
    worker_suffix: str = "",
) -> list[ChildSpec]:
    """The children in the order in which they are told to stop: workers, dispatcher, API.

    ``environment`` is all they get of ours. Only the dispatcher gets the system role's URL,
    and nobody the superuser's: API and workers stay under row level security. A worker takes
    over the leases of its namesake on this host, so folders that share one database need a
    ``worker_suffix`` each.
    """
    common = {name: value for name, value in environment.items() if name not in _NOT_HANDED_ON}

    def module(name: str, *words: str) -> list[str]:
        return [sys.executable, "-P", "-m", name, *words]

    def worker(role: str, number: int) -> ChildSpec:
        name = f"{role}-{number}"
        return ChildSpec(
            name,
            module("worker.main", "--role", role),
            {
                "DARKROOM_NICENESS": str(WORKER_NICENESS),
                **common,
                "DARKROOM_WORKER_NAME": name + worker_suffix,
                # One port serves one process: the dispatcher, which tells of all.
                "DARKROOM_METRICS_PORT": "0",
            },
            is_worker=True,
        )

    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return [
        *(worker("inference", number + 1) for number in range(inference_workers)),
        worker("training", 1),
        worker("io", 1),
        ChildSpec(
            "dispatcher",
            module("app.dispatch.run"),
            {**common, "SYSTEM_DATABASE_URL": system_url},
        ),
        ChildSpec(
            "api",
            module(
                "gunicorn",
                *("--worker-class", "app.api.server.ApiWorker", "--workers", "1"),
                *("--threads", str(api_threads), "--bind", address),
                *("--graceful-timeout", str(API_GRACE_SECONDS)),
                *("--timeout", str(API_TIMEOUT_SECONDS)),
                # Modules are looked for where gunicorn stands, and the user's folder may hold
                # an `app` of its own.
                *("--chdir", str(data_dir), "--no-control-socket"),
                "app.api.app:create_app()",
            ),
            {
                **common,
                "DARKROOM_API_HOST": host,
                "DARKROOM_API_PORT": str(port),
                "DARKROOM_API_THREADS": str(api_threads),
            },
        ),
    ]
