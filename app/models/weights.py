"""The weights of a version at rest: what opens them, and their bytes in clear as a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.errors import ConflictError, NotFoundError
from app.keyring import Keyring
from app.models.states import VersionState
from app.models.tables import ModelVersion
from app.sealing.bundle import Readable, SealedDamagedError, Subject, new_data_key, unseal
from app.sealing.columns import SealedColumn
from app.storage.s3 import ObjectStore

_PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """Where the weights of a version lie and what opens them; safe to keep after its session."""

    tenant_id: str
    version_id: str
    object_key: str
    size_bytes: int
    #: SHA-256 of the weights in clear.
    sha256: str
    #: The wrapped data key, and the digest of the object; None where the weights lie in clear.
    sealed_key: str | None
    sealed_sha256: str | None

    @property
    def is_sealed(self) -> bool:
        """Whether the object is a sealed bundle; versions of earlier releases lie in clear."""
        return self.sealed_sha256 is not None

    def check(self, *, sealed_only: bool) -> None:
        """Let no weights in clear pass where ``sealed_only``.

        A digest that stands beside them proves nothing against whoever can write the row; what
        is sealed nobody makes without a sealing key.

        Raises:
            ConflictError: ``weights_not_sealed``.
        """
        if sealed_only and not self.is_sealed:
            raise ConflictError(
                f"the weights of model version {self.version_id} lie in clear, and "
                "DARKROOM_SEALED_ONLY lets only sealed ones be used; import them anew",
                code="weights_not_sealed",
            )

    @property
    def subject(self) -> Subject:
        """What the bundle must be of."""
        return Subject(self.tenant_id, self.version_id, self.sha256)

    def open_key(self, keyring: Keyring) -> bytes:
        """The data key of sealed weights.

        Raises:
            SealError: ``sealing_key_missing`` or ``seal_broken``.
        """
        assert self.sealed_key is not None
        return keyring.open(self.sealed_key, about_key(self.tenant_id, self.version_id))


def stored_weights(version: ModelVersion) -> StoredWeights:
    """Where the version's weights lie.

    Raises:
        ConflictError: ``model_not_ready``: it has none to serve with.
    """
    if version.state not in (VersionState.READY, VersionState.ARCHIVED):
        raise ConflictError(
            f"model version {version.id} is {version.state}", code="model_not_ready"
        )
    assert version.weights_key is not None
    assert version.weights_sha256 is not None
    return StoredWeights(
        version.tenant_id,
        version.id,
        version.weights_key,
        version.weights_bytes or 0,
        version.weights_sha256,
        version.sealed_key,
        version.sealed_sha256,
    )


def read_weights(
    store: ObjectStore,
    bucket: str,
    keyring: Keyring,
    weights: StoredWeights,
    *,
    sealed_only: bool,
) -> Generator[bytes]:
    """The weights in clear, straight from the object store, as a safetensors file in pieces.

    For whoever hands weights out (an export); what may be handed out is theirs to decide
    before. Each piece of sealed weights is authenticated, but that the bundle was cut shows
    only at its end: what is made of the pieces must be discarded where this raises. Holds two
    frames, whatever the size, and no connection of the database.

    Raises:
        ConflictError: ``weights_not_sealed``; see :meth:`StoredWeights.check`.
        SealError: ``sealing_key_missing`` or ``seal_broken``: their data key does not open.
        SealedDamagedError: the object is not these weights, whole and unchanged.
        ObjectMissingError: it is not there.
        StorageError: the store does not answer; trying again may help.
    """
    weights.check(sealed_only=sealed_only)
    data_key = weights.open_key(keyring) if weights.is_sealed else None
    with store.open(bucket, weights.object_key) as stream:
        if data_key is not None:
            yield from unseal(stream, data_key, weights.subject)
        else:
            yield from _plain(stream, weights.sha256)


def _plain(stream: Readable, sha256: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    while piece := stream.read(_PIECE_BYTES):
        digest.update(piece)
        yield piece
    if digest.hexdigest() != sha256:
        raise SealedDamagedError(
            f"the weights have the digest {digest.hexdigest()}, not {sha256}",
            code="weights_changed",
        )


def version_data_key(
    session: Session, keyring: Keyring, tenant_id: str, version_id: str
) -> tuple[bytes, str]:
    """The data key of a version, made at the first call, and the token that wraps it.

    Raises:
        NotFoundError: ``model_not_found``.
        SealError: the key that wraps it is not here, or it was altered.
    """
    about = about_key(tenant_id, version_id)
    mine = (ModelVersion.tenant_id == tenant_id, ModelVersion.id == version_id)
    token = session.scalar(select(ModelVersion.sealed_key).where(*mine))
    if token is None:
        fresh = keyring.seal(new_data_key(), about)
        # Of two that come here at once both get the first one's key.
        token = session.scalar(
            update(ModelVersion)
            .where(*mine)
            .values(sealed_key=func.coalesce(ModelVersion.sealed_key, fresh))
            .returning(ModelVersion.sealed_key)
            .execution_options(synchronize_session=False)
        )
    if token is None:
        raise NotFoundError(f"there is no model version {version_id!r}", code="model_not_found")
    return keyring.open(token, about), token


def about_key(tenant_id: str, version_id: str) -> str:
    """What a wrapped data key is bound to: in the row of another version it does not open."""
    return f"model_version:{tenant_id}:{version_id}"


def _about_row(row: Any) -> str:
    return about_key(row.tenant_id, row.id)


#: The wrapped data keys of all versions, for status and rotation.
VERSION_KEYS = SealedColumn(
    name="model versions",
    column=ModelVersion.sealed_key,
    id_column=ModelVersion.id,
    tenant_column=ModelVersion.tenant_id,
    about=_about_row,
    in_clear=(
        ModelVersion.state.in_([VersionState.READY, VersionState.ARCHIVED])
        & ModelVersion.sealed_sha256.is_(None)
    ),
)
