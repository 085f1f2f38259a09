"""Where the service is and what key opens it: arguments, environment, or the file of `up`."""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

DEFAULT_URL = "http://127.0.0.1:8080"
CLIENT_FILE = "client.json"


@dataclass(frozen=True, slots=True)
class Address:
    """The service's base URL without a slash at its end, and the key, if one was found."""

    url: str
    key: str | None = field(repr=False)
    #: The file that named it, if a file did.
    file: Path | None = None

    @property
    def is_local(self) -> bool:
        """True for this machine itself, which no proxy should stand before."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def find_address(
    url: str | None = None,
    key: str | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    home: Path | None = None,
) -> Address:
    """The address from the arguments, else the environment, else a ``client.json``.

    A file's key goes only to the file's own URL, never to one that was named otherwise.
    """
    env = os.environ if environ is None else environ
    url = url or env.get("DARKROOM_URL") or None
    key = key or env.get("DARKROOM_API_KEY") or None
    if url is not None:
        url = url.rstrip("/").removesuffix("/v1")
    if url is not None and key is not None:
        return Address(url, key)
    for path in client_files(env, home):
        found = _read(path)
        if found is None or (url is not None and found[0] != url):
            continue
        return Address(url or found[0], key or found[1], path)
    return Address(url or DEFAULT_URL, key)


def client_files(environ: Mapping[str, str], home: Path | None = None) -> list[Path]:
    """Where `darkroom up` may have left a ``client.json``, nearest first."""
    folders = [Path("darkroom-data"), (home or Path.home()) / ".config" / "darkroom"]
    if environ.get("DARKROOM_DATA"):
        folders.insert(0, Path(environ["DARKROOM_DATA"]))
    return [folder / CLIENT_FILE for folder in folders]


def _read(path: Path) -> tuple[str, str | None] | None:
    try:
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(body, dict) or not isinstance(body.get("url"), str):
        return None
    key = body.get("key")
    return body["url"].rstrip("/"), key if isinstance(key, str) else None
