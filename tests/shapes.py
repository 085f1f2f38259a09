"""A small dataset that a small network learns in a moment: coloured shapes on black."""

from __future__ import annotations

import hashlib
import io
import random

from PIL import Image, ImageDraw

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.jobs.states import JobState
from app.storage.keys import shard
from app.storage.s3 import ObjectStore
from app.uploads.pack import ShardEntry
from tests.factories import add_upload
from tests.service import Service
from tests.unit.archives import make_zip

SHAPES = {"disc": "red", "square": "lime", "stripe": "blue"}


def shape(name: str, draw: random.Random) -> bytes:
    """A shape in its colour on black, somewhere in an image of 32×32 pixels."""
    image = Image.new("RGB", (32, 32))
    pen = ImageDraw.Draw(image)
    x, y, size = draw.randint(2, 12), draw.randint(2, 12), draw.randint(10, 16)
    box = (x, y, x + size, y + size)
    if name == "disc":
        pen.ellipse(box, fill=SHAPES[name])
    elif name == "square":
        pen.rectangle(box, fill=SHAPES[name])
    else:
        pen.line((x, 0, x, 31), fill=SHAPES[name], width=3)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def shapes(of_each: int) -> bytes:
    """An archive with so many images in a folder for each shape."""
    draw = random.Random(0)
    return make_zip(
        {f"{name}/{number}.png": shape(name, draw) for name in SHAPES for number in range(of_each)}
    )


def put_shapes(
    db: Database, store: ObjectStore, bucket: str, tenant_id: str, of_each: int = 12
) -> str:
    """``shapes@1`` with all three splits, put into the store without a worker."""
    draw = random.Random(0)
    entries: list[ShardEntry] = []
    content = b""
    for number in range(of_each * len(SHAPES)):
        label = list(SHAPES)[number % len(SHAPES)]
        image = shape(label, draw)
        digest = hashlib.sha256(image).hexdigest()
        split = ("train", "train", "validation", "test")[number // len(SHAPES) % 4]
        place = (len(content), len(image))
        entries.append(
            ShardEntry(number, f"{number}.png", *place, "png", 32, 32, digest, label, split)
        )
        content += image
    with db.tenant(tenant_id) as session:
        upload = add_upload(session, tenant_id, entries)
        store.ensure_bucket(bucket)
        store.put(bucket, shard(tenant_id, upload.id, 0), content)
        freeze_dataset(session, tenant_id, name="shapes", upload_id=upload.id)
    return "shapes@1"


def freeze_shapes(service: Service, db: Database, tenant_id: str, of_each: int = 40) -> str:
    """``shapes@1`` of the tenant, a quarter of it for testing."""
    job = service.wait_for_end(tenant_id, service.ingest(tenant_id, shapes(of_each)).id)
    assert job.state == JobState.SUCCEEDED, job.error
    with db.tenant(tenant_id) as session:
        freeze_dataset(
            session,
            tenant_id,
            name="shapes",
            upload_id=job.input["upload"],
            fractions=(0.75, 0.0, 0.25),
        )
    return "shapes@1"
