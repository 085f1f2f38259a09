"""`run_up` on real parts, with a small server in the place of the API and no workers."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from typer.testing import CliRunner

from app.cli.up import up
from app.errors import SettingsError
from app.stack import readiness
from app.stack import up as up_module
from app.stack.locks import FolderLock
from app.stack.postgres import LocalPostgres
from app.stack.processes import (
    AlreadyRunningError,
    DiskFullError,
    PortTakenError,
    StackError,
    free_port,
    wait_gone,
)
from app.stack.s3 import LocalS3
from app.stack.supervisor import ChildSpec, Supervisor
from app.stack.up import UpOptions, run_up
from app.stack.valkey import LocalValkey

# Answers /readyz; when told to stop, writes down what of the parts still answers.
API = """
import http.server, json, os, signal, sys, threading
import psycopg, redis
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.sigwait([signal.SIGTERM])
with psycopg.connect(os.environ["DATABASE_URL"]) as connection:
    role = connection.execute("SELECT current_user").fetchone()[0]
url = os.environ["REDIS_URL"].replace("redis+socket://", "unix://")
with open(sys.argv[2], "w") as file:
    json.dump({"role": role, "redis": redis.Redis.from_url(url).ping(),
               "system": "SYSTEM_DATABASE_URL" in os.environ}, file)
"""


@pytest.fixture
def small_api(monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> Path:
    """Put the small server in the place of all children; returns where it reports."""
    report = data_dir / "report.json"

    def specs(**given: Any) -> list[ChildSpec]:
        command = [sys.executable, "-c", API, str(given["port"]), str(report)]
        return [ChildSpec("api", command, given["environment"])]

    monkeypatch.setattr(up_module, "child_specs", specs)
    return report


def options(data_dir: Path, port: int = 0) -> UpOptions:
    return UpOptions(data_dir=data_dir, port=port, drain_seconds=10)


def test_first_start_shows_a_key_once_and_stop_keeps_everything(
    data_dir: Path, small_api: Path
) -> None:
    greetings = []
    for _ in range(2):
        lines = list[str]()
        run_up(options(data_dir), environ={}, say=lines.append, ready=Supervisor.request_stop)
        assert lines[-1] == f"Stopped; the data stay in {data_dir}."
        greetings.append("\n".join(lines))
    client = json.loads((data_dir / "client.json").read_text())
    assert client["key"].startswith("dk_")
    assert (data_dir / "client.json").stat().st_mode & 0o777 == 0o600
    assert client["key"] in greetings[0]
    assert client["key"] not in greetings[1]
    assert f"ready at {client['url']}" in greetings[1]
    # It could still ask the parts when it was told to stop: they end after the children.
    assert json.loads(small_api.read_text()) == {
        "role": "darkroom_api",
        "redis": True,
        "system": False,
    }
    assert not list(data_dir.glob("*/*.pid"))


# Runs `up` with the small server alone; killed by the test that started it.
UP = """
import sys
from pathlib import Path
from app.stack import up
from app.stack.supervisor import ChildSpec
folder = Path(sys.argv[1])
up.child_specs = lambda **given: [ChildSpec(
    "api", [sys.executable, "-c", sys.argv[2], str(given["port"]), str(folder / "report.json")],
    given["environment"])]
up.run_up(up.UpOptions(data_dir=folder, port=0), environ={}, say=lambda _: None,
    ready=lambda supervisor: print(*supervisor.pids().values(), flush=True))
"""


def test_next_up_takes_over_from_one_that_was_killed(data_dir: Path, small_api: Path) -> None:
    command = [sys.executable, "-c", UP, str(data_dir), API]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as killed:
        assert killed.stdout is not None
        child = int(killed.stdout.readline())
        postgres = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        killed.kill()
    lines = list[str]()
    run_up(options(data_dir), environ={}, say=lines.append, ready=Supervisor.request_stop)
    assert lines[-1] == f"Stopped; the data stay in {data_dir}."
    assert wait_gone(child, 0)
    assert wait_gone(postgres, 0)


def test_greeting_names_workers_that_still_load(
    data_dir: Path, small_api: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = vars(up_module)["child_specs"]
    command = [sys.executable, "-c", "import signal; signal.sigwait([signal.SIGTERM])"]
    slow = ChildSpec("inference-1", command, is_worker=True)
    monkeypatch.setattr(up_module, "child_specs", lambda **given: [slow, *specs(**given)])
    monkeypatch.setattr(readiness, "WORKERS_SECONDS", 0.0)
    lines = list[str]()
    run_up(options(data_dir), environ={}, say=lines.append, ready=Supervisor.request_stop)
    assert "inference-1 still loading; jobs are taken and wait for them." in lines[1]


def test_lost_client_file_gets_another_key(data_dir: Path, small_api: Path) -> None:
    keys = []
    for _ in range(2):
        run_up(options(data_dir), environ={}, say=lambda _: None, ready=Supervisor.request_stop)
        keys.append(json.loads((data_dir / "client.json").read_text())["key"])
        (data_dir / "client.json").unlink()
    assert keys[0] != keys[1]


def test_part_that_dies_is_started_again_on_the_same_address(
    data_dir: Path, small_api: Path
) -> None:
    lines = list[str]()

    def kill_postgres(supervisor: Supervisor) -> None:
        pid = int((data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        subprocess.run(["kill", "-9", str(pid)], check=True)
        supervisor.run_until(lambda: "answers again" in lines[-1], 20)
        supervisor.request_stop()

    run_up(options(data_dir), environ={}, say=lines.append, ready=kill_postgres)
    assert "PostgreSQL was killed by SIGKILL; starting it again." in lines
    # The child still found the database under the address it was given at its start.
    assert json.loads(small_api.read_text())["role"] == "darkroom_api"


def test_urls_replace_the_parts(
    data_dir: Path,
    small_api: Path,
    postgres: LocalPostgres,
    valkey: LocalValkey,
    s3: LocalS3,
) -> None:
    # Roles are shared by the whole server: the session's other tests use these passwords too.
    api, system = postgres.secrets.api_password, postgres.secrets.system_password
    environ = {
        "DATABASE_URL": postgres.url("darkroom_api", api, "replaced"),
        "SYSTEM_DATABASE_URL": postgres.url("darkroom_system", system, "replaced"),
        "ADMIN_DATABASE_URL": postgres.admin_url,
        "REDIS_URL": valkey.url,
        "S3_ENDPOINT_URL": s3.endpoint_url,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "DARKROOM_BUCKET": "replaced",
    }
    with pytest.raises(SettingsError) as refused:
        run_up(options(data_dir), environ=environ, say=lambda _: None)
    # The tests' PostgreSQL writes without fsync: not to be trusted unless somebody says so.
    assert refused.value.code == "not_durable"
    assert "fsync=off" in refused.value.detail
    assert not small_api.exists()
    environ["DARKROOM_REQUIRE_DURABLE"] = "false"
    try:
        run_up(
            options(data_dir), environ=environ, say=lambda _: None, ready=Supervisor.request_stop
        )
        assert not any((data_dir / part).exists() for part in ("postgres", "valkey", "s3"))
        assert json.loads(small_api.read_text())["role"] == "darkroom_api"
        # A store that is not ours has no bucket of ours before.
        assert (s3.objects_dir / "replaced").is_dir()
    finally:
        with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
            connection.execute("DROP DATABASE IF EXISTS replaced WITH (FORCE)")


def test_half_of_a_database_is_refused(data_dir: Path) -> None:
    result = CliRunner().invoke(
        _app(),
        ["--data", str(data_dir), "--port", "0"],
        env={
            "DATABASE_URL": "postgresql://darkroom_api:x@127.0.0.1:1/x",
        },
    )
    assert result.exit_code == 1
    assert "SYSTEM_DATABASE_URL is not" in result.output


def test_wrong_setting_is_named_as_in_the_environment_before_anything_starts(
    data_dir: Path,
) -> None:
    result = CliRunner().invoke(
        _app(),
        ["--data", str(data_dir), "--port", "0"],
        env={"DARKROOM_LEASE_SECONDS": "soon"},
    )
    assert result.exit_code == 1
    assert "DARKROOM_LEASE_SECONDS: Input should be a valid number" in result.output
    assert not (data_dir / "postgres").exists()


def test_second_up_on_the_same_folder_is_refused(data_dir: Path) -> None:
    lock = FolderLock(data_dir)
    lock.acquire(patience_seconds=0)
    try:
        with pytest.raises(AlreadyRunningError, match="already runs on"):
            run_up(options(data_dir), environ={}, say=lambda _: None)
        result = CliRunner().invoke(_app(), ["--data", str(data_dir)])
        assert result.exit_code == 8
    finally:
        lock.release()


def test_taken_port_is_named_before_anything_starts(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        with pytest.raises(PortTakenError, match=f"port {port} on 127.0.0.1 is taken"):
            run_up(options(data_dir, port), environ={}, say=lambda _: None)
        result = CliRunner().invoke(_app(), ["--data", str(data_dir), "--port", str(port)])
    assert result.exit_code == 9
    assert not (data_dir / "postgres").exists()


def test_full_disk_is_named_before_anything_starts(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up_module, "FREE_BYTES_AT_LEAST", 1 << 80)
    with pytest.raises(DiskFullError, match="MB left and Darkroom wants"):
        run_up(options(data_dir), environ={}, say=lambda _: None)
    result = CliRunner().invoke(_app(), ["--data", str(data_dir)])
    assert result.exit_code == 10


def test_disk_that_fills_during_the_start_is_named(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(up_module, "_start_parts", fail)
    with pytest.raises(DiskFullError):
        run_up(options(data_dir, free_port()), environ={}, say=lambda _: None)


def test_child_that_cannot_start_ends_up_and_stops_the_parts(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ChildSpec("api", [sys.executable, "-c", "raise SystemExit('broken on purpose')"])
    monkeypatch.setattr(up_module, "child_specs", lambda **_: [broken])
    with pytest.raises(StackError, match="api does not stay up"):
        run_up(options(data_dir), environ={}, say=lambda _: None)
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def test_signal_before_readiness_stops_what_has_started(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = list[str]()
    monkeypatch.setattr(
        up_module, "prepare_database", lambda **_: signal.raise_signal(signal.SIGTERM)
    )
    run_up(options(data_dir), environ={}, say=lines.append)
    assert lines == ["Stopped before it was ready."]
    assert not (data_dir / "postgres" / "postmaster.pid").exists()


def _app() -> Any:
    app = typer.Typer()
    app.command()(up)
    return app
