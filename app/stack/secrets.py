"""The secrets of one data folder: made once, kept beside the data, readable by its owner only."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from app.keyring import new_key_text
from app.stack.drafts import sync_folder
from app.stack.processes import StackError

FILE = "secrets.json"


@dataclass(frozen=True, slots=True, repr=False)
class LocalSecrets:
    """What the local parts and the API authenticate with."""

    admin_password: str
    api_password: str
    system_password: str
    s3_access_key_id: str
    s3_secret_access_key: str
    key_pepper: str
    sealing_keys: str


_NAMES = frozenset(field.name for field in fields(LocalSecrets))


def _generate() -> LocalSecrets:
    return LocalSecrets(
        admin_password=secrets.token_urlsafe(24),
        api_password=secrets.token_urlsafe(24),
        system_password=secrets.token_urlsafe(24),
        # Letters and digits only: the pair travels in a comma-separated variable.
        s3_access_key_id=f"DK{secrets.token_hex(9).upper()}",
        s3_secret_access_key=secrets.token_hex(20),
        key_pepper=secrets.token_urlsafe(48),
        sealing_keys=_new_sealing_key(),
    )


def _new_sealing_key() -> str:
    """A key under an id of its own: where it gets lost, no later one is taken for it."""
    return new_key_text(f"first-{secrets.token_hex(4)}")


def load_secrets(data_dir: Path) -> LocalSecrets:
    """The folder's secrets, made at the first call.

    A folder of an earlier version gets the secrets that it lacks.

    Raises:
        StackError: the file is damaged; the databases in the folder cannot be opened without it.
    """
    path = data_dir / FILE
    if not path.exists():
        _write_once(path, _generate())
    try:
        kept = json.loads(path.read_text())
        if _NAMES - set(kept) == {"sealing_keys"}:
            kept = _add_sealing_key(path)
        return LocalSecrets(**{name: str(kept[name]) for name in _NAMES})
    except (ValueError, KeyError, TypeError) as error:
        raise StackError(
            f"{path} is damaged ({error}); bring it back from a backup, the passwords of "
            f"the databases in {data_dir} stand in it"
        ) from None


def _add_sealing_key(path: Path) -> dict[str, str]:
    """Give the file of an earlier version a sealing key; where two begin at once, one key."""
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        kept: dict[str, str] = json.loads(path.read_text())
        if "sealing_keys" in kept:
            return kept
        kept["sealing_keys"] = _new_sealing_key()
        _draft(path, kept).replace(path)
        sync_folder(path.parent)
    return kept


def _write_once(path: Path, values: LocalSecrets) -> None:
    """Write whole or not at all; where two begin at once, the first one's file stays."""
    draft = _draft(path, asdict(values))
    try:
        with suppress(FileExistsError):
            os.link(draft, path)
        sync_folder(path.parent)
    finally:
        draft.unlink()


def _draft(path: Path, values: Mapping[str, str]) -> Path:
    """A file beside ``path`` with its next content, safe on the disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dict(values), file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    return draft
