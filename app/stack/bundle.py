"""What a backup looks like: a folder of plain parts, and a manifest that vouches for each.

    manifest.json    format, versions, schema, counts, size and SHA-256 of each part
    database.dump    PostgreSQL's own custom format, which any ``pg_restore`` reads
    secrets.json     passwords, S3 keys and the pepper of the API keys
    client.json      address and key of the command line, where the folder has them
    objects.jsonl    path, size and SHA-256 of each object, a line each
    objects/         the objects as ``bucket/key``, as plain files

A folder rather than one file, so that nothing has to be packed or unpacked to be checked, rsync
sends only what changed, and any S3 tool can copy the objects elsewhere.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from app.stack.processes import StackError

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "database.dump"
SECRETS = "secrets.json"
CLIENT = "client.json"
OBJECT_LIST = "objects.jsonl"
OBJECTS = "objects"
_BLOCK_BYTES = 1024 * 1024


class BackupError(StackError):
    """A backup could not be made, or is none; the detail says what to do."""

    code = "backup_failed"


class BackupDamagedError(BackupError):
    """A backup is not what its manifest says."""

    code = "backup_damaged"


@dataclass(frozen=True, slots=True)
class Part:
    """Size and digest of one file of the backup."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the backup holds; ``created_at`` is the database's moment of the snapshot."""

    darkroom: str
    postgres: str
    schema: str
    created_at: str
    buckets: list[str]
    #: tenants, jobs, open_jobs, items: rows of the snapshot; objects, object_bytes: files.
    counts: dict[str, int]
    parts: dict[str, Part]
    #: Objects that the database names and the folder had lost before the backup.
    lost: list[str] = field(default_factory=list)
    format: int = FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it with a digest of itself; until then the folder is no backup."""
    body = asdict(manifest)
    body["sha256"] = _digest_of(body)
    write_private(folder / MANIFEST, json.dumps(body, indent=1).encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup that this code can restore.

    Raises:
        BackupError: there is no backup, or one of a newer format.
        BackupDamagedError: the manifest is not as it was written.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise BackupError(
            f"{folder} is no backup: it has no {MANIFEST}. One that was broken off has "
            "none; use another",
            code="no_backup",
        ) from None
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("format"), int) and body["format"] > FORMAT:
        raise BackupError(
            f"{folder} was made by a newer Darkroom (format {body['format']}, this one knows up "
            f"to {FORMAT}): upgrade, then restore",
            code="backup_too_new",
        )
    if not isinstance(body, dict) or body.pop("sha256", None) != _digest_of(body):
        raise BackupDamagedError(f"{path} is damaged; use another backup")
    parts = {name: Part(**part) for name, part in body.pop("parts").items()}
    known = {f.name for f in fields(Manifest)}
    return Manifest(parts=parts, **{name: value for name, value in body.items() if name in known})


def check_part(folder: Path, name: str, part: Part) -> None:
    """Compare one file with the manifest.

    Raises:
        BackupDamagedError: it is missing, too short or too long, or has other bytes.
    """
    try:
        with (folder / name).open("rb") as file:
            found = copy_hashed(file, None)
    except FileNotFoundError:
        raise BackupDamagedError(f"{folder} is damaged: {name} is missing") from None
    explain_difference(folder, name, part, found)


def explain_difference(folder: Path, name: str, wanted: Part, found: Part) -> None:
    """Say how a file differs from what was backed up; nothing where it does not.

    Raises:
        BackupDamagedError: it does.
    """
    if found == wanted:
        return
    how = (
        f"has {found.bytes:,} bytes instead of {wanted.bytes:,}"
        if found.bytes != wanted.bytes
        else "has other bytes than were backed up"
    )
    raise BackupDamagedError(f"{folder} is damaged: {name} {how}; use another backup")


def copy_hashed(source: BinaryIO, sink: BinaryIO | None) -> Part:
    """Copy to ``sink`` where there is one; size and digest of what was read."""
    digest, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK_BYTES):
        digest.update(block)
        size += len(block)
        if sink is not None:
            sink.write(block)
    return Part(size, digest.hexdigest())


def copy_object(source: Path, target: Path) -> Part:
    """Copy one object with its time of change, which S3 shows and clean-ups go by."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, target.open("xb") as writer:
        part = copy_hashed(reader, writer)
        state = os.fstat(reader.fileno())
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))
    return part


def write_object_list(path: Path, copied: Iterator[tuple[str, Part]]) -> tuple[int, int]:
    """Write a line per object as they come; their number and the sum of their bytes."""
    count = total = 0
    with open(path, "x", encoding="ascii", opener=private) as file:
        for name, part in copied:
            # ASCII only, so that any file name that the system allows comes back as it was.
            file.write(json.dumps({"path": name, **asdict(part)}) + "\n")
            count, total = count + 1, total + part.bytes
    return count, total


def read_object_list(folder: Path) -> Iterator[tuple[str, Part]]:
    """Each object's path below ``objects/`` and what it must be.

    Raises:
        BackupDamagedError: a line is none of ours, or leads out of the folder.
    """
    with (folder / OBJECT_LIST).open(encoding="ascii") as file:
        for line in file:
            try:
                entry: dict[str, Any] = json.loads(line)
                name = str(entry["path"])
                part = Part(int(entry["bytes"]), str(entry["sha256"]))
            except (ValueError, KeyError, TypeError):
                raise BackupDamagedError(f"{folder / OBJECT_LIST} is damaged") from None
            if name.startswith("/") or {"", ".", ".."} & set(name.split("/")):
                raise BackupDamagedError(
                    f"{folder / OBJECT_LIST} names {name!r}, which is no object"
                )
            yield name, part


def private(path: str, flags: int) -> int:
    """An opener for ``open``: readable by the owner only from its first moment on."""
    return os.open(path, flags, 0o600)


def write_private(path: Path, content: bytes) -> None:
    """A new file that only its owner may read."""
    with open(path, "xb", opener=private) as file:
        file.write(content)


def is_disk_full(error: OSError) -> bool:
    """Whether there was no space, or no quota, for what was to be written."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _digest_of(body: Mapping[str, Any]) -> str:
    """The digest of the manifest's meaning, whatever its layout."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
