"""The checks of ``darkroom doctor``, each an answer in one line with what to do."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from app.cli.words import bytes_text
from app.errors import DarkroomError

if TYPE_CHECKING:
    from app.settings import Settings

Verdict = Literal["ok", "warn", "fail"]

_LOW_DISK_BYTES = 5_000_000_000
_NO_DISK_BYTES = 500_000_000
_TORCH_SECONDS = 120
#: A worker that was not seen for so long is taken for dead.
SILENT_SECONDS = 60

_SCHEMA_ADVICE = {
    "schema_too_new": "upgrade this Darkroom",
    "schema_too_old": "run `darkroom migrate`",
}

#: Runs in a process of its own: the service itself never imports torch.
_TORCH_PROBE = """
import torch, torchvision
device = "cpu"
if torch.cuda.is_available():
    torch.ones(1, device="cuda").sum().item()
    device = f"cuda: {torch.cuda.get_device_name(0)}"
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {device}")
"""


@dataclass(frozen=True, slots=True)
class Check:
    """What one look found; ``advice`` says what to do where it is not ok."""

    name: str
    verdict: Verdict
    detail: str
    advice: str = ""


def check_parts(settings: Settings) -> Iterator[Check]:
    """Every part the settings name, one after the other."""
    for name, look in (
        ("database", check_database),
        ("redis", check_redis),
        ("object store", check_store),
        ("workers", check_workers),
    ):
        yield _guarded(name, look, settings)


def _guarded(name: str, look: Callable[[Settings], Check], settings: Settings) -> Check:
    """A check that breaks is a check that failed."""
    try:
        return look(settings)
    except DarkroomError as error:
        return Check(name, "fail", error.detail, f"see the settings of the {name}")
    except Exception as error:
        return Check(name, "fail", f"{type(error).__name__}: {error}", f"see the {name}'s own log")


def check_database(settings: Settings) -> Check:
    """The database answers under both roles and its schema is the newest of this code."""
    from sqlalchemy import text

    from app.db.durable import durability_faults
    from app.db.schema import SchemaError, newest_revision, require_schema
    from app.db.session import Database

    db = Database.from_settings(settings)
    try:
        with db.anonymous() as session:
            lost = durability_faults(session)
            version = str(session.execute(text("SHOW server_version")).scalar_one()).split()[0]
            bypasses = session.execute(
                text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = current_user")
            ).scalar_one()
        if bypasses:
            return Check(
                "database",
                "fail",
                "DATABASE_URL names a role that row level security does not bind",
                "use the role darkroom_api; `darkroom migrate` makes it",
            )
        require_schema(db)
    except SchemaError as error:
        return Check(
            "database", "fail", f"PostgreSQL {version}: {error.detail}", _SCHEMA_ADVICE[error.code]
        )
    finally:
        db.close()
    if lost:
        return Check(
            "database",
            "fail" if settings.require_durable else "warn",
            " ".join(lost),
            "dispatcher and workers refuse to start on it"
            if settings.require_durable
            else "DARKROOM_REQUIRE_DURABLE=false allows that, for tests alone",
        )
    return Check("database", "ok", f"PostgreSQL {version}, schema at {newest_revision()}")


def check_redis(settings: Settings) -> Check:
    """Redis answers and never throws bells away."""
    import redis

    from app.queues.address import redis_py_url

    url = redis_py_url(settings.redis_url.get_secret_value())
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            info = client.info("server")
            policy = str(client.info("memory").get("maxmemory_policy", "unknown"))
    except redis.RedisError as error:
        return Check("redis", "fail", f"does not answer: {error}", "start it, or set REDIS_URL")
    name = str(info.get("server_name", "redis")).capitalize()
    version = info.get("valkey_version") or info.get("redis_version")
    if policy != "noeviction":
        return Check(
            "redis",
            "warn" if policy == "unknown" or not settings.require_durable else "fail",
            f"{name} {version}, maxmemory-policy {policy}",
            "set maxmemory-policy noeviction, or bells get lost and rung again late",
        )
    return Check("redis", "ok", f"{name} {version}, noeviction")


def check_store(settings: Settings) -> Check:
    """An object can be written, read back and deleted."""
    from app.storage.s3 import ObjectStore

    store = ObjectStore.from_settings(settings)
    key, body = f"doctor/{uuid.uuid4()}", b"darkroom doctor"
    store.put(settings.bucket, key, body)
    try:
        read = store.read(settings.bucket, key)
    finally:
        store.delete(settings.bucket, [key])
    where = settings.s3_endpoint_url or f"AWS {settings.aws_region}"
    if read != body:
        return Check("object store", "fail", f"{where} gave back other bytes", "do not use it")
    return Check(
        "object store", "ok", f"wrote, read and deleted in bucket {settings.bucket} at {where}"
    )


def check_workers(settings: Settings) -> Check:
    """Somebody serves every queue."""
    from sqlalchemy import text

    from app.db.session import Database
    from app.queues.names import Queue

    db = Database.from_settings(settings)
    try:
        with db.anonymous() as session:
            rows = session.execute(
                text(
                    "SELECT queue, count(*) FROM workers WHERE gone_at IS NULL "
                    "AND last_seen_at > now() - make_interval(secs => :silent) GROUP BY queue"
                ),
                {"silent": SILENT_SECONDS},
            ).all()
    finally:
        db.close()
    alive = {str(queue): int(count) for queue, count in rows}
    return workers_verdict(alive, [queue.value for queue in Queue])


def workers_verdict(alive: dict[str, int], queues: list[str]) -> Check:
    """The check over live workers by queue."""
    missing = [queue for queue in queues if not alive.get(queue)]
    listed = ", ".join(f"{count} {queue}" for queue, count in sorted(alive.items())) or "none"
    if missing:
        return Check(
            "workers",
            "warn",
            f"{listed} alive; nobody serves {', '.join(missing)}",
            "start a worker for it; its jobs wait until then",
        )
    return Check("workers", "ok", f"{listed} alive")


def check_torch() -> Check:
    """Torch imports here, and on which device it computes."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _TORCH_PROBE],
            capture_output=True,
            text=True,
            timeout=_TORCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Check("torch", "fail", f"did not import within {_TORCH_SECONDS} s", "reinstall it")
    if probe.returncode == 0:
        return Check("torch", "ok", probe.stdout.strip())
    last = (probe.stderr.strip().splitlines() or ["no word"])[-1]
    if "ModuleNotFoundError" in last:
        return Check(
            "torch",
            "warn",
            "not installed: no worker that recognises or trains can run here",
            "install the extra `worker`; the API does not need it",
        )
    return Check("torch", "fail", last, "reinstall torch and torchvision")


def check_disk(path: Path) -> Check:
    """Room where the data or the weights lie."""
    path = path.expanduser().absolute()
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    detail = f"{bytes_text(free)} free at {path}"
    if free < _NO_DISK_BYTES:
        return Check("disk", "fail", detail, "make room: uploads and workers stop soon")
    if free < _LOW_DISK_BYTES:
        return Check("disk", "warn", detail, "make room before a large upload")
    return Check("disk", "ok", detail)
