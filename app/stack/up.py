"""``darkroom up``: everything of Darkroom on one machine, from one folder, until Ctrl-C."""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from app.clock import monotonic_seconds
from app.db.session import Database
from app.errors import SettingsError
from app.settings import load_settings
from app.stack.children import child_specs
from app.stack.locks import FolderLock
from app.stack.part import Part, prepare_data_dir
from app.stack.postgres import LocalPostgres
from app.stack.prepare import CLIENT_FILE, prepare_client, prepare_database
from app.stack.processes import (
    DiskFullError,
    PortTakenError,
    StackError,
    free_port,
    port_is_free,
)
from app.stack.readiness import Readiness, visible_host
from app.stack.s3 import LocalS3
from app.stack.secrets import load_secrets
from app.stack.supervisor import Supervisor
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore

DEFAULT_DATA_DIR = Path("darkroom-data")
FREE_BYTES_AT_LEAST = 500 * 1024 * 1024
READY_SECONDS = 60.0
DRAIN_MARGIN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What ``darkroom up`` can be told; ``port`` 0 takes any free one."""

    data_dir: Path = DEFAULT_DATA_DIR
    host: str = "127.0.0.1"
    port: int = 8080
    inference_workers: int = 1
    api_threads: int = 16
    drain_seconds: float = 25.0


@dataclass(slots=True)
class _Stack:
    """The parts that this run started, and the addresses that its children need."""

    environment: dict[str, str]
    url: str
    system_url: str
    admin_url: str | None
    own_database: bool
    parts: list[Part] = field(default_factory=list)


def run_up(
    options: UpOptions,
    *,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    ready: Callable[[Supervisor], None] | None = None,
) -> None:
    """Start everything, keep it running until Ctrl-C or SIGTERM, then drain and stop it.

    ``ready`` is called once when the service answers; it may ask the supervisor to stop.

    Raises:
        StackError: something did not start or stay up; ``exit_code`` tells the cases apart.
        SettingsError: a setting is wrong, or a part of others may lose what it is given.
    """
    began = monotonic_seconds()
    try:
        data_dir = prepare_data_dir(options.data_dir)
        _check_disk(data_dir)
        with _stop_signals(say) as signals, ExitStack() as cleanup:
            lock = FolderLock(data_dir)
            lock.acquire(patience_seconds=options.drain_seconds + DRAIN_MARGIN_SECONDS)
            cleanup.callback(lock.release)
            port = _claim_port(options)
            # Before any part starts; its address is not known yet.
            load_settings(DATABASE_URL=environ.get("DATABASE_URL") or "postgresql://127.0.0.1")
            stack = _start_parts(data_dir, environ, cleanup)
            prepare_database(url=stack.url, system_url=stack.system_url, admin_url=stack.admin_url)
            if environ.get("DATABASE_URL") or environ.get("REDIS_URL"):
                _check_durable(stack)
            address = f"http://{visible_host(options.host)}:{port}"
            key = prepare_client(
                data_dir,
                address=address,
                url=stack.url,
                system_url=stack.system_url,
                pepper=stack.environment["DARKROOM_KEY_PEPPER"],
                own_database=stack.own_database,
            )
            if key is not None:
                # Before anything else can fail: it is never shown again.
                say(f"API key, shown this once (kept in {data_dir / CLIENT_FILE}):\n  {key}")
            supervisor = Supervisor(
                child_specs(
                    data_dir=data_dir,
                    host=options.host,
                    port=port,
                    api_threads=options.api_threads,
                    inference_workers=options.inference_workers,
                    environment=stack.environment,
                    system_url=stack.system_url,
                    worker_suffix="" if stack.own_database else f"-{_digest(data_dir)}",
                ),
                logs_dir=data_dir / "logs",
                parts=stack.parts,
                say=say,
                keep_open=[lock.shared_descriptor],
            )
            signals.supervisor = supervisor
            try:
                supervisor.start()
                waiting = Readiness(visible_host(options.host), port, began)
                with closing(Database(stack.url, stack.system_url, pool_size=1)) as db:
                    is_ready = supervisor.run_until(
                        lambda: waiting.is_over(db, supervisor), READY_SECONDS
                    )
                if is_ready:
                    seconds = monotonic_seconds() - began
                    say(_greeting(address, data_dir, waiting.loading, seconds))
                    if ready is not None:
                        ready(supervisor)
                    supervisor.run()
            finally:
                supervisor.drain(options.drain_seconds + DRAIN_MARGIN_SECONDS)
        say(f"Stopped; the data stay in {data_dir}.")
    except KeyboardInterrupt:
        say("Stopped before it was ready.")
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _disk_full(options.data_dir) from error
        raise StackError(f"Darkroom cannot work in {options.data_dir}: {error}") from error


def _claim_port(options: UpOptions) -> int:
    port = options.port or free_port(options.host)
    if not port_is_free(port, options.host):
        raise PortTakenError(
            f"port {port} on {options.host} is taken; stop what listens there, or choose "
            "another with --port"
        )
    return port


def _start_parts(data_dir: Path, environ: Mapping[str, str], cleanup: ExitStack) -> _Stack:
    """Start each part that no URL stands in for; they stop in the opposite order."""
    secrets = load_secrets(data_dir)
    stack = _Stack(
        environment={
            **environ,
            "DARKROOM_KEY_PEPPER": environ.get("DARKROOM_KEY_PEPPER") or secrets.key_pepper,
            "DARKROOM_SEALING_KEYS": environ.get("DARKROOM_SEALING_KEYS") or secrets.sealing_keys,
            "DARKROOM_CACHE_DIR": environ.get("DARKROOM_CACHE_DIR") or str(data_dir / "cache"),
        },
        url=environ.get("DATABASE_URL", ""),
        system_url=environ.get("SYSTEM_DATABASE_URL", ""),
        admin_url=environ.get("ADMIN_DATABASE_URL"),
        own_database=not environ.get("DATABASE_URL"),
    )

    def start(part: Part) -> None:
        cleanup.callback(part.stop)
        part.start()
        stack.parts.append(part)

    if stack.own_database:
        postgres = LocalPostgres(data_dir)
        start(postgres)
        stack.url = postgres.url("darkroom_api", secrets.api_password)
        stack.system_url = postgres.url("darkroom_system", secrets.system_password)
        stack.admin_url = postgres.admin_url
    elif not stack.system_url:
        raise SettingsError(
            "DATABASE_URL is set but SYSTEM_DATABASE_URL is not; the dispatcher and the "
            "migrations need the role darkroom_system"
        )
    stack.environment["DATABASE_URL"] = stack.url
    if not environ.get("REDIS_URL"):
        valkey = LocalValkey(data_dir)
        start(valkey)
        stack.environment["REDIS_URL"] = valkey.url
    if environ.get("S3_ENDPOINT_URL"):
        _ensure_bucket(stack, environ)
    else:
        s3 = LocalS3(data_dir, buckets=(environ.get("DARKROOM_BUCKET") or "darkroom",))
        start(s3)
        stack.environment |= {
            "S3_ENDPOINT_URL": s3.endpoint_url,
            "AWS_ACCESS_KEY_ID": s3.access_key_id,
            "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
            # A session token of some AWS account would not fit our key pair.
            "AWS_SESSION_TOKEN": "",
        }
    return stack


def _ensure_bucket(stack: _Stack, environ: Mapping[str, str]) -> None:
    """Make the bucket in a store that is not ours; our own makes it as it starts."""
    names = ("S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    given: dict[str, str] = {name: environ[name] for name in names if environ.get(name)}
    if environ.get("DARKROOM_BUCKET"):
        given["bucket"] = environ["DARKROOM_BUCKET"]
    settings = load_settings(DATABASE_URL=stack.url, **given)
    ObjectStore.from_settings(settings).ensure_bucket(settings.bucket)


def _check_durable(stack: _Stack) -> None:
    """Refuse parts of others that may lose what they are given, as dispatcher and workers would."""
    # Celery is not for a process that stays: only parts that are not ours need it here.
    from app.queues.celery import make_celery
    from app.startup import check_start

    given: dict[str, str] = {
        "DATABASE_URL": stack.url,
        "REDIS_URL": stack.environment["REDIS_URL"],
        "sealing_keys": stack.environment["DARKROOM_SEALING_KEYS"],
    }
    if stack.environment.get("DARKROOM_REQUIRE_DURABLE"):
        given["require_durable"] = stack.environment["DARKROOM_REQUIRE_DURABLE"]
    settings = load_settings(**given)
    with (
        closing(Database(stack.url, stack.system_url, pool_size=1)) as db,
        closing(make_celery(settings)) as celery,
    ):
        check_start(settings, db, celery)


def _check_disk(data_dir: Path) -> None:
    if shutil.disk_usage(data_dir).free < FREE_BYTES_AT_LEAST:
        raise _disk_full(data_dir)


def _disk_full(data_dir: Path) -> DiskFullError:
    data_dir = data_dir.expanduser().absolute()
    place = next(folder for folder in (data_dir, *data_dir.parents) if folder.exists())
    free = shutil.disk_usage(place).free // (1024 * 1024)
    return DiskFullError(
        f"the disk that holds {data_dir} has {free} MB left and Darkroom wants "
        f"{FREE_BYTES_AT_LEAST // (1024 * 1024)} MB; free some space, or choose another "
        "folder with --data"
    )


def _digest(data_dir: Path) -> str:
    return hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:8]


def _greeting(address: str, data_dir: Path, loading: list[str], seconds: float) -> str:
    lines = [
        f"Darkroom is ready at {address} after {seconds:.1f} s.",
        f"  docs  {address}/v1/docs",
        f"  data  {data_dir}",
        "  in another terminal, so that the command line finds it from any folder:",
        f"        export DARKROOM_DATA={shlex.quote(str(data_dir))}",
    ]
    if loading:
        lines.append(f"  {', '.join(loading)} still loading; jobs are taken and wait for them.")
    return "\n".join([*lines, "Ctrl-C drains and stops."])


@dataclass(slots=True)
class _Signals:
    supervisor: Supervisor | None = None


@contextmanager
def _stop_signals(say: Callable[[str], None]) -> Iterator[_Signals]:
    """Let Ctrl-C, SIGTERM and a closed terminal stop us: the start at once, a run by draining."""
    signals = _Signals()

    def ask(_number: int, _frame: FrameType | None) -> None:
        if signals.supervisor is None:
            raise KeyboardInterrupt
        if not signals.supervisor.stopping:
            say("Draining; Ctrl-C again stops at once.")
        signals.supervisor.request_stop()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, ask) for number in numbers}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
