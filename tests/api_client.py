"""Helpers of the tests that speak HTTP: an application on the session's parts, and its keys."""

from __future__ import annotations

import json
from typing import Any

from flask.testing import FlaskClient

from app.api.app import create_app
from app.db.session import Database
from app.log import configure_logging
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_key
from app.tenants.scopes import Scope


def offline_app() -> Any:
    """An application without any part, for what it answers alone."""
    return create_app(
        Settings(DATABASE_URL="postgresql://x:y@127.0.0.1:1/z", S3_ENDPOINT_URL="http://x")
    )


def offline_document() -> dict[str, Any]:
    """The document needs no part: settings that lead nowhere will do."""
    served = offline_app().test_client().get("/v1/openapi.json")
    document: dict[str, Any] = json.loads(served.data)
    return document


def make_key(
    database: Database, settings: Settings, tenant_id: str, *scopes: Scope, name: str = "test"
) -> str:
    """The text of a fresh key; an admin's where no scopes are named."""
    pepper = settings.key_pepper.get_secret_value()
    with database.tenant(tenant_id) as session:
        return create_key(
            session, tenant_id, name=name, scopes=scopes or (Scope.ADMIN,), pepper=pepper
        ).text


def make_app(settings: Settings, objects: ObjectStore) -> Any:
    """The application on the session's parts, quiet."""
    objects.ensure_bucket(settings.bucket)
    configure_logging("ERROR")
    return create_app(settings)


class Api:
    """A tenant's view of the application."""

    def __init__(self, app: Any, key: str) -> None:
        self.app = app
        self.key = key

    def __call__(self, method: str, path: str, **words: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.key}", **words.pop("headers", {})}
        # A client of its own each time, so that threads do not share one.
        client: FlaskClient = self.app.test_client()
        return client.open(path, method=method, headers=headers, **words)


def import_body(model: str = "squeeze") -> dict[str, Any]:
    """A job that can be submitted without anything else being there."""
    return {
        "kind": "import",
        "model": model,
        "options": {
            "arch": "squeezenet1_0",
            "weights": "torchvision:DEFAULT",
            "classes": "imagenet",
        },
    }
