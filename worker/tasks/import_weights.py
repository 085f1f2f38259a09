"""Check weights against their architecture and register them as a model version."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.errors import InvalidInputError
from app.jobs.claim import Lease
from app.models.spec import ModelSpec, PreprocessSpec
from app.uploads.tables import Upload
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.recognisers.registry import default_preprocess, imagenet_classes
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.versions import fetch_object, register_version, store_weights

_TORCHVISION = "torchvision:"
#: Between two looks at how far a download is.
_GROWTH_SECONDS = 5.0


def import_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Bring the weights here, compare them with the architecture, store and register them."""
    lease = held.lease
    version_id = str(lease.model_version_id)
    spec = _spec(lease)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        _bring(process, held, path)
        report = check_weights(path, spec)
        held.move()
        stored = store_weights(process, lease, path)
    result = {
        "model_version": version_id,
        "parameters": report.parameters,
        "dtypes": list(report.dtypes),
        "sha256": stored.sha256,
    }
    register_version(
        process,
        lease,
        spec,
        stored,
        parameter_count=report.parameters,
        result=result,
        lineage={"weights_sha256": stored.sha256},
    )


@contextmanager
def _moving_while_growing(held: HeldLease, folder: Path) -> Iterator[None]:
    """Report a download by torchvision's loader, which says nothing itself, by what it wrote."""
    done = threading.Event()

    def watch() -> None:
        size = -1
        while not done.wait(_GROWTH_SECONDS):
            now = sum(file.stat().st_size for file in folder.glob("*.partial"))
            if now != size:
                held.move()
            size = now

    thread = threading.Thread(target=watch, name="download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _spec(lease: Lease) -> ModelSpec:
    """The version's spec: what the client named, the architecture's own where it did not."""
    options: dict[str, Any] = lease.options
    arch: str = options["arch"]
    weights: str = lease.input["weights"]
    base: ModelSpec | None = None
    if weights.startswith(_TORCHVISION):
        from worker.recognisers.zoo import torchvision_spec

        base = torchvision_spec(arch, weights.removeprefix(_TORCHVISION))
    classes = options["classes"]
    try:
        return ModelSpec(
            arch=arch,
            classes=imagenet_classes() if classes == "imagenet" else tuple(classes),
            preprocess=_preprocess(options["preprocess"], base, arch),
            arch_options=base.arch_options if base is not None else {},
        )
    except ValueError as error:
        raise InvalidInputError(str(error), code="spec_invalid") from None


def _preprocess(named: dict[str, Any] | None, base: ModelSpec | None, arch: str) -> PreprocessSpec:
    if named is not None:
        return PreprocessSpec.from_dict(named)
    return base.preprocess if base is not None else default_preprocess(arch)


def _bring(process: WorkerProcess, held: HeldLease, path: Path) -> None:
    lease = held.lease
    weights: str = lease.input["weights"]
    if weights.startswith(_TORCHVISION):
        from worker.recognisers.zoo import fetch_torchvision_weights, hub_folder

        with _moving_while_growing(held, hub_folder()):
            state = fetch_torchvision_weights(
                lease.options["arch"], weights.removeprefix(_TORCHVISION)
            )
        save_weights(state, path)
        return
    with process.db.tenant(lease.tenant_id) as session:
        key = session.scalar(
            select(Upload.object_key).where(
                Upload.id == weights, Upload.tenant_id == lease.tenant_id
            )
        )
    if key is None:
        raise InvalidInputError(f"the upload {weights} is gone", code="upload_not_found")
    fetch_object(process, key, path, on_part=held.move)
