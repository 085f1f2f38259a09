"""Check weights against their architecture and register them as a model version."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db.hold import deletions_held
from app.errors import InvalidInputError, UnavailableError
from app.jobs.claim import Lease
from app.jobs.imported import settle_weights
from app.jobs.submit import upload_imported
from app.log import get_logger
from app.models.spec import ModelSpec, PreprocessSpec
from app.storage.ranged import open_ranged
from app.uploads.tables import Upload, UploadState
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.recognisers.cost import count_macs
from worker.recognisers.header import check_header_of
from worker.recognisers.registry import default_preprocess, imagenet_classes
from worker.recognisers.weights import check_weights, save_weights
from worker.tasks.files import path_of, unnamed_file
from worker.tasks.versions import fetch_object, register_version, store_weights

log = get_logger(__name__)

_TORCHVISION = "torchvision:"
#: Between two looks at how far a download is.
_GROWTH_SECONDS = 5.0


def import_chunk(process: WorkerProcess, held: HeldLease) -> None:
    """Bring the weights here, compare them with the architecture, seal and register them.

    Then the file goes that the client sent: until now it lay in clear.
    """
    lease = held.lease
    version_id = str(lease.model_version_id)
    spec = _spec(lease)
    unneeded: list[str | None] = []
    with unnamed_file() as file:
        _bring(process, held, file)
        report = check_weights(path_of(file), spec)
        held.move()
        stored = store_weights(process, held, file)
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
        macs=count_macs(spec),
        result=result,
        lineage={"weights_sha256": stored.sha256},
        also=lambda session: unneeded.append(_settle(session, lease)),
    )
    _delete(process, [key for key in unneeded if key is not None])


def _settle(session: Session, lease: Lease) -> str | None:
    weights: str = lease.input["weights"]
    if weights.startswith(_TORCHVISION):
        return None
    return settle_weights(session, lease.tenant_id, weights, lease.job_id)


def _delete(process: WorkerProcess, object_keys: list[str]) -> None:
    if not object_keys:
        return
    try:
        if deletions_held(process.db):
            # A backup's snapshot may still see this job open; the clean-up comes back for it.
            log.info("weights_left", keys=object_keys)
            return
        process.store.delete(process.settings.bucket, object_keys)
    except UnavailableError as error:
        # The job has ended well, and the clean-up deletes what is left.
        log.warning("weights_not_deleted", keys=object_keys, detail=error.detail)


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


def _bring(process: WorkerProcess, held: HeldLease, file: BufferedRandom) -> None:
    lease = held.lease
    weights: str = lease.input["weights"]
    if weights.startswith(_TORCHVISION):
        from worker.recognisers.zoo import fetch_torchvision_weights, hub_folder

        with _moving_while_growing(held, hub_folder()):
            state = fetch_torchvision_weights(
                lease.options["arch"], weights.removeprefix(_TORCHVISION)
            )
        save_weights(state, path_of(file))
        return
    with process.db.tenant(lease.tenant_id) as session:
        upload = session.execute(
            select(Upload.object_key, Upload.state).where(
                Upload.id == weights, Upload.tenant_id == lease.tenant_id
            )
        ).first()
    if upload is None:
        raise InvalidInputError(f"the upload {weights} is gone", code="upload_not_found")
    if upload.state == UploadState.IMPORTED:
        raise upload_imported(weights)
    bucket = process.settings.bucket
    # The header first, before gigabytes come here that are no weights.
    with open_ranged(process.store, bucket, upload.object_key, on_block=held.move) as remote:
        check_header_of(remote)
    fetch_object(process, upload.object_key, file, on_part=held.move)
