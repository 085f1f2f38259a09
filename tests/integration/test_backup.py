"""What a backup holds, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from app.cli.connect import Service
from app.cli.exits import Exit
from app.cli.main import app
from app.db.hold import deletions_held
from app.db.schema import newest_revision
from app.db.session import Database
from app.stack import backup as backup_module
from app.stack import bundle
from app.stack.backup import run_backup
from app.stack.bundle import BackupError, Manifest, read_manifest, write_manifest
from app.stack.locks import FolderLock
from app.stack.postgres import ADMIN, DATABASE_NAME, LocalPostgres
from app.stack.processes import AlreadyRunningError
from app.stack.snapshot import hold_deletions
from tests.data_folders import served
from tests.factories import add_upload, entry
from tests.jobs import add_planned_job
from tests.local_parts import scratch_folder

OBJECT = "darkroom/some/key"


def quiet(_line: str) -> None:
    return


@pytest.fixture(scope="module")
def stopped() -> Iterator[Path]:
    """A stopped data folder with a job, an object of ours and one of a client's own bucket."""
    with scratch_folder() as folder:
        data_dir = folder / "data"
        with served(data_dir) as here:
            here.objects.put("darkroom", "some/key", b"ours")
            here.objects.ensure_bucket("photos")
            here.objects.put("photos", "a strange\nname %", b"theirs")
            here.objects.ensure_bucket("nothing-in-it")
            with here.db.system() as session:
                tenant_id = session.scalars(text("SELECT id FROM tenants")).one()
                add_planned_job(session, tenant_id, 3)
        yield data_dir


@pytest.fixture(scope="module")
def whole(stopped: Path) -> Path:
    """A backup of that folder, to be copied and never changed."""
    target = stopped.parent / "whole"
    run_backup(target, stopped, bucket="darkroom", say=quiet)
    return target


@pytest.fixture
def spoilt(whole: Path, tmp_path: Path) -> Path:
    """A copy of the backup that a test may spoil."""
    return Path(shutil.copytree(whole, tmp_path / "spoilt"))


@pytest.fixture
def place() -> Iterator[Path]:
    with scratch_folder() as folder:
        yield folder


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], obj=Service())


def test_backup_of_a_stopped_folder_is_private_whole_and_leaves_it_stopped(
    stopped: Path, whole: Path
) -> None:
    manifest = read_manifest(whole)
    assert manifest.schema == newest_revision()
    assert manifest.lost == []
    assert manifest.buckets == ["darkroom", "nothing-in-it", "photos"]
    assert manifest.counts == {
        "tenants": 1,
        "jobs": 1,
        "open_jobs": 1,
        "items": 0,
        "objects": 2,
        "object_bytes": len(b"ours" + b"theirs"),
    }
    assert whole.stat().st_mode & 0o777 == 0o700
    assert all((whole / name).stat().st_mode & 0o777 == 0o600 for name in manifest.parts)
    assert (whole / "secrets.json").read_bytes() == (stopped / "secrets.json").read_bytes()
    assert not (stopped / "postgres" / "postmaster.pid").exists()
    lock = FolderLock(stopped)
    lock.acquire(patience_seconds=0)
    lock.release()


def test_restore_brings_back_secrets_buckets_and_objects_with_their_times(
    stopped: Path, whole: Path, place: Path
) -> None:
    restored = place / "restored"
    restored.mkdir()
    done = run("restore", whole, "--data", restored)
    assert done.exit_code == Exit.DONE, done.output
    assert "1 jobs (1 open)" in done.stdout
    for name in ("secrets.json", "client.json"):
        assert (restored / name).read_bytes() == (stopped / name).read_bytes()
        assert (restored / name).stat().st_mode & 0o777 == 0o600
    before, after = stopped / "s3" / "objects", restored / "s3" / "objects"
    paths = {path.relative_to(before) for path in before.rglob("*")}
    assert paths == {path.relative_to(after) for path in after.rglob("*")}
    for path in paths:
        if (before / path).is_file():
            assert (after / path).read_bytes() == (before / path).read_bytes()
            assert (after / path).stat().st_mtime == (before / path).stat().st_mtime
    assert sorted(path.name for path in place.iterdir()) == ["restored"]


def flip(name: str) -> Callable[[Path], None]:
    def spoil(backup: Path) -> None:
        content = bytearray((backup / name).read_bytes())
        content[len(content) // 2] ^= 1
        (backup / name).write_bytes(content)

    return spoil


def cut(name: str) -> Callable[[Path], None]:
    def spoil(backup: Path) -> None:
        (backup / name).write_bytes((backup / name).read_bytes()[:-1])

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda backup: (backup / name).unlink()


@pytest.mark.parametrize(
    "spoil",
    [
        *(flip(name) for name in ("manifest.json", "database.dump", "secrets.json")),
        *(flip(name) for name in ("client.json", "objects.jsonl", f"objects/{OBJECT}")),
        *(cut(name) for name in ("manifest.json", "database.dump", f"objects/{OBJECT}")),
        *(remove(name) for name in ("database.dump", f"objects/{OBJECT}")),
    ],
)
def test_damage_anywhere_is_refused_and_nothing_is_left(
    spoil: Callable[[Path], None], spoilt: Path, place: Path
) -> None:
    spoil(spoilt)
    for words in (["--data", place / "restored"], ["--check"]):
        done = run("restore", spoilt, *words)
        assert done.exit_code == Exit.FAILED
        assert "damaged" in done.stderr
        assert "[backup_damaged]" in done.stderr
    assert list(place.iterdir()) == []


def test_object_list_that_leads_out_of_the_folder_is_refused(spoilt: Path, place: Path) -> None:
    line = json.dumps({"path": "../../escaped", "bytes": 0, "sha256": ""}) + "\n"
    (spoilt / "objects.jsonl").write_text(line)
    manifest = read_manifest(spoilt)
    with (spoilt / "objects.jsonl").open("rb") as file:
        manifest.parts["objects.jsonl"] = bundle.copy_hashed(file, None)
    rewrite(spoilt, manifest)
    done = run("restore", spoilt, "--data", place / "restored")
    assert done.exit_code == Exit.FAILED
    assert "which is no object" in done.stderr
    assert list(place.iterdir()) == []


def rewrite(backup: Path, manifest: Manifest) -> None:
    (backup / "manifest.json").unlink()
    write_manifest(backup, manifest)


@pytest.mark.parametrize("changes", [{"schema": "0099"}, {"format": bundle.FORMAT + 1}])
def test_backup_of_a_newer_darkroom_is_refused(
    changes: dict[str, Any], spoilt: Path, place: Path
) -> None:
    rewrite(spoilt, replace(read_manifest(spoilt), **changes))
    done = run("restore", spoilt, "--data", place / "restored")
    assert done.exit_code == Exit.FAILED
    assert "made by a newer Darkroom" in done.stderr
    assert "[backup_too_new]" in done.stderr
    assert list(place.iterdir()) == []


def test_folder_without_a_manifest_is_no_backup(place: Path) -> None:
    done = run("restore", place, "--data", place / "restored")
    assert (done.exit_code, "[no_backup]" in done.stderr) == (Exit.FAILED, True)


def test_restore_touches_no_folder_that_holds_something_unless_forced(
    whole: Path, place: Path
) -> None:
    target = place / "data"
    target.mkdir()
    (target / "precious").write_text("mine")
    done = run("restore", whole, "--data", target)
    assert (done.exit_code, "[target_exists]" in done.stderr) == (Exit.FAILED, True)
    assert [path.name for path in target.iterdir()] == ["precious"]

    done = run("restore", whole, "--data", target, "--force")
    assert done.exit_code == Exit.DONE, done.output
    assert (target / "secrets.json").exists()
    assert not (target / "precious").exists()
    (aside,) = place.glob("data.before-*")
    assert (aside / "precious").read_text() == "mine"


def test_restore_never_moves_a_folder_that_somebody_works_on(whole: Path, place: Path) -> None:
    target = place / "data"
    target.mkdir()
    lock = FolderLock(target)
    lock.acquire(patience_seconds=0)
    try:
        done = run("restore", whole, "--data", target, "--force")
    finally:
        lock.release()
    assert done.exit_code == Exit.FOLDER_IN_USE
    assert not list(place.glob("data.before-*"))


def test_backup_that_breaks_off_leaves_nothing_that_looks_like_one(
    stopped: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backup_module, "copy_object", stop)
    assert run("backup", place / "b", "--data", stopped).exit_code == Exit.INTERRUPTED
    assert list(place.iterdir()) == []
    assert not (stopped / "postgres" / "postmaster.pid").exists()


def test_what_a_killed_backup_left_is_cleared_by_the_next(stopped: Path, place: Path) -> None:
    left = place / ".b.partial"
    (left / "objects").mkdir(parents=True)
    (left / "database.dump").write_text("half")
    assert run("backup", place / "b", "--data", stopped).exit_code == Exit.DONE
    assert [path.name for path in place.iterdir()] == ["b"]
    assert run("restore", place / "b", "--check").exit_code == Exit.DONE


def test_disk_that_fills_is_named_and_the_half_backup_removed(
    stopped: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup_module, "copy_object", fail)
    done = run("backup", place / "b", "--data", stopped)
    assert (done.exit_code, "is full" in done.stderr) == (Exit.DISK_FULL, True)
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "data", "code"),
    [
        ("{place}", "{stopped}", "target_exists"),
        ("{stopped}/backup", "{stopped}", "backup_failed"),
        ("{place}/not/there", "{stopped}", "backup_failed"),
        ("{place}/b", "{place}/nothing", "no_data_folder"),
        ("{place}/b", "{place}", "no_data_folder"),
    ],
)
def test_backup_that_cannot_begin_says_why(
    target: str, data: str, code: str, stopped: Path, place: Path
) -> None:
    words = [text.format(place=place, stopped=stopped) for text in (target, data)]
    done = run("backup", words[0], "--data", words[1])
    assert done.exit_code == Exit.FAILED
    assert f"[{code}]" in done.stderr
    assert list(place.iterdir()) == []


def test_folder_that_is_held_and_has_no_running_database_is_in_use(
    stopped: Path, place: Path
) -> None:
    lock = FolderLock(stopped)
    lock.acquire(patience_seconds=0)
    try:
        done = run("backup", place / "b", "--data", stopped)
    finally:
        lock.release()
    assert done.exit_code == Exit.FOLDER_IN_USE
    assert "it is starting or stopping; try again" in done.stderr


def test_backup_holds_deletions_alone_and_notices_when_it_lost_the_hold(
    place: Path, database: Database, postgres: LocalPostgres
) -> None:
    admin_url = postgres.url(ADMIN, postgres.secrets.admin_password, DATABASE_NAME)
    assert not deletions_held(database)
    with hold_deletions(admin_url):
        assert deletions_held(database)
        with pytest.raises(AlreadyRunningError, match="another backup"), hold_deletions(admin_url):
            pass
    assert not deletions_held(database)

    def lose_the_hold() -> None:
        with hold_deletions(admin_url) as connection:
            pid = connection.info.backend_pid
            with psycopg.connect(admin_url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])

    with pytest.raises(BackupError, match="does not serve"):
        lose_the_hold()


def test_objects_lost_before_the_backup_are_named_and_all_else_is_kept(place: Path) -> None:
    data_dir = place / "data"
    with served(data_dir) as here:
        with here.db.system() as session:
            tenant_id = session.scalars(text("SELECT id FROM tenants")).one()
            add_upload(session, tenant_id, [entry(0)])
        done = run("backup", place / "b", "--data", data_dir, "--json")
        assert done.exit_code == Exit.PARTIAL, done.output
        lost = json.loads(done.stdout)["lost"]
        assert lost
        assert lost[0] in done.stderr
    assert run("restore", place / "b", "--check").exit_code == Exit.DONE
