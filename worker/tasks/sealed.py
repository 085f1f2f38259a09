"""Files of a model version on their way into sealed bundles in the object store, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BufferedRandom

from app.jobs.claim import Lease
from app.models.weights import version_data_key
from app.sealing.bundle import Readable, Subject, seal, unseal
from worker.process import WorkerProcess


@dataclass(frozen=True, slots=True)
class SealedFile:
    """Where a sealed file lies now, and what it is."""

    key: str
    #: SHA-256 and bytes of the file in clear.
    sha256: str
    size_bytes: int
    #: SHA-256 of the object.
    sealed_sha256: str


def store_sealed(
    process: WorkerProcess,
    lease: Lease,
    key: str,
    file: BufferedRandom,
    *,
    kind: str = "weights",
    on_part: Callable[[], None] = lambda: None,
) -> SealedFile:
    """Seal a file of the lease's model version into the object store, whole or not at all.

    ``on_part`` hears of every piece that went.

    Raises:
        SealError: the version's data key does not open.
        UnavailableError: database or object store do not answer; trying again may help.
    """
    version_id = str(lease.model_version_id)
    with process.db.tenant(lease.tenant_id) as session:
        data_key, _ = version_data_key(session, process.keyring, lease.tenant_id, version_id)
    file.seek(0)
    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size_bytes = file.seek(0, 2)
    file.seek(0)
    subject = Subject(lease.tenant_id, version_id, sha256, kind)
    with process.store.writer(process.settings.bucket, key) as writer:
        for piece in seal(file, data_key, subject):
            writer.write(piece)
            on_part()
    return SealedFile(key, sha256, size_bytes, writer.sha256)


def unseal_into(
    file: BufferedRandom,
    bundle: Readable,
    data_key: bytes,
    subject: Subject,
    *,
    on_part: Callable[[], None] = lambda: None,
) -> None:
    """Open a bundle into an empty file, of which nothing may be used where this raises.

    Raises:
        SealedDamagedError: the bundle is not whole, not unchanged, or not of this subject.
    """
    file.seek(0)
    file.truncate()
    for piece in unseal(bundle, data_key, subject):
        file.write(piece)
        on_part()
