"""Versions out of use: archived, restored, given up, and what running jobs notice of it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import func, update

from app.db.session import Database
from app.dispatch import cleanup_weights
from app.dispatch.cleanup_weights import delete_given_up
from app.errors import ConflictError, DarkroomError
from app.jobs.states import JobKind, JobState
from app.jobs.tables import Job
from app.models.promote import move_alias
from app.models.register import announce_version, complete_version, fail_version
from app.models.resolve import get_version, resolve_version
from app.models.retire import archive_version, delete_version, restore_version
from app.models.states import VersionState
from app.models.tables import ModelVersion
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.factories import SPEC, add_job, add_version, make_tenant

Act = Callable[[Any, str, str, int], None]


class Shelf:
    """A tenant's model ``pets``, whose version 1 has an object for its weights."""

    def __init__(self, db: Database, store: ObjectStore, bucket: str, tenant_id: str) -> None:
        self.db, self.store, self.bucket, self.tenant_id = db, store, bucket, tenant_id
        with db.tenant(tenant_id) as session:
            version = add_version(session, tenant_id)
            self.version_id, self.key = version.id, str(version.weights_key)
        store.put(bucket, self.key, b"weights")

    def do(self, *acts: Act) -> None:
        for act in acts:
            with self.db.tenant(self.tenant_id) as session:
                act(session, self.tenant_id, "pets", 1)

    def wait(self) -> None:
        """Let the time pass that a version given up keeps its weights at least."""
        with self.db.system() as session:
            session.execute(
                update(ModelVersion)
                .where(ModelVersion.id == self.version_id)
                .values(delete_asked_at=func.now() - cleanup_weights.GRACE - timedelta(seconds=1))
            )

    def clean(self) -> int:
        return delete_given_up(self.db, self.store, self.bucket)

    @property
    def version(self) -> ModelVersion:
        with self.db.tenant(self.tenant_id) as session:
            return get_version(session, self.tenant_id, "pets@1")

    @property
    def has_weights(self) -> bool:
        return any(found.key == self.key for found in self.store.list(self.bucket, self.key))


@pytest.fixture
def shelf(database: Database, objects: ObjectStore, settings: Settings, tenant_id: str) -> Shelf:
    return Shelf(database, objects, settings.bucket, tenant_id)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(DarkroomError) as caught:
        call()
    return caught.value.code


def test_archived_version_takes_no_jobs_until_it_is_restored(shelf: Shelf) -> None:
    ready_at = shelf.version.ready_at
    shelf.do(archive_version)
    with (
        pytest.raises(ConflictError, match="no new jobs"),
        shelf.db.tenant(shelf.tenant_id) as session,
    ):
        resolve_version(session, shelf.tenant_id, "pets@1")
    with pytest.raises(ConflictError, match="pets@1 is archived") as twice:
        shelf.do(archive_version)
    assert twice.value.code == "model_not_ready"
    shelf.do(restore_version)
    assert (shelf.version.state, shelf.version.ready_at) == (VersionState.READY, ready_at)
    assert refused(lambda: shelf.do(restore_version)) == "model_not_archived"


def test_version_that_an_alias_points_at_is_not_archived(shelf: Shelf) -> None:
    with shelf.db.tenant(shelf.tenant_id) as session:
        for alias in ("next", "production"):
            move_alias(session, shelf.tenant_id, "pets", alias, shelf.version_id)
    with pytest.raises(ConflictError, match="@next and @production") as caught:
        shelf.do(archive_version)
    assert caught.value.code == "version_in_use"
    assert shelf.version.state == VersionState.READY


def test_version_in_use_cannot_be_deleted(shelf: Shelf) -> None:
    assert refused(lambda: shelf.do(delete_version)) == "model_not_archived"


def test_deleted_version_loses_its_weights_and_keeps_its_name(shelf: Shelf) -> None:
    shelf.do(archive_version, delete_version)
    assert shelf.clean() == 0
    shelf.wait()
    assert shelf.clean() == 1
    assert not shelf.has_weights
    version = shelf.version
    assert (version.state, version.weights_key) == (VersionState.DELETED, None)
    assert version.deleted_at is not None
    assert version.classes == list(SPEC.classes)
    assert refused(lambda: shelf.do(restore_version)) == "model_not_archived"
    shelf.do(delete_version)
    assert shelf.clean() == 0


def test_version_given_up_can_be_restored_while_its_weights_are_there(shelf: Shelf) -> None:
    shelf.do(archive_version, delete_version)
    shelf.wait()
    shelf.do(restore_version)
    assert shelf.clean() == 0
    assert shelf.has_weights
    assert (shelf.version.state, shelf.version.delete_asked_at) == (VersionState.READY, None)


@pytest.mark.parametrize("whose", ["own", "another tenant's"])
def test_weights_stay_while_an_open_job_uses_them(shelf: Shelf, whose: str) -> None:
    tenant_id = shelf.tenant_id if whose == "own" else make_tenant(shelf.db)
    with shelf.db.system() as session:
        job = add_job(session, tenant_id, JobKind.PREDICT, JobState.RUNNING)
        if whose == "own":
            job.model_version_id = shelf.version_id
        else:
            job.shared_version_id, job.shared_version = shelf.version_id, {}
        job_id = job.id
    shelf.do(archive_version, delete_version)
    shelf.wait()
    assert shelf.clean() == 0
    assert shelf.version.state == VersionState.ARCHIVED
    with shelf.db.system() as session:
        session.execute(
            update(Job)
            .where(Job.id == job_id)
            .values(state=JobState.SUCCEEDED, ended_at=func.now())
        )
    assert shelf.clean() == 1
    assert not shelf.has_weights


def test_weights_whose_deletion_was_cut_short_go_in_the_next_round(shelf: Shelf) -> None:
    class Broken:
        def delete(self, *_: object) -> None:
            raise ConflictError("the store is away")

    shelf.do(archive_version, delete_version)
    shelf.wait()
    with pytest.raises(ConflictError):
        delete_given_up(shelf.db, Broken(), shelf.bucket)  # type: ignore[arg-type]
    assert shelf.version.state == VersionState.DELETED
    assert shelf.has_weights
    assert shelf.clean() == 1
    assert not shelf.has_weights


def test_version_whose_job_failed_can_be_given_up(shelf: Shelf) -> None:
    with shelf.db.tenant(shelf.tenant_id) as session:
        job = add_job(session, shelf.tenant_id, JobKind.FINETUNE)
        announce_version(
            session,
            shelf.tenant_id,
            model="pets",
            arch=SPEC.arch,
            arch_options={},
            lineage={},
            job_id=job.id,
        )
        fail_version(session, shelf.tenant_id, job.id)
        delete_version(session, shelf.tenant_id, "pets", 2)
        version = get_version(session, shelf.tenant_id, "pets@2")
        session.refresh(version)
        # It has no weights to wait for.
        assert version.state == VersionState.DELETED
        assert version.deleted_at is not None
        delete_version(session, shelf.tenant_id, "pets", 2)


def test_archived_version_is_not_completed_once_more(shelf: Shelf) -> None:
    shelf.do(archive_version)
    with pytest.raises(ConflictError), shelf.db.tenant(shelf.tenant_id) as session:
        complete_version(
            session,
            shelf.tenant_id,
            shelf.version_id,
            spec=SPEC,
            weights_key="weights/other",
            weights_sha256="1" * 64,
            weights_bytes=4,
            parameter_count=1,
        )
    assert shelf.version.weights_key == shelf.key
