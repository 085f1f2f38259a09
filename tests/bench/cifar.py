"""What small photos teach in ten minutes: ``make bench ONLY=cifar PHOTOS=cifar.zip WEIGHTS=file``.

``PHOTOS`` holds at least 1,200 images of 32 pixels in each of ten folders; ``WEIGHTS`` are those of
torchvision's ``squeezenet1_0`` on ImageNet, as safetensors. ``PARTS`` names some of the rows only.

Every training is a job of a real service with ten minutes of its time, and its score is that of
the registered version on images that no training saw:

- ``resnet20``: a ResNet-20 for 32 px from nothing, 9,000 images, a tenth of 10,000 held out.
- ``scratch``, ``probe``, ``tuned``: a SqueezeNet at 128 px on 2,000 other images, from nothing,
  with the last layer alone on ImageNet's weights, and whole with smaller steps in lower layers.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import time
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from app.datasets.freeze import freeze_dataset
from app.db.session import Database
from app.jobs.states import JobState
from app.jobs.submit import submit_finetune, submit_import
from app.log import configure_logging
from app.storage.s3 import ObjectStore
from app.training.recipe import TrainingRecipe
from app.uploads.tables import UploadKind
from tests.bench.service import local_parts, say
from tests.factories import make_tenant
from tests.local_parts import scratch_folder
from tests.service import Service, running_service

MOST_SECONDS = 600.0
ARCH = "squeezenet1_0"
#: Images of a class that train and that judge.
SMALL, FEW = (900, 100), (200, 100)
_CROPS = {"flip": True, "crop_padding_px": 4}
_SQUEEZE: dict[str, Any] = {
    "arch": ARCH,
    "input_px": 128,
    "optimizer": "adamw",
    "decay_norms": False,
    "clip_norm": 1.0,
    "train_batch_size": 32,
    "max_seconds": MOST_SECONDS - 30,
}
_FLIPS = {"flip": True, "crop_padding_px": 8}
RECIPES: dict[str, dict[str, Any]] = {
    "resnet20": {
        "arch": "resnet20",
        "schedule": "one_cycle",
        "learning_rate": 0.1,
        "train_batch_size": 64,
        "epochs": 12,
        "augment": _CROPS,
        "max_seconds": MOST_SECONDS - 15,
    },
    "scratch": {
        **_SQUEEZE,
        "learning_rate": 5e-4,
        "warmup_epochs": 1,
        "epochs": 6,
        "augment": _FLIPS,
    },
    "probe": {**_SQUEEZE, "train_layers": "head", "learning_rate": 3e-3, "epochs": 8},
    "tuned": {
        **_SQUEEZE,
        "learning_rate": 3e-4,
        "layer_decay": 0.9,
        "warmup_epochs": 0.5,
        "epochs": 5,
        "augment": _FLIPS,
    },
}


def main() -> None:
    """Measure, and print one line."""
    configure_logging("ERROR")
    parts_asked = (os.environ.get("PARTS") or ",".join(RECIPES)).split(",")
    try:
        photos, weights = Path(os.environ["PHOTOS"]), Path(os.environ["WEIGHTS"])
    except KeyError as missing:
        sys.exit(f"say which: make bench ONLY=cifar PHOTOS=… WEIGHTS=… ({missing} is not given)")
    with scratch_folder("darkroom-bench-") as folder, local_parts(folder) as parts:
        database = Database.from_settings(parts.settings)
        ObjectStore.from_settings(parts.settings).ensure_bucket(parts.settings.bucket)
        tenant_id = make_tenant(database)
        with running_service(parts.settings, database, folder / "logs") as service:
            service.start_workers("io", "training", "inference")
            small, few = draw(photos)
            freeze(service, database, tenant_id, "small", small)
            freeze(service, database, tenant_id, "few", few)
            import_weights(service, database, tenant_id, weights)
            scores = {name: learn(service, tenant_id, name) for name in parts_asked}
    say(f"cifar {' '.join(f'{name}={score:.4f}' for name, score in scores.items())}")


def draw(photos: Path) -> tuple[bytes, bytes]:
    """Two archives with labels and splits: of ``SMALL`` and, of other images, of ``FEW``."""
    with zipfile.ZipFile(photos) as source:
        classes: dict[str, list[str]] = defaultdict(list)
        for name in sorted(source.namelist()):
            if name.lower().endswith((".jpg", ".jpeg", ".png")):
                classes[name.split("/")[-2]].append(name)
        large, small = sum(SMALL), sum(FEW)
        return (
            _pack(source, {label: names[:large] for label, names in classes.items()}, SMALL[0]),
            _pack(
                source,
                {label: names[large : large + small] for label, names in classes.items()},
                FEW[0],
            ),
        )


def _pack(source: zipfile.ZipFile, classes: dict[str, list[str]], training: int) -> bytes:
    """A zip of the images, the first ``training`` of each class for training, the rest to judge."""
    content, labels = io.BytesIO(), io.StringIO()
    lines = csv.writer(labels)
    lines.writerow(["filename", "label", "split"])
    with zipfile.ZipFile(content, "w") as archive:
        for label, names in classes.items():
            for number, name in enumerate(names):
                short = f"{label}-{number:04}.jpg"
                archive.writestr(short, source.read(name))
                lines.writerow([short, label, "train" if number < training else "test"])
        archive.writestr("labels.csv", labels.getvalue())
    return content.getvalue()


def freeze(service: Service, db: Database, tenant_id: str, name: str, archive: bytes) -> None:
    """Upload an archive and freeze it."""
    job = service.wait_for_end(tenant_id, service.ingest(tenant_id, archive).id, seconds=300)
    assert job.state == JobState.SUCCEEDED, job.error
    with db.tenant(tenant_id) as session:
        version = freeze_dataset(session, tenant_id, name=name, upload_id=job.input["upload"])
        say(f"{name}: {version.counts}")


def import_weights(service: Service, db: Database, tenant_id: str, weights: Path) -> None:
    """Register ImageNet's weights as the model that trainings start from."""
    upload = service.send(tenant_id, weights.read_bytes(), UploadKind.WEIGHTS)
    with db.tenant(tenant_id) as session:
        submitted = submit_import(
            session, tenant_id, model="imagenet", arch=ARCH, weights=upload, classes="imagenet"
        )
    job = service.wait_for_end(tenant_id, submitted.id, seconds=120)
    assert job.state == JobState.SUCCEEDED, job.error


def learn(service: Service, tenant_id: str, name: str) -> float:
    """The accuracy of one training as the job's result tells it."""
    fields = dict(RECIPES[name])
    if name in ("probe", "tuned"):
        fields["start"] = "imagenet"
    began = time.perf_counter()
    with service.db.tenant(tenant_id) as session:
        submitted = submit_finetune(
            session,
            tenant_id,
            dataset="small" if name == "resnet20" else "few",
            model=name,
            recipe=TrainingRecipe.from_dict(fields),
        )
    job = service.wait_for_end(tenant_id, submitted.id, seconds=1800)
    assert job.state == JobState.SUCCEEDED, job.error
    result = job.result or {}
    seconds = time.perf_counter() - began
    late = "" if seconds < MOST_SECONDS else f"; over {MOST_SECONDS:.0f} s"
    say(f"{name}: accuracy {result['accuracy']:.4f} after {seconds:.0f} s of all{late}; {result}")
    return float(result["accuracy"])


if __name__ == "__main__":
    main()
