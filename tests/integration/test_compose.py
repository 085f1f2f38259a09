"""docker-compose.yml without Docker: our services' own commands, environment and healthchecks
run as processes against the local parts."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError

from app.cli.settings import setting_rows
from app.clock import monotonic_seconds
from app.db.session import Database
from app.jobs.tables import WorkerRow
from app.stack.postgres import LocalPostgres
from app.stack.processes import free_port, wait_ready
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey, find_valkey_binary

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
ALWAYS = sorted(
    name for name, service in OURS.items() if "healthcheck" in service and "profiles" not in service
)
DATABASE = "compose"
HEALTHY_SECONDS = 120.0
STOP_SECONDS = 35.0
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True, slots=True)
class Local:
    """What stands in for the hosts of the compose file on this machine."""

    folder: Path
    postgres: LocalPostgres
    valkey: LocalValkey
    s3: LocalS3
    api_port: int

    def fill_in(self, text: str) -> str:
        """The text with variables resolved and hosts of the compose network replaced."""
        variables = {
            "POSTGRES_PASSWORD": self.postgres.secrets.admin_password,
            "API_DATABASE_PASSWORD": self.postgres.secrets.api_password,
            "SYSTEM_DATABASE_PASSWORD": self.postgres.secrets.system_password,
            "VALKEY_PASSWORD": "of-the-container",
            "S3_ACCESS_KEY": self.s3.access_key_id,
            "S3_SECRET_KEY": self.s3.secret_access_key,
            "DARKROOM_KEY_PEPPER": self.postgres.secrets.key_pepper,
            "DARKROOM_SEALING_KEYS": self.postgres.secrets.sealing_keys,
            "DARKROOM_OLD_KEY_PEPPERS": "",
            "DARKROOM_SEALED_ONLY": "off",
            "DARKROOM_TRUSTED_PROXIES": "0",
            "DARKROOM_INPUT_LOCATIONS": "*",
            "DARKROOM_WEBHOOKS": "on",
            "DARKROOM_WEBHOOK_HOSTS": "",
            "DARKROOM_WEBHOOK_PRIVATE_NETWORKS": "",
        }
        text = VARIABLE.sub(lambda found: variables[found[1]], text)
        text = re.sub(r"@postgres:5432/darkroom\b", f"@postgres:5432/{DATABASE}", text)
        for host, here in {
            "@postgres:5432": f"@127.0.0.1:{self.postgres.port}",
            "redis://:of-the-container@valkey:6379/0": self.valkey.url,
            "http://s3:8333": self.s3.endpoint_url,
            "0.0.0.0:8080": f"127.0.0.1:{self.api_port}",
            "127.0.0.1:8080": f"127.0.0.1:{self.api_port}",
        }.items():
            text = text.replace(host, here)
        return text

    def environment(self, name: str) -> dict[str, str]:
        """What the container of a service would see, and nothing of ours."""
        filled = {key: self.fill_in(value) for key, value in OURS[name]["environment"].items()}
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "DARKROOM_CACHE_DIR": str(self.folder / "cache"),
            **filled,
            # The tests' PostgreSQL has fsync off.
            "DARKROOM_REQUIRE_DURABLE": "false",
            # Containers have a /tmp each.
            "DARKROOM_ALIVE_FILE": str(self.folder / f"{name}.alive"),
            "TMPDIR": str(self.folder),
        }

    def words(self, command: list[str]) -> list[str]:
        return [self.fill_in(word) for word in command]


def on_read_only_root(folder: Path) -> list[str]:
    """Words before a command that leave it nothing to write to but ``folder``, as our containers.

    None where this account may not mount.
    """
    script = 'mount --bind "$0" "$0" && mount -o remount,bind,ro / && exec "$@"'
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
    tried = subprocess.run([*words, "true"], capture_output=True, check=False)
    return words if tried.returncode == 0 else []


@pytest.fixture(scope="module")
def local(
    postgres: LocalPostgres,
    valkey: LocalValkey,
    s3: LocalS3,
    tmp_path_factory: pytest.TempPathFactory,
) -> Local:
    return Local(tmp_path_factory.mktemp("compose"), postgres, valkey, s3, free_port("127.0.0.1"))


@pytest.fixture(scope="module")
def migrated(local: Local) -> str:
    """What the one-shot service `migrate` prints."""
    done = subprocess.run(
        local.words(SERVICES["migrate"]["command"]),
        env=local.environment("migrate"),
        cwd=local.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def running(local: Local, migrated: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Every service of ours that starts without a profile, each a process."""
    processes: dict[str, subprocess.Popen[bytes]] = {}
    with ExitStack() as cleanup:
        for name in ALWAYS:
            log = cleanup.enter_context((local.folder / f"{name}.log").open("wb"))
            processes[name] = process = subprocess.Popen(
                [*on_read_only_root(local.folder), *local.words(OURS[name]["command"])],
                env=local.environment(name),
                cwd=local.folder,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
            cleanup.callback(_end, process)
        yield processes


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def test_migrate_makes_schema_bucket_and_one_first_key(local: Local, migrated: str) -> None:
    assert "the schema is up to date" in migrated
    assert "dk_" in migrated
    again = subprocess.run(
        local.words(SERVICES["migrate"]["command"]),
        env=local.environment("migrate"),
        cwd=local.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "dk_" not in again.stdout


def wait_healthy(local: Local, running: dict[str, subprocess.Popen[bytes]], name: str) -> None:
    """Probe as the container engine would, until the service's own healthcheck agrees."""
    kind, *check = OURS[name]["healthcheck"]["test"]
    assert kind == "CMD"
    process = running[name]
    until = monotonic_seconds() + HEALTHY_SECONDS
    while True:
        probe = subprocess.run(
            local.words(check),
            env=local.environment(name),
            cwd=local.folder,
            capture_output=True,
            timeout=30,
            check=False,
        )
        if probe.returncode == 0:
            return
        log = (local.folder / f"{name}.log").read_text()
        assert monotonic_seconds() < until, f"{name} is not healthy: {probe.stderr!r}\n{log}"
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
            pytest.fail(f"{name} ended with {process.returncode}:\n{log}")


@pytest.mark.parametrize("name", ALWAYS)
def test_service_becomes_healthy(
    local: Local, running: dict[str, subprocess.Popen[bytes]], name: str
) -> None:
    wait_healthy(local, running, name)


def test_workers_of_every_queue_have_registered(
    local: Local, running: dict[str, subprocess.Popen[bytes]]
) -> None:
    for name in ("worker", "worker-training", "worker-io"):
        wait_healthy(local, running, name)
    environment = local.environment("dispatcher")
    db = Database(environment["DATABASE_URL"], environment["SYSTEM_DATABASE_URL"])
    with db.system() as session:
        alive = {row.queue: row.pid for row in session.query(WorkerRow) if row.gone_at is None}
    db.close()
    assert alive == {
        queue: running[name].pid
        for queue, name in {
            "inference": "worker",
            "training": "worker-training",
            "io": "worker-io",
        }.items()
    }


def test_services_stop_at_sigterm(running: dict[str, subprocess.Popen[bytes]]) -> None:
    for process in running.values():
        process.terminate()
    codes = {name: process.wait(timeout=STOP_SECONDS) for name, process in running.items()}
    assert codes == dict.fromkeys(running, 0)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_image_is_pinned(name: str) -> None:
    _, _, tag = SERVICES[name]["image"].rpartition(":")
    assert re.fullmatch(r"\d+(\.\d+)+([.-]\w+)*", tag), tag


@pytest.mark.parametrize("dockerfile", ["deploy/api.Dockerfile", "deploy/worker.Dockerfile"])
def test_image_is_built_from_pinned_parts_and_does_not_run_as_root(dockerfile: str) -> None:
    text = (ROOT / dockerfile).read_text()
    stages = set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))
    for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE):
        assert image in stages or re.search(r":\d+\.\d+\.\d+-", image), image
    assert "--require-hashes" in text
    last_stage = text[text.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001$", last_stage, re.MULTILINE)
    assert last_stage.index("USER 10001") < last_stage.index("CMD")


def test_workers_can_be_scaled() -> None:
    for name, service in OURS.items():
        assert "container_name" not in service, name
        assert "ports" not in service or name == "api", name


@pytest.mark.parametrize("name", sorted(OURS))
def test_container_can_write_to_its_tmp_and_its_volumes_only(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_container_has_no_rights_of_root_but_those_to_step_down(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    to_step_down = {"CHOWN", "DAC_OVERRIDE", "FOWNER", "SETGID", "SETUID"}
    assert set(service.get("cap_add", ())) == (set() if name in OURS else to_step_down)


def test_settings_that_keep_what_was_and_who_asks_can_be_set_in_the_file_of_the_host() -> None:
    for name, service in OURS.items():
        for variable in (
            "DARKROOM_OLD_KEY_PEPPERS",
            "DARKROOM_SEALED_ONLY",
            "DARKROOM_TRUSTED_PROXIES",
        ):
            found = VARIABLE.fullmatch(service["environment"][variable])
            assert found, f"{name}: {variable}"
            assert found[1] == variable


def test_workers_with_torch_have_shared_memory_for_pixels() -> None:
    for name, service in OURS.items():
        if "worker.Dockerfile" in service["build"]["dockerfile"]:
            assert service["shm_size"] == "1gb", name


def test_gpu_worker_is_the_worker_on_a_reserved_device() -> None:
    gpu, cpu = SERVICES["worker-gpu"], SERVICES["worker"]
    assert gpu["profiles"] == ["gpu"]
    assert gpu["command"] == cpu["command"]
    assert gpu["environment"] == {**cpu["environment"], "DARKROOM_DEVICE": "cuda"}
    (device,) = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]


def test_every_lasting_service_has_a_healthcheck() -> None:
    assert {name for name in SERVICES if "healthcheck" not in SERVICES[name]} == {"migrate"}


def test_every_variable_and_volume_is_declared() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    example = (ROOT / ".env.example").read_text()
    offered = set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    assert {found[1] for found in VARIABLE.finditer(text)} == offered
    used = {
        volume.split(":")[0]
        for service in SERVICES.values()
        for volume in service.get("volumes", ())
    }
    assert used == set(COMPOSE["volumes"])


def test_valkey_of_the_file_keeps_bells_and_wants_its_password(tmp_path: Path) -> None:
    config = tmp_path / "valkey.conf"
    password = "of the container"
    config.write_text(VARIABLE.sub(password, COMPOSE["configs"]["valkey"]["content"]))
    # A short path, as sockets need.
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/s"
        here = ["--port", "0", "--unixsocket", socket, "--dir", str(tmp_path)]
        process = subprocess.Popen([find_valkey_binary(), config, *here])
        try:
            assert wait_ready(process, Path(socket).exists, 30)
            stranger = Redis(unix_socket_path=socket)
            with pytest.raises(AuthenticationError):
                stranger.ping()
            client = Redis(unix_socket_path=socket, password=password)
            assert client.config_get("maxmemory-policy", "appendonly", "save") == {
                "maxmemory-policy": "noeviction",
                "appendonly": "yes",
                "save": "",
            }
        finally:
            process.terminate()
            process.wait(30)


def test_no_secret_stands_in_a_command_where_everybody_on_the_host_may_read_it() -> None:
    secret = re.compile("PASSWORD|SECRET|PEPPER|SEALING|_KEY")
    for name, service in SERVICES.items():
        words = [*service.get("command", ()), *service.get("healthcheck", {}).get("test", ())]
        assert not [word for word in words if secret.search(word)], name


def test_no_secret_stands_in_the_file() -> None:
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if any(word in key for word in ("PASSWORD", "SECRET", "PEPPER", "SEALING")):
                assert VARIABLE.fullmatch(value), f"{name}: {key}"


def test_every_variable_that_our_services_get_is_a_setting() -> None:
    known = {row.name for row in setting_rows({})}
    for name, service in OURS.items():
        assert set(service["environment"]) <= known, name
