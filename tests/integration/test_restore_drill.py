"""The drill: back a working folder up while jobs go on, restore it elsewhere, go on there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import ProgrammingError

from app.audit.chain import chain_entries
from app.audit.keys import AuditKeys
from app.audit.verify import verify_chain
from app.jobs.states import ChunkState, JobState
from app.jobs.submit import submit_export, submit_ingest
from app.jobs.tables import Artifact, Chunk
from app.stack import backup as backup_module
from app.stack.backup import run_backup
from app.stack.bundle import Manifest
from app.stack.restore import run_restore
from app.stack.snapshot import dump_database
from app.uploads.tables import Upload
from tests.api_client import Api, make_app
from tests.data_folders import Served, served
from tests.jobs import (
    add_planned_job,
    add_worker,
    assert_closed,
    chunk_ids,
    claim,
    finish,
    look_at_chunk,
    make_due,
)
from tests.local_parts import scratch_folder
from tests.service import Service, running_service
from tests.unit.archives import image_bytes, make_zip

PETS = make_zip({f"pets/cat/{n}.png": image_bytes("PNG", colour=n) for n in range(5)})


@dataclass(slots=True)
class Drill:
    """What the original folder held when it was backed up."""

    folder: Path
    tenant_id: str = ""
    finished: str = ""
    export: str = ""
    exported: bytes = b""
    opened: str = ""
    ingest: str = ""
    archive_key: str = ""
    manifest: Manifest | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def backup(self) -> Path:
        return self.folder / "backup"


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    with scratch_folder() as folder, pytest.MonkeyPatch.context() as patch:
        drill = Drill(folder)
        logs = tmp_path_factory.mktemp("drill")
        with (
            served(drill.data_dir) as here,
            running_service(here.settings, here.db, logs) as service,
        ):
            fill(drill, here, service)

            def dump_while_work_goes_on(*words: Any) -> None:
                dump_database(*words)
                # The snapshot sees this job open; its archive would be deleted at its end.
                make_due(here.db, *chunk_ids(here.db, drill.ingest))
                service.wait_for_end(drill.tenant_id, drill.ingest)

            patch.setattr(backup_module, "dump_database", dump_while_work_goes_on)
            drill.manifest = run_backup(
                drill.backup, drill.data_dir, bucket=here.settings.bucket, say=lambda _: None
            )
        yield drill


def fill(drill: Drill, here: Served, service: Service) -> None:
    """One job finished and exported, one half done with a lease out, one archive waiting."""
    with here.db.system() as session:
        drill.tenant_id = session.scalars(text("SELECT id FROM tenants")).one()
        worker = add_worker(session)
    with here.db.tenant(drill.tenant_id) as session:
        drill.finished = add_planned_job(session, drill.tenant_id, 3)
        drill.opened = add_planned_job(session, drill.tenant_id, 3, 4)
    finish(here.db, drill.tenant_id, chunk_ids(here.db, drill.finished)[0])
    with here.db.tenant(drill.tenant_id) as session:
        export = submit_export(session, drill.tenant_id, job_id=drill.finished, format="jsonl")
    drill.export = export.id
    service.start_worker("io")
    service.wait_for_end(drill.tenant_id, export.id)
    with here.db.tenant(drill.tenant_id) as session:
        key = session.scalars(select(Artifact.object_key).where(Artifact.name.like("res%"))).one()
    drill.exported = here.objects.read(here.settings.bucket, key)

    first, second = chunk_ids(here.db, drill.opened)
    finish(here.db, drill.tenant_id, first)
    claim(here.db, drill.tenant_id, second, worker_id=worker)

    upload_id = service.send(drill.tenant_id, PETS)
    with here.db.tenant(drill.tenant_id) as session:
        drill.ingest = submit_ingest(session, drill.tenant_id, upload_id).id
        make_due_in_a_day = {"due_at": func.now() + timedelta(days=1)}
        session.execute(update(Chunk).where(Chunk.job_id == drill.ingest).values(make_due_in_a_day))
        drill.archive_key = session.scalars(
            select(Upload.object_key).where(Upload.id == upload_id)
        ).one()


def test_restored_folder_serves_everything_and_ends_what_was_open(
    drill: Drill, tmp_path: Path
) -> None:
    restored = drill.folder / "restored"
    said = list[str]()
    run_restore(drill.backup, restored, force=False, say=said.append)
    assert "chunks that were in work and begin again: 1" in said
    with served(restored) as there:
        api = Api(make_app(there.settings, there.objects), there.key)

        finished = api("GET", f"/v1/jobs/{drill.finished}").json
        assert finished["state"] == "succeeded"
        assert finished["counts"]["succeeded"] == 3
        results = api("GET", f"/v1/jobs/{drill.finished}/results").json["data"]
        assert [result["state"] for result in results] == ["succeeded"] * 3
        artifacts = api("GET", f"/v1/jobs/{drill.export}/artifacts").json["data"]
        artifact = next(each for each in artifacts if each["name"].startswith("res"))
        download = api("GET", f"/v1/artifacts/{artifact['id']}/content")
        assert download.data == drill.exported

        waiting = chunk_ids(there.db, drill.opened)[1]
        chunk = look_at_chunk(there.db, waiting)
        assert (chunk.state, chunk.attempt, chunk.kills) == (ChunkState.PENDING, 1, 0)
        finish(there.db, drill.tenant_id, waiting)
        job = assert_closed(there.db, drill.tenant_id, drill.opened, JobState.SUCCEEDED)
        assert job.succeeded == 7

        with running_service(there.settings, there.db, tmp_path, goes_on=True) as service:
            service.start_worker("io")
            make_due(there.db, *chunk_ids(there.db, drill.ingest))
            ingest = service.wait_for_end(drill.tenant_id, drill.ingest)
            assert (ingest.state, ingest.succeeded) == (JobState.SUCCEEDED, len(range(5)))
            again = api(
                "POST",
                "/v1/jobs",
                json={"kind": "export", "input": {"job": drill.opened}},
            )
            assert again.status_code == 202, again.json
            export = service.wait_for_end(drill.tenant_id, again.json["id"])
            assert export.state == JobState.SUCCEEDED
        # The chain of the audit log came along, and goes on: the first two tell of tenant and key.
        chain_entries(there.db, AuditKeys.from_settings(there.settings))
        with there.db.system() as session:
            keys = AuditKeys.from_settings(there.settings)
            verdict = verify_chain(session, keys, drill.tenant_id)
            assert session.scalar(text("SELECT min(seq) FROM audit_entries")) == 1
        assert (verdict.fault, verdict.unchained) == (None, 0)
        assert verdict.good >= 4
        with pytest.raises(ProgrammingError, match="append-only"), there.db.system() as session:
            session.execute(text("DELETE FROM audit_entries"))
    assert not list(drill.folder.glob(".restored*"))
