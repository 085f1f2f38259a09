"""Full disks: the answer says so, nothing is half written, and the same call passes later."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import func, select, text

from app.db.session import Database
from app.errors import StorageError
from app.jobs.tables import IdempotencyKey, Job
from app.settings import Settings
from app.storage.faults import faults
from app.storage.s3 import ObjectStore
from tests.api_client import Api, import_body, make_app, make_key
from tests.factories import make_tenant

#: What PostgreSQL says when it cannot extend a file (class 53, disk_full), raised by its own hand.
_FULL = text(
    """
    CREATE OR REPLACE FUNCTION pretend_full() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
    END $$
    """
)


@pytest.fixture
def api(settings: Settings, objects: ObjectStore, quiet: Database) -> Api:
    """The API on the second database, which this test may break."""
    url = quiet._engine.url.render_as_string(hide_password=False)
    own = settings.model_copy(
        update={"database_url": type(settings.database_url)(url.replace("+psycopg", ""))}
    )
    return Api(make_app(own, objects), make_key(quiet, own, make_tenant(quiet)))


def count(db: Database, table: Any) -> int:
    with db.system() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def test_submission_on_a_full_database_writes_nothing_and_passes_once_there_is_room(
    api: Api, quiet: Database
) -> None:
    submission = {"json": import_body(), "headers": {"Idempotency-Key": "full"}}
    with quiet.system() as session:
        session.execute(_FULL)
        session.execute(
            text("CREATE TRIGGER full_disk BEFORE INSERT ON chunks EXECUTE FUNCTION pretend_full()")
        )
    try:
        answer = api("POST", "/v1/jobs", **submission)
        assert (answer.status_code, answer.json["code"]) == (503, "storage_full")
        assert int(answer.headers["Retry-After"]) >= 30
        assert count(quiet, Job) == 0
        assert count(quiet, IdempotencyKey) == 0
    finally:
        with quiet.system() as session:
            session.execute(text("DROP TRIGGER full_disk ON chunks"))
            session.execute(text("DROP FUNCTION pretend_full"))
    assert api("POST", "/v1/jobs", **submission).status_code == 202
    assert count(quiet, Job) == 1


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (507, "Unknown", "Insufficient Storage"),
        (507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold."),
        (500, "InternalError", "write /data/x: no space left on device"),
    ],
)
def test_object_store_without_room_is_told_apart_from_one_that_is_away(
    status: int, code: str, message: str
) -> None:
    answer = {
        "Error": {"Code": code, "Message": message},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    with pytest.raises(StorageError) as caught, faults("darkroom", "k"):
        raise ClientError(answer, "PutObject")
    assert caught.value.code == "storage_full"
    assert caught.value.retryable
    with pytest.raises(StorageError) as caught, faults("darkroom", "k"):
        raise ClientError(
            {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}},
            "PutObject",
        )
    assert caught.value.code == "fetch_failed"


def test_upload_to_a_full_object_store_is_refused_and_given_up(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_words: object, **_more: object) -> None:
        raise ClientError(
            {
                "Error": {"Code": "InternalError", "Message": "no space left on device"},
                "ResponseMetadata": {"HTTPStatusCode": 500},
            },
            "PutObject",
        )

    store = api.app.extensions["darkroom"].store
    for verb in ("put_object", "upload_part"):
        monkeypatch.setattr(store._client, verb, full)
    answer = api("POST", "/v1/uploads?filename=a.zip", data=b"x" * 1000)
    assert (answer.status_code, answer.json["code"]) == (503, "storage_full")
    assert [each["state"] for each in api("GET", "/v1/uploads").json["data"]] == ["failed"]
