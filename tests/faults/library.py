"""What a fault run recognises, and with what: a registered model, images in shards, manifests."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from app.db.session import Database
from app.jobs.submit import submit_predict
from app.locations import ANYWHERE
from app.models.spec import ModelSpec, PreprocessSpec
from app.storage.s3 import ObjectStore
from tests.factories import register_weights
from tests.faults.images import CLASSES, make_image

#: The client's own bucket.
BUCKET = "pictures"
MODEL = "colours"
SHARD_ITEMS = 4096
#: The smallest that the small network takes.
PREPROCESS = PreprocessSpec(32, 32, resize_mode="stretch", interpolation="nearest")


def register_model(
    db: Database,
    store: ObjectStore,
    bucket: str,
    tenant_id: str,
    *,
    classes: Sequence[str] = CLASSES,
) -> str:
    """The id of ``colours@production``: real, small weights, whose forward a worker fakes."""
    spec = ModelSpec("small_cnn", tuple(classes), PREPROCESS)
    content = _weights(spec.classes)
    return register_weights(db, store, bucket, tenant_id, MODEL, spec, content)


@cache
def _weights(classes: tuple[str, ...]) -> bytes:
    import torch

    from worker.recognisers.registry import build_module
    from worker.recognisers.weights import save_weights

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        save_weights(build_module(ModelSpec("small_cnn", classes, PREPROCESS)), path)
        return path.read_bytes()


@dataclass(frozen=True, slots=True)
class Picture:
    """One item as the client knows it: its own name for it, and its bytes."""

    custom_id: str
    data: bytes


def draw_pictures(seed: int, count: int, *, first: int = 0) -> list[Picture]:
    """So many images of different colours, the same for the same seed."""
    colours = random.Random(seed).sample(range(1, 2**24), count)
    return [
        Picture(f"i{first + index:07d}", make_image(colour)) for index, colour in enumerate(colours)
    ]


def put_manifest(
    store: ObjectStore, prefix: str, pictures: Sequence[Picture], *, shard_items: int = SHARD_ITEMS
) -> str:
    """Pack the images one behind the other into shards; the manifest's address."""
    store.ensure_bucket(BUCKET)
    lines: list[str] = []
    for start in range(0, len(pictures), shard_items):
        key, offset = f"{prefix}/shard-{start:07d}.bin", 0
        part = pictures[start : start + shard_items]
        for picture in part:
            lines.append(
                json.dumps(
                    {
                        "key": key,
                        "offset": offset,
                        "length": len(picture.data),
                        "custom_id": picture.custom_id,
                    }
                )
            )
            offset += len(picture.data)
        store.put(BUCKET, key, b"".join(picture.data for picture in part))
    address = f"{prefix}/manifest.jsonl"
    store.put(BUCKET, address, "\n".join(lines).encode())
    return f"s3://{BUCKET}/{address}"


def submit_pictures(db: Database, tenant_id: str, manifest: str, own_bucket: str) -> str:
    """The id of a new job that recognises the images of a manifest with ``colours``."""
    with db.tenant(tenant_id) as session:
        return submit_predict(
            session,
            tenant_id,
            source={"manifest": manifest},
            model=MODEL,
            options={"top_k": 4, "threshold": 0.0, "activation": "softmax"},
            own_bucket=own_bucket,
            locations=ANYWHERE,
        ).id
