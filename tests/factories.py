"""Rows that tests build on, in a line or two; every tenant is a fresh one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from app.db.session import Database
from app.ids import JOB, TENANT, UPLOAD, new_id
from app.jobs.states import JobKind, JobState
from app.jobs.tables import IdempotencyKey, Job
from app.models.promote import move_alias
from app.models.register import announce_version, complete_version
from app.models.spec import ModelSpec, PreprocessSpec
from app.models.tables import ModelVersion
from app.storage.keys import plain_weights, shard
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_tenant
from app.tenants.tables import Tenant
from app.uploads.pack import ShardEntry
from app.uploads.tables import Shard, Upload, UploadKind, UploadState

PEPPER = "a pepper for tests, 32 characters and more"
SPEC = ModelSpec("small_cnn", ("cat", "dog"), PreprocessSpec(32, 32))


def make_tenant(database: Database) -> str:
    """The id of a new tenant that owns nothing yet."""
    with database.system() as session:
        return create_tenant(session, f"t-{new_id(TENANT)[-26:]}").id


def name_of_tenant(database: Database, tenant_id: str) -> str:
    """What others call the tenant."""
    with database.system() as session:
        return session.scalars(select(Tenant.name).where(Tenant.id == tenant_id)).one()


def add_job(
    session: Session,
    tenant_id: str,
    kind: JobKind = JobKind.PREDICT,
    state: JobState = JobState.QUEUED,
) -> Job:
    """An open job without chunks."""
    job = Job(
        id=new_id(JOB),
        tenant_id=tenant_id,
        kind=kind,
        state=state,
        input={},
        options={},
        metadata_={},
    )
    session.add(job)
    session.flush()
    return job


def add_version(session: Session, tenant_id: str, model: str = "pets") -> ModelVersion:
    """A ready version with two classes."""
    version = announce_version(
        session, tenant_id, model=model, arch=SPEC.arch, arch_options={}, lineage={}
    )
    complete_version(
        session,
        tenant_id,
        version.id,
        spec=SPEC,
        weights_key=f"weights/{version.id}",
        weights_sha256="0" * 64,
        weights_bytes=4,
        parameter_count=1,
    )
    session.refresh(version)
    return version


def entry(
    ordinal: int, label: str | None = "cat", split: str | None = None, content: str | None = None
) -> ShardEntry:
    """The index entry of an image; the same ``content`` means the same bytes."""
    digest = hashlib.sha256((content or f"image {ordinal}").encode()).hexdigest()
    return ShardEntry(
        ordinal, f"{ordinal}.png", ordinal * 1024 + 512, 500, "png", 8, 8, digest, label, split
    )


def add_key(db: Database, tenant_id: str, key: str, hours: float) -> None:
    """An idempotency key that was used so long ago."""
    with db.system() as session:
        session.add(
            IdempotencyKey(
                tenant_id=tenant_id,
                key=key,
                request_sha256="0" * 64,
                status=202,
                body={},
                created_at=func.now() - timedelta(hours=hours),
            )
        )


def register_weights(
    db: Database,
    store: ObjectStore,
    bucket: str,
    tenant_id: str,
    model: str,
    spec: ModelSpec,
    content: bytes,
) -> str:
    """The id of the model's new version with these weights, which is ``@production`` now."""
    with db.tenant(tenant_id) as session:
        version = announce_version(
            session, tenant_id, model=model, arch=spec.arch, arch_options={}, lineage={}
        )
        key = plain_weights(tenant_id, version.id)
        store.put(bucket, key, content)
        complete_version(
            session,
            tenant_id,
            version.id,
            spec=spec,
            weights_key=key,
            weights_sha256=hashlib.sha256(content).hexdigest(),
            weights_bytes=len(content),
            parameter_count=1,
        )
        move_alias(session, tenant_id, model, "production", version.id)
    return version.id


def add_upload(
    session: Session,
    tenant_id: str,
    *shards: Sequence[ShardEntry],
    kind: UploadKind = UploadKind.ARCHIVE,
    state: UploadState = UploadState.READY,
) -> Upload:
    """An upload whose images lie in the given shards."""
    upload = Upload(
        id=new_id(UPLOAD),
        tenant_id=tenant_id,
        kind=kind,
        state=state,
        filename="images.zip",
        object_key="archive",
        image_count=sum(map(len, shards)),
    )
    session.add(upload)
    session.flush()
    session.add_all(
        Shard(
            upload_id=upload.id,
            number=number,
            tenant_id=tenant_id,
            object_key=shard(tenant_id, upload.id, number),
            size_bytes=1024 * len(entries),
            sha256="0" * 64,
            entries=[entry.as_row() for entry in entries],
            entry_count=len(entries),
        )
        for number, entries in enumerate(shards)
    )
    session.flush()
    return upload
