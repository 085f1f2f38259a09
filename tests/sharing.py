"""Two tenants, one of whom owns a real small network, for tests of sharing."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from app.db.session import Database
from app.ids import new_id
from app.models.spec import ModelSpec
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_tenant
from tests.api_client import Api, make_key
from tests.factories import register_weights
from worker.recognisers.registry import build_module, default_preprocess
from worker.recognisers.weights import save_weights

#: A client's bucket.
PHOTOS = "shared-photos"
CLASSES = ("disc", "ring", "square")


@dataclass(frozen=True, slots=True)
class Side:
    """A tenant with an admin's key."""

    tenant_id: str
    name: str
    api: Api


def make_side(app: Any, settings: Settings, database: Database) -> Side:
    """A fresh tenant."""
    with database.system() as session:
        tenant = create_tenant(session, new_id("ten").replace("_", "-"))
    return Side(tenant.id, tenant.name, Api(app, make_key(database, settings, tenant.id)))


def add_network(
    database: Database,
    objects: ObjectStore,
    settings: Settings,
    tenant_id: str,
    folder: Path,
    model: str = "shapes",
) -> str:
    """The id of a new version with random weights, which is ``@production`` now."""
    spec = ModelSpec("small_cnn", CLASSES, default_preprocess("small_cnn"))
    torch.manual_seed(0)
    path = folder / f"{model}.safetensors"
    save_weights(build_module(spec), path)
    objects.ensure_bucket(settings.bucket)
    return register_weights(
        database, objects, settings.bucket, tenant_id, model, spec, path.read_bytes()
    )


def picture(seed: int) -> bytes:
    """A PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def put_pictures(objects: ObjectStore, prefix: str, count: int) -> list[dict[str, str]]:
    """So many pictures under a prefix of the client's bucket, as inline items."""
    objects.ensure_bucket(PHOTOS)
    for number in range(count):
        objects.put(PHOTOS, f"{prefix}/{number}.png", picture(number), "image/png")
    return [{"key": f"s3://{PHOTOS}/{prefix}/{number}.png"} for number in range(count)]


def predict_body(model: str, items: Sequence[dict[str, str]], **options: Any) -> dict[str, Any]:
    """A predict job over inline items."""
    return {"kind": "predict", "model": model, "input": {"items": list(items)}, "options": options}
