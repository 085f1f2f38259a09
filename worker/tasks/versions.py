"""Weights on their way: from the store to a recogniser in memory, and from a job to the store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.errors import ConflictError, InvalidInputError, StorageError
from app.jobs.claim import Lease
from app.jobs.record import record_chunk
from app.log import get_logger
from app.models.promote import move_alias
from app.models.register import complete_version
from app.models.resolve import get_version, spec_of
from app.models.spec import ModelSpec
from app.models.states import VersionState
from app.storage import keys
from app.storage.s3 import ObjectStore
from worker.process import WorkerProcess

if TYPE_CHECKING:
    from worker.recognisers.load import Recogniser

log = get_logger(__name__)

_COPY_BYTES = 4 * 1024 * 1024


def warm_recogniser(process: WorkerProcess, tenant_id: str, version_id: str) -> Recogniser:
    """The version's recogniser, loaded at most once per process while it stays warm.

    Raises:
        ConflictError: the version has no weights to serve with.
        InvalidInputError: the weights do not fit the architecture.
        StorageError: they could not be fetched, or are not those that were registered; trying
            again may help.
    """

    def load() -> Recogniser:
        from worker.recognisers.load import load_recogniser

        spec, key, sha256 = _look_up(process, tenant_id, version_id)
        path = fetch_file(
            process.store,
            process.settings.bucket,
            key,
            sha256=sha256,
            folder=process.settings.cache_dir.expanduser() / "weights",
            # Whoever wants the same version waits for this load.
            on_part=process.heartbeat.move_all,
        )
        try:
            return load_recogniser(spec, path, process.device, sha256=sha256)
        except InvalidInputError as error:
            if error.code == "weights_changed":
                # What was fetched had the digest, so it is our copy that a disk has changed.
                # Were it kept, every job of this version would fail here.
                path.unlink(missing_ok=True)
                raise StorageError(f"the local copy of {key} is damaged") from error
            raise

    return process.recognisers.get(version_id, load)


def fetch_file(
    store: ObjectStore,
    bucket: str,
    key: str,
    *,
    sha256: str,
    folder: Path,
    on_part: Callable[[], None] = lambda: None,
) -> Path:
    """A local copy of an object under the name of its digest; fetched where it is not there.

    ``on_part`` hears of every part that came.

    Raises:
        StorageError: the object is not the one with this digest.
    """
    path = folder / f"{sha256}.safetensors"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=folder, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, store.open(bucket, key) as stream:
            while data := stream.read(_COPY_BYTES):
                digest.update(data)
                file.write(data)
                on_part()
        if digest.hexdigest() != sha256:
            raise StorageError(f"{key} arrived with the digest {digest.hexdigest()}, not {sha256}")
        # Renamed whole: another process never sees a part of the file.
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
    return path


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Where a file lies now, and what it is."""

    key: str
    sha256: str
    size_bytes: int


def store_weights(process: WorkerProcess, lease: Lease, path: Path) -> StoredFile:
    """Put a weights file in its place in the object store.

    The attempt is part of the key: a worker that lost its lease and does not know it yet
    must not overwrite what the next attempt has registered.

    Raises:
        StorageError: it could not be written; trying again may help.
    """
    name = f"{lease.model_version_id}.{lease.attempt}"
    return store_file(process, keys.weights(lease.tenant_id, name), path)


def store_file(process: WorkerProcess, key: str, path: Path) -> StoredFile:
    """Put a file in the object store, whole or not at all.

    Raises:
        StorageError: it could not be written; trying again may help.
    """
    with path.open("rb") as file, process.store.writer(process.settings.bucket, key) as writer:
        while data := file.read(_COPY_BYTES):
            writer.write(data)
    return StoredFile(key, writer.sha256, writer.size)


def register_version(
    process: WorkerProcess,
    lease: Lease,
    spec: ModelSpec,
    stored: StoredFile,
    *,
    parameter_count: int,
    result: Mapping[str, Any],
    scores: Mapping[str, Any] | None = None,
    lineage: Mapping[str, Any] | None = None,
) -> None:
    """Make the version, its alias and the end of its job true in one transaction.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    version_id, options = str(lease.model_version_id), lease.options
    with process.db.tenant(lease.tenant_id) as session:
        # The fence first: an attempt that lost its lease registers nothing.
        record_chunk(session, lease, result=dict(result))
        complete_version(
            session,
            lease.tenant_id,
            version_id,
            spec=spec,
            weights_key=stored.key,
            weights_sha256=stored.sha256,
            weights_bytes=stored.size_bytes,
            parameter_count=parameter_count,
            scores=scores,
            lineage=lineage,
        )
        if options["alias"]:
            move_alias(session, lease.tenant_id, options["model"], options["alias"], version_id)
    log.info("version_registered", version=version_id)


def fetch_object(
    process: WorkerProcess, key: str, path: Path, *, on_part: Callable[[], None] = lambda: None
) -> None:
    """Copy an object to a local file; ``on_part`` hears of every part that came.

    Raises:
        ObjectMissingError: it is not there.
        StorageError: it could not be read; trying again may help.
    """
    with process.store.open(process.settings.bucket, key) as stream, path.open("wb") as file:
        while data := stream.read(_COPY_BYTES):
            file.write(data)
            on_part()


def _look_up(process: WorkerProcess, tenant_id: str, version_id: str) -> tuple[ModelSpec, str, str]:
    with process.db.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, version_id)
        if version.state not in (VersionState.READY, VersionState.ARCHIVED):
            raise ConflictError(
                f"model version {version_id} is {version.state}", code="model_not_ready"
            )
        assert version.weights_key is not None
        assert version.weights_sha256 is not None
        return spec_of(version), version.weights_key, version.weights_sha256
