"""``darkroom backup``: database, objects and keys of one data folder, running or stopped.

The order makes it whole. Deletions are held first (:mod:`app.db.hold`); then comes the snapshot
of the database, and after it the objects. An object is stored before a row names it, and is not
deleted while the hold stands, so whatever the snapshot names is there when the objects are
copied. Objects that came later are unknown to the snapshot and do no harm.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psycopg

from app.db.schema import check_not_newer
from app.stack.bundle import (
    CLIENT,
    DATABASE,
    OBJECT_LIST,
    OBJECTS,
    SECRETS,
    BackupError,
    Manifest,
    Part,
    copy_hashed,
    copy_object,
    is_disk_full,
    write_manifest,
    write_object_list,
    write_private,
)
from app.stack.drafts import draft_of
from app.stack.locks import FolderLock
from app.stack.postgres import ADMIN, DATABASE_NAME, LocalPostgres
from app.stack.processes import AlreadyRunningError, DiskFullError
from app.stack.snapshot import Snapshot, dump_database, hold_deletions, take_snapshot

#: Time for the children of a killed `up` to let go of the folder.
_PATIENCE_SECONDS = 30.0
#: How rclone names what it has not received whole.
_UNFINISHED = ".rclone_temp_"


def run_backup(
    target: Path, data_dir: Path, *, bucket: str, say: Callable[[str], None]
) -> Manifest:
    """Back the data folder up to ``target``, which must not exist; returns what it holds.

    ``bucket`` is the one that the service keeps its own objects in.

    Raises:
        StackError: it was not made, and nothing is left of it; ``exit_code`` tells the cases
            apart.
        SchemaError: the data were written by a newer Darkroom.
    """
    target, data_dir = target.expanduser().absolute(), data_dir.expanduser().absolute().resolve()
    _check_source(data_dir)
    _check_target(target, data_dir)
    try:
        with (
            draft_of(target, ending="partial") as draft,
            _admin_url(data_dir, say) as admin_url,
            hold_deletions(admin_url) as connection,
        ):
            with take_snapshot(connection) as snapshot:
                check_not_newer(snapshot.schema)
                say(f"dumping the database; jobs: {snapshot.counts['jobs']:,}")
                dump_database(admin_url, snapshot.id, draft / DATABASE)
            manifest = _copy_files(draft, data_dir, snapshot, bucket, say)
            write_manifest(draft, manifest)
    except OSError as error:
        if is_disk_full(error):
            raise _disk_full(target) from error
        raise BackupError(f"the backup {target} could not be written: {error}") from error
    return manifest


def _check_source(data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise BackupError(
            f"there is no data folder {data_dir}; name it with --data", code="no_data_folder"
        )
    for place, what, url in (
        (data_dir / "postgres" / "PG_VERSION", "database", "DATABASE_URL"),
        (data_dir / "s3" / "objects", "object store", "S3_ENDPOINT_URL"),
    ):
        if not place.exists():
            raise BackupError(
                f"{data_dir} holds no {what} of `darkroom up`; name another folder with --data, "
                f"or, where {url} names one of your own, back that up with its own tools: "
                "docs/operations.md says in which order",
                code="no_data_folder",
            )


def _check_target(target: Path, data_dir: Path) -> None:
    if target.exists() or target.is_symlink():
        raise BackupError(f"{target} exists already; name a new folder", code="target_exists")
    if not target.parent.is_dir():
        # Not made by us: the disk that belongs there may just not be mounted.
        raise BackupError(f"there is no folder {target.parent}; make it, or name another")
    if target.parent.resolve().is_relative_to(data_dir):
        raise BackupError(f"{target} lies in the folder it shall protect; name another place")


@contextmanager
def _admin_url(data_dir: Path, say: Callable[[str], None]) -> Iterator[str]:
    """The superuser's URL of the folder's database, which is started where nobody runs it."""
    with ExitStack() as cleanup:
        lock = FolderLock(data_dir)
        try:
            lock.acquire(patience_seconds=_PATIENCE_SECONDS, doing="a backup")
        except AlreadyRunningError as held:
            postgres = _running(data_dir, held)
            say(f"Darkroom runs on {data_dir} and goes on meanwhile")
        else:
            cleanup.callback(lock.release)
            say(f"starting the database of {data_dir}, which is stopped")
            postgres = cleanup.enter_context(LocalPostgres(data_dir))
        yield postgres.url(ADMIN, postgres.secrets.admin_password, DATABASE_NAME)


def _running(data_dir: Path, held: AlreadyRunningError) -> LocalPostgres:
    """The database of a folder that another process holds, if it answers."""
    try:
        port = int((data_dir / "postgres.port").read_text())
        postgres = LocalPostgres(data_dir, port=port)
        psycopg.connect(postgres.admin_url, connect_timeout=5).close()
    except (OSError, ValueError, psycopg.OperationalError):
        raise AlreadyRunningError(
            f"{held.detail}. Its database does not answer: it is starting or stopping; try again"
        ) from None
    return postgres


def _copy_files(
    draft: Path, data_dir: Path, snapshot: Snapshot, bucket: str, say: Callable[[str], None]
) -> Manifest:
    for name in (SECRETS, CLIENT):
        if (data_dir / name).exists():
            write_private(draft / name, (data_dir / name).read_bytes())
    source = data_dir / "s3" / "objects"
    paths = list(_list_objects(source))
    _check_room(draft, source, paths)
    say(f"copying objects: {len(paths):,}")
    missing = {f"{bucket}/{key}": digest for key, digest in snapshot.named.items()}
    lost = list[str]()

    def copied() -> Iterator[tuple[str, Part]]:
        for path in paths:
            try:
                part = copy_object(source / path, draft / OBJECTS / path)
            except FileNotFoundError:
                # The user's own, deleted by the user meanwhile: ours wait for the hold.
                continue
            if missing.pop(path, None) not in (None, part.sha256):
                lost.append(path)
            yield path, part

    (draft / OBJECTS).mkdir()
    count, total = write_object_list(draft / OBJECT_LIST, copied())
    parts = {}
    for name in (DATABASE, SECRETS, CLIENT, OBJECT_LIST):
        if (draft / name).exists():
            (draft / name).chmod(0o600)
            with (draft / name).open("rb") as file:
                parts[name] = copy_hashed(file, None)
    return Manifest(
        darkroom=_own_version(),
        postgres=snapshot.postgres,
        schema=snapshot.schema,
        created_at=snapshot.created_at,
        buckets=sorted(each.name for each in source.iterdir() if each.is_dir()),
        counts={**snapshot.counts, "objects": count, "object_bytes": total},
        parts=parts,
        lost=sorted([*missing, *lost]),
    )


def _list_objects(source: Path) -> Iterator[str]:
    """Every whole object as ``bucket/key``."""
    for folder, _, names in os.walk(source):
        for name in names:
            path = Path(folder, name)
            if not name.startswith(_UNFINISHED) and path.is_file() and not path.is_symlink():
                yield path.relative_to(source).as_posix()


def _check_room(draft: Path, source: Path, paths: list[str]) -> None:
    """The dump lies there already, so what is still to come is known to the byte."""
    needed = 0
    for path in paths:
        try:
            needed += (source / path).stat().st_size
        except FileNotFoundError:
            continue
    free = shutil.disk_usage(draft).free
    if free < needed:
        raise DiskFullError(
            f"the disk that holds {draft.parent} has {free // 10**6:,} MB left and the objects "
            f"need {needed // 10**6:,} MB; free some space, or name another place"
        )


def _disk_full(target: Path) -> DiskFullError:
    free = shutil.disk_usage(target.parent).free
    return DiskFullError(
        f"the disk that holds {target.parent} is full ({free // 10**6:,} MB left); free some "
        "space, or name another place. Nothing is left of this backup"
    )


def _own_version() -> str:
    try:
        return version("darkroom")
    except PackageNotFoundError:
        return "0"
