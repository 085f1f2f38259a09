"""Quotas: what is over is refused with its name, its numbers and when to come back, or waits."""

from __future__ import annotations

import io
import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.orm import Session
from typer.testing import CliRunner

from app.cli.main import app as commands
from app.db.session import Database
from app.errors import ObjectMissingError, TooManyError
from app.jobs.admit import _COUNT, Admission, _window
from app.jobs.states import JobState
from app.jobs.tables import Artifact, Job
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.quotas import Quotas, quotas_of, set_quotas
from app.tenants.tables import Tenant
from app.uploads.room import stored_bytes
from app.uploads.tables import Upload
from tests.api_client import Api, import_body, make_app, make_key
from tests.factories import add_job, add_upload, entry, make_tenant
from tests.service import environment
from tests.unit.archives import image_bytes, make_zip

PLENTY = Quotas(1000, 1000, 10**9, 1000, 1000)


def limited(settings: Settings, **limits: int) -> Settings:
    return settings.model_copy(update=limits)


@pytest.fixture
def make_api(settings: Settings, objects: ObjectStore, database: Database, tenant_id: str) -> Any:
    """The API under other quotas, as this test's tenant."""

    def make(**limits: int) -> Api:
        app = make_app(limited(settings, **limits), objects)
        return Api(app, make_key(database, settings, tenant_id))

    return make


def refused(answer: Any, code: str) -> dict[str, Any]:
    """The problem of a refusal by a quota."""
    assert answer.status_code == 429, answer.text
    problem: dict[str, Any] = answer.json
    assert problem["code"] == code
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    return problem


def test_jobs_over_the_quota_are_refused_until_one_has_ended(
    make_api: Any, database: Database, tenant_id: str
) -> None:
    api = make_api(max_open_jobs=2)
    first, _ = (api("POST", "/v1/jobs", json=import_body()).json for _ in range(2))
    problem = refused(api("POST", "/v1/jobs", json=import_body()), "too_many_jobs")
    assert "2 open jobs" in problem["detail"]
    assert problem["errors"] == [{"pointer": "max_open_jobs", "detail": "2 open jobs; at most 2"}]
    refused(
        api("POST", "/v1/models/other/versions", json=import_body()["options"]), "too_many_jobs"
    )
    # Polling and the rest of the tenant's life go on.
    assert api("GET", f"/v1/jobs/{first['id']}").status_code == 200
    with database.system() as session:
        session.execute(
            update(Job)
            .where(Job.id == first["id"])
            .values(state=JobState.CANCELLED, ended_at=func.now())
        )
    assert api("POST", "/v1/jobs", json=import_body()).status_code == 202


def test_other_tenants_are_not_counted(
    make_api: Any, database: Database, settings: Settings
) -> None:
    api = make_api(max_open_jobs=1)
    assert api("POST", "/v1/jobs", json=import_body()).status_code == 202
    other = Api(api.app, make_key(database, settings, make_tenant(database)))
    assert other("POST", "/v1/jobs", json=import_body()).status_code == 202


def test_replay_of_an_accepted_submission_is_never_refused(make_api: Any) -> None:
    api = make_api(max_open_jobs=1)
    words = {"json": import_body(), "headers": {"Idempotency-Key": "once"}}
    accepted = api("POST", "/v1/jobs", **words)
    again = api("POST", "/v1/jobs", **words)
    assert (again.status_code, again.json["id"]) == (202, accepted.json["id"])


def test_submissions_of_a_minute_are_counted_and_age(
    make_api: Any, database: Database, tenant_id: str
) -> None:
    api = make_api(max_submissions_per_minute=3)
    for _ in range(3):
        assert api("POST", "/v1/jobs", json=import_body()).status_code == 202
    answer = api("POST", "/v1/jobs", json=import_body())
    assert "3 jobs within a minute" in refused(answer, "too_many_submissions")["detail"]
    assert int(answer.headers["Retry-After"]) > 30
    with database.system() as session:
        oldest = session.scalar(select(func.min(Job.id)).where(Job.tenant_id == tenant_id))
        session.execute(
            update(Job)
            .where(Job.id == oldest)
            .values(created_at=func.now() - timedelta(seconds=61))
        )
    assert api("POST", "/v1/jobs", json=import_body()).status_code == 202


def test_bytes_over_the_quota_are_refused_before_they_are_sent_and_after(
    make_api: Any, database: Database, tenant_id: str, objects: ObjectStore
) -> None:
    body = make_zip({"a.png": image_bytes("PNG")})
    api = make_api(max_stored_bytes=2 * len(body) - 1)
    send = {"content_type": "application/zip", "data": body}
    assert api("POST", "/v1/uploads?filename=a.zip", **send).status_code == 202
    problem = refused(api("POST", "/v1/uploads?filename=b.zip", **send), "too_many_bytes")
    assert f"{len(body)} bytes stored" in problem["detail"]
    begin = {"kind": "archive", "filename": "c.zip", "size_bytes": len(body)}
    refused(api("POST", "/v1/uploads/multipart", json=begin), "too_many_bytes")
    # Of unknown length: known only once all of it is here, and then nothing of it is kept.
    answer = api(
        "POST",
        "/v1/uploads?filename=d.zip",
        input_stream=io.BytesIO(body),
        environ_overrides={"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
    )
    refused(answer, "too_many_bytes")
    with database.tenant(tenant_id) as session:
        last = session.scalars(select(Upload).order_by(Upload.created_at.desc()).limit(1)).one()
        assert last.state == "failed"
        assert stored_bytes(session, tenant_id) == len(body)
    with pytest.raises(ObjectMissingError):
        objects.head("darkroom", last.object_key)


def test_archives_are_counted_until_they_are_packed_and_artifacts_always(
    database: Database, tenant_id: str
) -> None:
    with database.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, [entry(0)])
        upload.size_bytes, upload.packed_bytes = 700, 500
        session.flush()
        assert stored_bytes(session, tenant_id) == 500
        upload.state = "stored"
        session.flush()
        assert stored_bytes(session, tenant_id) == 1200
        assert stored_bytes(session, tenant_id, but_for=upload.id) == 0
        job = add_job(session, tenant_id)
        session.add(
            Artifact(
                id=job.id.replace("job", "art"),
                tenant_id=tenant_id,
                job_id=job.id,
                name="a",
                media_type="x/y",
                object_key="k",
                size_bytes=30,
                sha256="0",
            )
        )
        session.flush()
        assert stored_bytes(session, tenant_id) == 1230


def test_count_far_from_the_limits_serves_for_a_second_and_near_them_for_a_moment(
    database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("app.jobs.admit.monotonic_seconds", lambda: clock)
    counted: list[str] = []
    admission = Admission(Quotas(100, 1000, 1000, 1000, 1000))
    count = admission._count

    def counting(session: Session, tenant_id: str) -> Any:
        counted.append(tenant_id)
        return count(session, tenant_id)

    monkeypatch.setattr(admission, "_count", counting)
    with database.tenant(tenant_id) as session:
        for _ in range(50):
            admission.admit_job(session, tenant_id)
        assert len(counted) == 1
        clock += 1.1
        admission.admit_job(session, tenant_id)
        assert len(counted) == 2
        # This process's own jobs are added to what was counted, and near the limit that serves
        # no longer than counting takes.
        for _ in range(99):
            admission.admit_job(session, tenant_id)
        with pytest.raises(TooManyError):
            admission.admit_job(session, tenant_id)
        assert len(counted) == 2
        clock += 0.01
        admission.admit_job(session, tenant_id)
        assert len(counted) == 3


def test_jobs_of_another_process_are_seen_after_a_second_at_the_latest(
    database: Database, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 1000.0
    monkeypatch.setattr("app.jobs.admit.monotonic_seconds", lambda: clock)
    admission = Admission(Quotas(20, 1000, 1000, 1000, 1000))
    with database.tenant(tenant_id) as session:
        admission.admit_job(session, tenant_id)
        for _ in range(20):
            add_job(session, tenant_id)
        admission.admit_job(session, tenant_id)
        clock += 1.1
        with pytest.raises(TooManyError, match="20 open jobs"):
            admission.admit_job(session, tenant_id)


def test_tenants_own_limits_come_before_those_of_the_settings(
    database: Database, tenant_id: str
) -> None:
    with database.system() as session:
        name = session.get_one(Tenant, tenant_id).name
        set_quotas(session, name, max_open_jobs=7)
        assert quotas_of(session, tenant_id, PLENTY) == Quotas(7, 1000, 10**9, 1000, 1000)
        set_quotas(session, name, max_open_jobs=None)
        assert quotas_of(session, tenant_id, PLENTY) == PLENTY


def test_command_shows_and_sets_quotas(
    database: Database, settings: Settings, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    with database.system() as session:
        name = session.get_one(Tenant, tenant_id).name

    def run(*words: str) -> Any:
        done = CliRunner().invoke(commands, ["tenants", *words])
        assert done.exit_code == 0, done.output
        return done

    def read(*words: str) -> Any:
        return json.loads(run(*words, "--json").stdout)

    row = read("quota", name, "--max-open-jobs", "5")[0]
    assert (row["max_open_jobs"], row["own"]) == (5, ["max_open_jobs"])
    assert {row["name"]: row["max_open_jobs"] for row in read("list")}[name] == 5
    shown = run("quota", name)
    assert shown.stdout.split()[-5:] == [
        "5",
        "20,000,000*",
        "1,099,511,627,776*",
        "12,000*",
        "200,000*",
    ]
    assert "* no limit of its own: the setting as this environment has it" in shown.stderr
    row = read("quota", name, "--max-open-jobs", "0")[0]
    assert (row["max_open_jobs"], row["own"]) == (settings.max_open_jobs, [])


def test_counting_reads_open_and_new_jobs_alone(
    quiet: Database,
) -> None:
    tenant_id = make_tenant(quiet)
    with quiet.tenant(tenant_id) as session:
        job_id = add_job(session, tenant_id).id
    many = text(
        "INSERT INTO jobs (id, tenant_id, kind, state, priority, input, options, metadata, total,"
        " succeeded, failed, skipped, cancelled, seq, ended_at, created_at)"
        " SELECT 'job_00' || substr(id, 7) || '_' || n, tenant_id, kind,"
        " CASE WHEN n % 5 = 0 THEN state ELSE 'succeeded' END, 0, input, options, metadata,"
        " 0, 0, 0, 0, 0, 0,"
        " CASE WHEN n % 5 > 0 THEN now() END, now() - interval '1 day'"
        " FROM jobs, generate_series(1, 20000) n WHERE id = :id"
    )
    with quiet.system() as session:
        session.execute(many, {"id": job_id})
    with quiet.system() as session:
        session.execute(text("ANALYZE jobs"))
    with quiet.tenant(tenant_id) as session:
        row = session.execute(_COUNT, _window(tenant_id)).one()
        assert (row.open_jobs, row.submitted) == (4001, 1)
        plan = "\n".join(session.scalars(text(f"EXPLAIN {_COUNT.text}"), _window(tenant_id)))
    assert "ix_jobs_tenant_open" in plan or "ix_jobs_open" in plan, plan
    assert "ix_jobs_tenant_id_id" in plan, plan
    assert "Seq Scan" not in plan
