"""The local parts keep their data over a stop and over the death of everything around them."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
import redis
from botocore.config import Config
from botocore.exceptions import ClientError
from kombu.connection import Connection

from app.stack.part import Part
from app.stack.postgres import LocalPostgres, check_way, find_postgres_binaries
from app.stack.processes import StackError, free_port, runs_in, stop_orphan, wait_gone
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey

HOLD = """
import sys
from pathlib import Path
from app.stack.{module} import {name} as Launcher
part = Launcher(Path(sys.argv[1]))
part.start()
print(part.pid, flush=True)
sys.stdin.read()
"""


def s3_client(s3: LocalS3, **keys: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint_url,
        aws_access_key_id=keys.get("key", s3.access_key_id),
        aws_secret_access_key=keys.get("secret", s3.secret_access_key),
        region_name="us-east-1",
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def kombu_connection(valkey: LocalValkey) -> Any:
    connect: Any = Connection
    return connect(valkey.url)


def leave_orphan(part: type[Part], data_dir: Path) -> int:
    """Start a part from another process and kill that process; returns the part's pid."""
    source = HOLD.format(module=part.__module__.rsplit(".", 1)[1], name=part.__name__)
    holder = subprocess.Popen(
        [sys.executable, "-c", source, str(data_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        pid = int(holder.stdout.readline())
        holder.kill()
    return pid


def test_postgres_keeps_rows_over_stop_and_start(data_dir: Path) -> None:
    with LocalPostgres(data_dir) as postgres:
        with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
        first_url = postgres.admin_url
    assert not postgres.alive
    with LocalPostgres(data_dir) as again, psycopg.connect(again.admin_url) as connection:
        assert again.admin_url == first_url
        assert connection.execute("SELECT value FROM kept").fetchone() == (7,)
        shown = {
            name: (connection.execute(f"SHOW {name}").fetchone() or [None])[0]
            for name in ("fsync", "synchronous_commit", "max_connections", "listen_addresses")
        }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": "100",
        "listen_addresses": "127.0.0.1",
    }


def test_postgres_refuses_a_wrong_password(postgres: LocalPostgres) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url("postgres", "wrong", "postgres"))


def test_postgres_starts_again_after_kill(data_dir: Path) -> None:
    with LocalPostgres(data_dir) as postgres:
        with psycopg.connect(postgres.admin_url, autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
            assert postgres.pid is not None
            os.kill(postgres.pid, signal.SIGKILL)
            # The killed server's lock file and this session's backend are still there.
            again = LocalPostgres(data_dir)
            again.start()
        with again, psycopg.connect(again.admin_url) as connection:
            assert connection.execute("SELECT value FROM kept").fetchone() == (7,)


@pytest.mark.parametrize("part", [LocalPostgres, LocalValkey, LocalS3])
def test_orphan_of_a_killed_supervisor_is_stopped_and_replaced(
    part: type[Part], data_dir: Path
) -> None:
    orphan = leave_orphan(part, data_dir)
    os.kill(orphan, 0)
    with part(data_dir) as fresh:
        assert fresh.pid not in (None, orphan)
        assert wait_gone(orphan, 0)


def test_lock_file_that_names_a_stranger_is_dropped_and_the_stranger_lives(
    data_dir: Path,
) -> None:
    LocalPostgres(data_dir).__enter__().stop()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
        (data_dir / "postgres" / "postmaster.pid").write_text(f"{stranger.pid}\n")
        with LocalPostgres(data_dir) as postgres:
            assert postgres.alive
            assert stranger.poll() is None
        assert stranger.stdin is not None
        stranger.stdin.close()


def test_taken_port_is_named_with_the_end_of_the_log(
    data_dir: Path, postgres: LocalPostgres
) -> None:
    with pytest.raises(StackError) as caught:
        LocalPostgres(data_dir, port=postgres.port).start()
    assert f"port {postgres.port} is taken" in caught.value.detail
    assert "could not bind" in caught.value.detail


def test_remembered_port_that_someone_took_is_replaced(
    data_dir: Path, postgres: LocalPostgres
) -> None:
    (data_dir / "postgres.port").write_text(str(postgres.port))
    with LocalPostgres(data_dir) as other:
        assert other.port != postgres.port
        assert (data_dir / "postgres.port").read_text().strip() == str(other.port)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can own a folder closed to others")
def test_postgres_serves_from_below_a_folder_that_only_root_may_enter(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    programs = find_postgres_binaries()
    package = programs.parents[1]
    # With the libraries beside it, which the programs find from where they lie.
    for folder in (programs.parent, package.with_name(f"{package.name}.libs")):
        place = closed / folder.relative_to(package.parent)
        shutil.copytree(folder, place, symlinks=True)
    binaries = closed / programs.relative_to(package.parent)
    monkeypatch.setattr("app.stack.postgres.find_postgres_binaries", lambda: binaries)
    with LocalPostgres(closed / "data", fast=True) as postgres:
        with psycopg.connect(postgres.admin_url) as connection:
            (answer,) = connection.execute("SELECT 6 * 7").fetchone() or (None,)
        assert answer == 42
        status = Path(f"/proc/{postgres.pid}/status").read_text()
    assert "Uid:\t0" not in status
    assert closed.stat().st_mode & 0o777 == 0o700


def test_closed_folder_on_the_way_is_named_and_stays_closed(data_dir: Path) -> None:
    closed = data_dir / "closed"
    closed.mkdir(mode=0o700)
    stranger = pwd.struct_passwd(("stranger", "x", 65533, 65533, "", "/", "/bin/false"))
    with pytest.raises(StackError, match=rf"pass through {closed} \(mode 700\)"):
        check_way(stranger, closed / "postgres", "its data")
    assert closed.stat().st_mode & 0o777 == 0o700


def test_valkey_keeps_messages_and_serves_both_clients(data_dir: Path) -> None:
    with LocalValkey(data_dir) as valkey:
        with kombu_connection(valkey) as connection:
            connection.SimpleQueue("bells").put({"chunk": 1})
        with redis.Redis.from_url(valkey.client_url) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert client.config_get("appendonly") == {"appendonly": "yes"}
    with LocalValkey(data_dir) as again, kombu_connection(again) as connection:
        message = connection.SimpleQueue("bells").get(timeout=5)
        message.ack()
        assert message.payload == {"chunk": 1}


def test_valkey_takes_a_short_private_socket_where_the_data_path_is_long(data_dir: Path) -> None:
    deep = data_dir / ("photos of the year 2026 " * 4) / "darkroom"
    with LocalValkey(deep) as valkey:
        assert deep not in valkey.socket_path.parents
        assert valkey.socket_path.parent.stat().st_mode & 0o777 == 0o700
        with redis.Redis.from_url(valkey.client_url) as client:
            assert client.ping()
    assert not valkey.socket_path.parent.exists()


def test_s3_keeps_objects_and_refuses_a_wrong_key(data_dir: Path) -> None:
    with LocalS3(data_dir) as s3:
        s3_client(s3).put_object(Bucket="darkroom", Key="a/b", Body=b"kept")
        with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
            s3_client(s3, secret="0" * 40).list_buckets()
    with LocalS3(data_dir) as again:
        body = s3_client(again).get_object(Bucket="darkroom", Key="a/b")["Body"].read()
    assert body == b"kept"


def test_secrets_are_private_and_stay_the_same(data_dir: Path) -> None:
    first, second = LocalS3(data_dir), LocalS3(data_dir)
    assert first.secrets == second.secrets
    assert (data_dir / "secrets.json").stat().st_mode & 0o777 == 0o600
    assert first.secret_access_key not in repr(first.secrets)


def test_pid_of_a_stranger_is_not_taken_for_ours(data_dir: Path) -> None:
    assert not runs_in(os.getpid(), data_dir, "python")
    assert runs_in(os.getpid(), Path.cwd(), "python")


def test_stop_orphan_reports_a_pid_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    assert stop_orphan(gone.pid, (signal.SIGTERM, 1.0))


def test_free_port_is_free() -> None:
    assert free_port() != 0
