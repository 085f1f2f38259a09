"""Weights on their way: from the store to a recogniser in memory, and from a job to the store."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BufferedRandom
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from app.datasets.tables import Split
from app.errors import InvalidInputError, StorageError
from app.jobs.claim import Lease
from app.jobs.conclude import settle_job_alias
from app.jobs.record import record_chunk
from app.log import get_logger
from app.models.evaluations import record_evaluation
from app.models.register import complete_version
from app.models.resolve import get_version, spec_of
from app.models.shared import SharedVersion
from app.models.spec import ModelSpec
from app.models.weights import StoredWeights, stored_weights
from app.sealing.bundle import SealedDamagedError
from app.storage import keys
from worker.heartbeat import HeldLease
from worker.process import WorkerProcess
from worker.tasks.files import memory_file, path_of
from worker.tasks.sealed import SealedFile, store_sealed, unseal_into

if TYPE_CHECKING:
    from worker.recognisers.load import Recogniser

log = get_logger(__name__)

_COPY_BYTES = 4 * 1024 * 1024


def warm_recogniser(
    process: WorkerProcess, tenant_id: str, version_id: str, shared: SharedVersion | None = None
) -> Recogniser:
    """The version's recogniser, loaded at most once per process while it stays warm.

    ``shared`` is the version where it is another tenant's, as it is granted now.

    Raises:
        ConflictError: the version has no weights to serve with, or they lie in clear where only
            sealed ones may be used.
        InvalidInputError: the weights do not fit the architecture.
        SealedDamagedError: they lie sealed, and not as they were sealed.
        SealError: they lie sealed under a key that is not here.
        StorageError: they could not be fetched, or are not those that were registered; trying
            again may help.
    """

    def load() -> Recogniser:
        if shared is not None:
            spec, weights = shared.spec, shared.weights
        else:
            spec, weights = _look_up(process, tenant_id, version_id)
        weights.check(sealed_only=process.settings.sealed_only)
        how = _load_sealed if weights.is_sealed else _load_plain
        return how(process, spec, weights)

    return process.recognisers.get(version_id, load)


def _load_sealed(process: WorkerProcess, spec: ModelSpec, weights: StoredWeights) -> Recogniser:
    """Sealed weights: a bundle on this disk as in the store, opened in memory only."""
    from worker.recognisers.load import load_recogniser

    data_key = weights.open_key(process.keyring)
    with memory_file() as file:
        _open_bundle(process, weights, data_key, file)
        # Opening compared the digest.
        return load_recogniser(spec, path_of(file), process.device)


def _open_bundle(
    process: WorkerProcess, weights: StoredWeights, data_key: bytes, file: BufferedRandom
) -> None:
    assert weights.sealed_sha256 is not None
    path = _cached(process, weights.sealed_sha256, "sealed")
    if path.exists():
        try:
            _unseal_file(process, path, weights, data_key, file)
            return
        except SealedDamagedError as error:
            # It had the digest when it came, so a disk has changed our copy since.
            log.warning("local_weights_damaged", version=weights.version_id, detail=error.detail)
            path.unlink(missing_ok=True)
    try:
        _fetch(process, weights.object_key, weights.sealed_sha256, path)
    except ObjectChangedError as error:
        raise SealedDamagedError(
            f"the sealed weights of {weights.version_id} are not those that were stored: "
            "they were changed, cut, or exchanged in the object store"
        ) from error
    _unseal_file(process, path, weights, data_key, file)


def _unseal_file(
    process: WorkerProcess,
    path: Path,
    weights: StoredWeights,
    data_key: bytes,
    file: BufferedRandom,
) -> None:
    with path.open("rb") as bundle:
        unseal_into(file, bundle, data_key, weights.subject, on_part=process.heartbeat.move_all)


def _load_plain(process: WorkerProcess, spec: ModelSpec, weights: StoredWeights) -> Recogniser:
    """Weights of the time before they were sealed."""
    from worker.recognisers.load import load_recogniser

    path = _cached(process, weights.sha256, "safetensors")
    if not path.exists():
        _fetch(process, weights.object_key, weights.sha256, path)
    try:
        return load_recogniser(spec, path, process.device, sha256=weights.sha256)
    except InvalidInputError as error:
        if error.code == "weights_changed":
            # What was fetched had the digest, so it is our copy that a disk has changed.
            # Were it kept, every job of this version would fail here.
            path.unlink(missing_ok=True)
            raise StorageError(f"the local copy of {weights.object_key} is damaged") from error
        raise


def open_version(
    process: WorkerProcess, tenant_id: str, version_id: str, file: BufferedRandom
) -> None:
    """Write the weights of one of the tenant's versions in clear to an empty file in memory.

    Raises:
        DarkroomError: as :func:`warm_recogniser`.
    """
    _, weights = _look_up(process, tenant_id, version_id)
    weights.check(sealed_only=process.settings.sealed_only)
    if weights.is_sealed:
        _open_bundle(process, weights, weights.open_key(process.keyring), file)
        return
    fetch_object(process, weights.object_key, file, on_part=process.heartbeat.move_all)
    file.seek(0)
    if hashlib.file_digest(file, "sha256").hexdigest() != weights.sha256:
        raise ObjectChangedError(f"{weights.object_key} is not what was registered")


class ObjectChangedError(StorageError):
    """An object arrived that has not the digest that was registered."""


def _cached(process: WorkerProcess, sha256: str, ending: str) -> Path:
    """Where a local copy lies, under the digest of the object."""
    return process.settings.cache_dir.expanduser() / "weights" / f"{sha256}.{ending}"


def _fetch(process: WorkerProcess, key: str, sha256: str, path: Path) -> None:
    """Copy an object to a local path, whole or not at all.

    Raises:
        ObjectChangedError: the object is not the one with this digest.
        StorageError: it could not be read; trying again may help.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            process.store.open(process.settings.bucket, key) as stream,
        ):
            while data := stream.read(_COPY_BYTES):
                digest.update(data)
                file.write(data)
                # Whoever wants the same version waits for this load.
                process.heartbeat.move_all()
        if digest.hexdigest() != sha256:
            raise ObjectChangedError(
                f"{key} arrived with the digest {digest.hexdigest()}, not {sha256}"
            )
        # Renamed whole: another process never sees a part of the file.
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def store_weights(process: WorkerProcess, held: HeldLease, file: BufferedRandom) -> SealedFile:
    """Seal a weights file into its place in the object store.

    The attempt is part of the key: a worker that lost its lease and does not know it yet
    must not overwrite what the next attempt has registered.

    Raises:
        SealError: the version's data key does not open.
        UnavailableError: it could not be written; trying again may help.
    """
    lease = held.lease
    name = f"{lease.attempt}" if lease.trial is None else f"{lease.trial}.{lease.attempt}"
    key = keys.weights(lease.tenant_id, f"{lease.model_version_id}.{name}")
    return store_sealed(process, lease, key, file, on_part=held.move)


@dataclass(frozen=True, slots=True)
class Tested:
    """On what a version was evaluated by the job that made it."""

    dataset_version_id: str
    split: Split
    #: Images that were answered.
    items: int


def register_version(
    process: WorkerProcess,
    lease: Lease,
    spec: ModelSpec,
    stored: SealedFile,
    *,
    parameter_count: int,
    macs: int,
    result: Mapping[str, Any],
    scores: Mapping[str, Any] | None = None,
    tested: Tested | None = None,
    lineage: Mapping[str, Any] | None = None,
    also: Callable[[Session], None] = lambda _: None,
) -> None:
    """Make the version, its alias and the end of its job true in one transaction, with ``also``.

    ``scores`` are those of ``tested``. Where a gate keeps the alias, the job's result says why
    under ``promotion``; the version is ready all the same.

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
            sealed_sha256=stored.sealed_sha256,
            parameter_count=parameter_count,
            macs=macs,
            scores=scores,
            lineage=lineage,
        )
        if tested is not None:
            record_evaluation(
                session,
                lease.tenant_id,
                version_id=version_id,
                dataset_version_id=tested.dataset_version_id,
                split=tested.split,
                job_id=lease.job_id,
                items=tested.items,
                scores=scores or {},
            )
        if options["alias"]:
            settle_job_alias(
                session,
                lease.tenant_id,
                lease.job_id,
                model=options["model"],
                alias=options["alias"],
                version_id=version_id,
            )
        also(session)
    log.info("version_registered", version=version_id)


def fetch_object(
    process: WorkerProcess,
    key: str,
    file: BufferedRandom,
    *,
    on_part: Callable[[], None] = lambda: None,
) -> None:
    """Copy an object to a file; ``on_part`` hears of every part that came.

    Raises:
        ObjectMissingError: it is not there.
        StorageError: it could not be read; trying again may help.
    """
    with process.store.open(process.settings.bucket, key) as stream:
        while data := stream.read(_COPY_BYTES):
            file.write(data)
            on_part()


def _look_up(
    process: WorkerProcess, tenant_id: str, version_id: str
) -> tuple[ModelSpec, StoredWeights]:
    with process.db.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, version_id)
        return spec_of(version), stored_weights(version)
