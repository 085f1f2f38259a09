"""A tenant that has one of everything, for tests that walk all routes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.jobs.artifacts import add_artifact
from app.models.grants import give_grant
from app.models.promote import move_alias
from app.settings import Settings
from app.storage.keys import artifact as artifact_key
from app.storage.s3 import ObjectStore
from app.training.metrics import log_metrics
from app.webhooks.deliveries import send_test
from app.webhooks.register import create_webhook
from tests.api_client import Api, import_body, make_key
from tests.factories import add_upload, add_version, entry, make_tenant, name_of_tenant
from tests.jobs import add_planned_job
from tests.webhooks import KEYRING, unchecked

CONTENT = b"content"


@dataclass(frozen=True, slots=True)
class World:
    """One tenant with its rows; ``ids`` by the names of path parameters, and a few more."""

    tenant_id: str
    api: Api
    ids: dict[str, Any]


def build_world(
    app: Any, settings: Settings, database: Database, objects: ObjectStore, name: str = "digits"
) -> World:
    """A fresh tenant whose model and dataset are called ``name``."""
    tenant_id = make_tenant(database)
    grantee = name_of_tenant(database, make_tenant(database))
    api = Api(app, make_key(database, settings, tenant_id))
    with database.tenant(tenant_id) as session:
        version = add_version(session, tenant_id, name)
        version.weights_sha256 = hashlib.sha256(CONTENT).hexdigest()
        version.weights_bytes = len(CONTENT)
    objects.put(settings.bucket, str(version.weights_key), CONTENT)
    job = api("POST", "/v1/jobs", json=import_body(name)).json["id"]
    begun = api("POST", "/v1/uploads/multipart", json={"filename": "x.zip", "size_bytes": 7}).json
    spare = make_key(database, settings, tenant_id, name="spare").split("_")[1]
    key = artifact_key(tenant_id, job, "x.txt")
    objects.put(settings.bucket, key, CONTENT)
    with database.tenant(tenant_id) as session:
        log_metrics(session, tenant_id, job, 1, {"loss": 0.5, "odd": float("nan")})
        splits = ("train", "train", "test", "validation")
        kinds = [(label, split) for split in splits for label in ("cat", "dog")]
        entries = [entry(number, *kind) for number, kind in enumerate(kinds)]
        ready = add_upload(session, tenant_id, entries)
        frozen = freeze_dataset(
            session, tenant_id, name=name, upload_id=ready.id, fractions=(1.0, 0.0, 0.0), seed=0
        )
        move_alias(session, tenant_id, name, "production", version.id)
        give_grant(session, tenant_id, name, grantee, rights=["run"])
        webhook, _ = create_webhook(
            session,
            KEYRING,
            tenant_id,
            target=unchecked("https://example.com/"),
            events=["job.failed"],
        )
        found = {
            "job_id": job,
            "upload_id": begun["upload"]["id"],
            "artifact_id": add_artifact(
                session,
                tenant_id,
                job,
                name="x.txt",
                media_type="text/plain",
                object_key=key,
                size_bytes=len(CONTENT),
                sha256=hashlib.sha256(CONTENT).hexdigest(),
            ).id,
            "key_id": f"key_{spare}",
            "name": name,
            "number": 1,
            "alias": "production",
            "tenant": grantee,
            "webhook_id": webhook.id,
            "delivery_id": send_test(session, tenant_id, webhook.id).id,
            # No path has these; bodies do.
            "predict_job_id": add_planned_job(session, tenant_id, 3),
            "ready_upload_id": ready.id,
            "model_version_id": version.id,
            "dataset_version_id": frozen.id,
        }
    return World(tenant_id, api, found)
