"""``darkroom restore``: a backup becomes a data folder that ``darkroom up`` serves.

It is built beside its place and renamed last, so a restore that was broken off leaves no folder
that somebody could take for whole.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg

from app.clock import utc_now
from app.db.migrate import upgrade
from app.db.roles import API_ROLE, SYSTEM_ROLE, ensure_roles
from app.db.schema import known_revisions, newest_revision
from app.db.session import Database
from app.jobs.reclaim import reclaim_all_leases
from app.stack.bundle import (
    CLIENT,
    DATABASE,
    OBJECT_LIST,
    OBJECTS,
    SECRETS,
    BackupDamagedError,
    BackupError,
    Manifest,
    Part,
    check_part,
    copy_object,
    explain_difference,
    is_disk_full,
    read_manifest,
    read_object_list,
    write_private,
)
from app.stack.drafts import draft_of
from app.stack.locks import FolderLock
from app.stack.postgres import ADMIN, DATABASE_NAME, LocalPostgres
from app.stack.processes import DiskFullError
from app.stack.snapshot import count_rows, load_database

_ALWAYS = (DATABASE, SECRETS, OBJECT_LIST)


def check_backup(backup: Path, *, say: Callable[[str], None]) -> Manifest:
    """Compare every file of a backup with its digest; restores nothing.

    Raises:
        BackupError: it is damaged, or was made by a newer Darkroom.
    """
    manifest = _read_checked(backup, say)
    for path, part in read_object_list(backup):
        check_part(backup, f"{OBJECTS}/{path}", part)
    return manifest


def run_restore(
    backup: Path, data_dir: Path, *, force: bool, say: Callable[[str], None]
) -> Manifest:
    """Make the data folder from a backup; what is in the folder is put aside with ``force``.

    Nothing takes the folder's place before every file was found as it was backed up and the
    database counts what it counted then. Open jobs go on: their leases are free.

    Raises:
        StackError: nothing was restored and the folder is as it was; ``exit_code`` tells the
            cases apart.
    """
    # A link to the folder keeps its place; what it points to is made or put aside.
    target = data_dir.expanduser().resolve()
    try:
        with ExitStack() as held:
            occupied = _check_target(target, force, held)
            manifest = _read_checked(backup, say)
            target.parent.mkdir(parents=True, exist_ok=True)

            def put_aside() -> None:
                if occupied:
                    aside = target.with_name(f"{target.name}.before-{utc_now():%Y%m%dT%H%M%SZ}")
                    target.rename(aside)
                    say(f"what was in {target} lies in {aside} now")

            with draft_of(target, ending="restoring", make_room=put_aside) as draft:
                # PostgreSQL may run under another account, which must be able to pass.
                draft.chmod(0o711)
                _copy_files(backup, manifest, draft, say)
                _load(backup, manifest, draft, say)
                for name in ("postgres.port", "s3.port"):
                    (draft / name).unlink(missing_ok=True)
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(target) from error
        raise BackupError(f"{backup} could not be restored to {target}: {error}") from error
    return manifest


def _read_checked(backup: Path, say: Callable[[str], None]) -> Manifest:
    """The manifest of a backup that this code knows, whose parts are whole."""
    manifest = read_manifest(backup)
    if manifest.schema not in known_revisions():
        raise BackupError(
            f"{backup} was made by a newer Darkroom ({manifest.darkroom}, schema "
            f"{manifest.schema}, this one knows up to {newest_revision()}): upgrade, then restore",
            code="backup_too_new",
        )
    say(f"checking {backup}, made {manifest.created_at} by Darkroom {manifest.darkroom}")
    for name in _ALWAYS:
        if name not in manifest.parts:
            raise BackupDamagedError(f"{backup} is damaged: its manifest names no {name}")
    for name, part in manifest.parts.items():
        check_part(backup, name, part)
    return manifest


def _check_target(target: Path, force: bool, held: ExitStack) -> bool:
    """Whether there is something to put aside; nobody else may work on it then."""
    if not target.exists():
        return False
    if not target.is_dir():
        raise BackupError(f"{target} is a file; name a folder with --data", code="target_exists")
    if not any(target.iterdir()):
        return False
    if not force:
        raise BackupError(
            f"{target} is not empty; name another folder with --data, or put what is in it aside "
            "with --force",
            code="target_exists",
        )
    lock = FolderLock(target)
    lock.acquire(patience_seconds=0, doing="a restore")
    held.callback(lock.release)
    return True


def _copy_files(backup: Path, manifest: Manifest, draft: Path, say: Callable[[str], None]) -> None:
    for name in (SECRETS, CLIENT):
        if name in manifest.parts:
            write_private(draft / name, (backup / name).read_bytes())
    (draft / "s3").mkdir(mode=0o700)
    objects = draft / "s3" / "objects"
    for bucket in ("", *manifest.buckets):
        (objects / bucket).mkdir()
    counts = manifest.counts
    free, needed = shutil.disk_usage(draft).free, counts["object_bytes"]
    if free < needed:
        raise _disk_full(draft, needed)
    say(f"copying objects: {counts['objects']:,}")
    for path, part in read_object_list(backup):
        explain_difference(backup, f"{OBJECTS}/{path}", part, _copy(backup, path, objects))


def _copy(backup: Path, path: str, objects: Path) -> Part:
    source = backup / OBJECTS / path
    if source.is_symlink():
        raise BackupDamagedError(f"{backup} is damaged: {OBJECTS}/{path} is a link")
    try:
        return copy_object(source, objects / path)
    except FileNotFoundError:
        raise BackupDamagedError(f"{backup} is damaged: {OBJECTS}/{path} is missing") from None


def _load(backup: Path, manifest: Manifest, draft: Path, say: Callable[[str], None]) -> None:
    """Fill a database of its own from the dump, bring its schema up to date, free its leases."""
    say(f"loading the database; jobs: {manifest.counts['jobs']:,}")
    with LocalPostgres(draft) as postgres:
        secrets = postgres.secrets
        ensure_roles(
            postgres.admin_url,
            DATABASE_NAME,
            api_password=secrets.api_password,
            system_password=secrets.system_password,
        )
        admin_url = postgres.url(ADMIN, secrets.admin_password, DATABASE_NAME)
        load_database(admin_url, backup / DATABASE)
        with psycopg.connect(admin_url, autocommit=True) as connection:
            found = count_rows(connection)
            # A dump brings no statistics along, and without them the first queries are slow.
            connection.execute("ANALYZE")
        if any(found[name] != manifest.counts.get(name) for name in found):
            raise BackupDamagedError(
                f"the database of {backup} holds {found} where {manifest.counts} was backed up"
            )
        system_url = postgres.url(SYSTEM_ROLE, secrets.system_password)
        upgrade(system_url)
        url = postgres.url(API_ROLE, secrets.api_password)
        with closing(Database(url, system_url, pool_size=1)) as db, db.system() as session:
            freed = reclaim_all_leases(session)
        if freed:
            say(f"chunks that were in work and begin again: {freed:,}")


def _disk_full(target: Path, needed_bytes: int = 0) -> DiskFullError:
    free = shutil.disk_usage(target.parent).free
    needs = f" and the objects need {needed_bytes // 10**6:,} MB" if needed_bytes else ""
    return DiskFullError(
        f"the disk that holds {target.parent} has {free // 10**6:,} MB left{needs}; free some "
        "space, or choose another folder with --data. Nothing was restored"
    )
