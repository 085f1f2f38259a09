"""What these tests share: an application, and a tenant that has one of everything."""

from __future__ import annotations

from typing import Any

import pytest

from app.db.session import Database
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.world import World, build_world


@pytest.fixture(scope="module")
def world(app: Any, settings: Settings, database: Database, objects: ObjectStore) -> World:
    """The tenant that asks, with ids that lead somewhere."""
    return build_world(app, settings, database, objects)
