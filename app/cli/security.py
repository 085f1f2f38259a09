"""``darkroom doctor --security``: settings and surroundings that are weaker than they could be."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.cli.checks import Check
from app.cli.security_parts import (
    check_database,
    check_keys,
    check_locations,
    check_redis,
    check_tables,
    check_weights,
    is_local,
)
from app.errors import DarkroomError

if TYPE_CHECKING:
    from app.settings import Settings

#: A secret with fewer different characters was typed, not drawn.
_LEAST_DIFFERENT_CHARACTERS = 12
_PROBE_SECONDS = 60
#: Setting → the most that is safe for a service that strangers use, and what more would do.
_MOST = {
    "max_image_pixels": (200_000_000, "one image may take gigabytes of memory to decode"),
    "archive_max_ratio": (1_000, "a small upload may fill the store"),
    "link_seconds": (24 * 3600, "a link that leaks serves for more than a day"),
    "decode_seconds": (120, "one image may hold a decode child for minutes"),
}
_WALLS = {
    "no_network": "reach the network",
    "no_new_privileges": "gain privileges from programs",
    "no_capabilities": "keep the worker's capabilities",
}


def check_security(settings: Settings, data_dir: Path | None = None) -> Iterator[Check]:
    """Every look at what a stranger might use, one after the other.

    ``data_dir`` is the folder of `darkroom up`, where that is what was found.
    """
    looks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("secrets", lambda: _check_secrets(settings)),
        ("files", lambda: _check_files(data_dir)),
        ("account", _check_account),
        ("database", lambda: check_database(settings)),
        ("tables", lambda: check_tables(settings)),
        ("weights", lambda: check_weights(settings)),
        ("redis", lambda: check_redis(settings)),
        ("object store", lambda: _check_store(settings)),
        ("api", lambda: _check_api(settings)),
        ("limits", lambda: _check_limits(settings)),
        ("decoding", _check_walls),
        ("webhooks", lambda: _check_webhooks(settings)),
        ("keys", lambda: check_keys(settings)),
        ("locations", lambda: check_locations(settings)),
    ]
    for name, look in looks:
        weak = 0
        try:
            for check in look():
                weak += 1
                yield check
        except DarkroomError as error:
            yield Check(name, "warn", f"not looked at: {error.detail}", "see `darkroom doctor`")
        except Exception as error:
            yield Check(name, "warn", f"not looked at: {type(error).__name__}: {error}")
        else:
            if not weak:
                yield Check(name, "ok", "nothing weak found")


def _check_secrets(settings: Settings) -> Iterator[Check]:
    from app.errors import SettingsError
    from app.keyring import Keyring
    from app.tenants.keys import check_pepper

    pepper = settings.key_pepper.get_secret_value()
    try:
        check_pepper(pepper)
    except SettingsError as error:
        yield Check("secrets", "fail", error.detail, "`openssl rand -hex 24` makes one")
    else:
        if len(set(pepper)) < _LEAST_DIFFERENT_CHARACTERS:
            yield Check(
                "secrets",
                "fail",
                "DARKROOM_KEY_PEPPER has few different characters: it can be guessed",
                "`openssl rand -hex 24` makes one; all keys must be made again under it",
            )
    try:
        keys = Keyring.from_settings(settings)
    except SettingsError as error:
        yield Check("secrets", "fail", error.detail, "`darkroom sealing new-key NAME` makes one")
    else:
        if len(keys.key_ids) > 1:
            yield Check(
                "secrets",
                "warn",
                f"DARKROOM_SEALING_KEYS still holds {', '.join(keys.key_ids[1:])}",
                "`darkroom sealing rotate`, then take old keys out",
            )


def _check_files(data_dir: Path | None) -> Iterator[Check]:
    """Files with secrets that others on this machine may read."""
    from app.settings import Settings, is_secret, variable_of

    names = [f"{variable_of(name)}_FILE" for name in filter(is_secret, Settings.model_fields)]
    paths = [Path(os.environ[name]) for name in names if os.environ.get(name)]
    if data_dir is not None:
        paths += [data_dir / "secrets.json", data_dir / "client.json"]
    paths.append(Path(".env"))
    for path in filter(Path.exists, paths):
        if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            yield Check(
                "files",
                "fail",
                f"{path} holds secrets, and others on this machine may read it",
                f"chmod 600 {path}",
            )


def _check_account() -> Iterator[Check]:
    if os.geteuid() == 0:
        yield Check(
            "account",
            "warn",
            "this is root: a process of the service that is taken over has the machine",
            "run the service under an account of its own",
        )


def _check_store(settings: Settings) -> Iterator[Check]:
    url = settings.s3_endpoint_url
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_local(parts.hostname):
        yield Check(
            "object store",
            "warn",
            "S3_ENDPOINT_URL reaches another machine without TLS: images pass in clear",
            "use https://, or keep that network to yourself",
        )


def _check_api(settings: Settings) -> Iterator[Check]:
    if not is_local(settings.api_host):
        yield Check(
            "api",
            "warn",
            f"the API listens on {settings.api_host} and speaks plain HTTP: keys pass in clear",
            "put a proxy with TLS before it, and bind it to 127.0.0.1 or a network of your own",
        )
    if settings.metrics_port and not is_local(settings.api_host):
        yield Check(
            "api",
            "warn",
            f"/metrics on port {settings.metrics_port} needs no key",
            "keep that port to your monitoring",
        )
    if settings.log_level == "DEBUG":
        yield Check("api", "warn", "the log is at DEBUG", "set DARKROOM_LOG_LEVEL=INFO")


def _check_limits(settings: Settings) -> Iterator[Check]:
    from app.settings import variable_of

    for name, (most, harm) in _MOST.items():
        value = getattr(settings, name)
        if value > most:
            yield Check(
                "limits",
                "warn",
                f"{variable_of(name)} is {value:,}: {harm}",
                f"at most {most:,} where strangers use the service",
            )


def _check_walls() -> Iterator[Check]:
    """What a decode child could still do on this machine."""
    probe = subprocess.run(
        [sys.executable, "-m", "worker.pipeline.walls"],
        capture_output=True,
        text=True,
        timeout=_PROBE_SECONDS,
        check=True,
    )
    for wall, why in json.loads(probe.stdout)["refused"].items():
        yield Check(
            "decoding",
            "warn",
            f"the kernel lets decode processes {_WALLS.get(wall, wall)}: {why}",
            "allow user namespaces here (sysctl user.max_user_namespaces), in containers too",
        )


def _check_webhooks(settings: Settings) -> Iterator[Check]:
    if not settings.webhooks:
        return
    for network in settings.webhook_private_network_list:
        yield Check(
            "webhooks",
            "warn",
            f"every tenant may have requests sent into your network {network}",
            "name single hosts in DARKROOM_WEBHOOK_HOSTS, or a smaller network",
        )
