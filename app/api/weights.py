"""Weights on their way out: the plain file, and what is needed to use it elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from flask import Response, request
from werkzeug.http import dump_options_header

from app.api.audit import note_denial, record_apart, record_for_owner
from app.api.parts import parts, principal
from app.api.places import Places, take_download
from app.api.replies import send
from app.api.resource import Resource
from app.api.schemas.grants import ExportQuery, SpecAnswer, WeightsFile
from app.api.schemas.library import VersionPath
from app.audit.actions import Action
from app.errors import NotFoundError, ObjectMissingError
from app.models.resolve import get_version, spec_of
from app.models.rights import Right
from app.models.shared import find_shared, not_granted
from app.models.spec import ModelSpec
from app.models.weights import StoredWeights, read_weights, stored_weights
from app.tenants.names import name_of_tenant
from app.tenants.scopes import Scope

resource = Resource("weights", "Weights", "Models, to be used elsewhere.")


@dataclass(frozen=True, slots=True)
class _Exported:
    """A version that may be taken away."""

    #: ``pets``, or ``owner/pets`` of another tenant.
    model: str
    number: int
    spec: ModelSpec
    weights: StoredWeights
    #: Whose it is, where it is another tenant's, and who takes it away then.
    owner_id: str | None = None
    taken_by: str | None = None

    @property
    def filename(self) -> str:
        return f"{self.model.rpartition('/')[2]}-{self.number}.safetensors"


@resource.route_as(
    "get",
    "/models/<name>/versions/<number>/weights",
    answers={200: "application/octet-stream", 304: None},
    scope=Scope.EXPORTS,
    problems=[409],
    headers={200: ("ETag", "Content-Disposition"), 304: ("ETag",)},
    takes=["IfNoneMatch"],
    audit=Action.WEIGHTS_EXPORTED,
)
def export_weights(path: VersionPath, query: ExportQuery) -> Response:
    """Download the weights of a version, as a safetensors file.

    Its ETag is the SHA-256 of the file: check it, since weights that turn out damaged break the
    download off. Of another tenant's model, whose name `owner` is, it takes the right `export`;
    without it the answer is 403 `export_not_granted`, and 404 where nothing is granted.
    """
    found = _find(path, query.owner)
    weights = found.weights
    headers = {
        "ETag": f'"{weights.sha256}"',
        "Cache-Control": "private, no-cache",
        "Content-Disposition": dump_options_header("attachment", {"filename": found.filename}),
        "Content-Length": str(weights.size_bytes),
    }
    if request.if_none_match.contains_weak(weights.sha256):
        return Response(status=304, headers={"ETag": headers["ETag"]})
    pieces: _Pieces | None = None
    if request.method != "HEAD":
        pieces = _Pieces(weights)
        _note_export(found, pieces)
    return Response(pieces, 200, headers, content_type="application/octet-stream")


@resource.route_as(
    "get",
    "/models/<name>/versions/<number>/spec",
    answers={200: SpecAnswer},
    scope=Scope.EXPORTS,
    problems=[409],
)
def get_spec(path: VersionPath, query: ExportQuery) -> Response:
    """Read what it takes to use a version's weights elsewhere: architecture, input, classes.

    It takes the same rights as the weights.
    """
    found = _find(path, query.owner)
    return send(
        SpecAnswer(
            model=found.model,
            number=found.number,
            **found.spec.as_dict(),
            weights=WeightsFile(
                filename=found.filename,
                size_bytes=found.weights.size_bytes,
                sha256=found.weights.sha256,
            ),
        )
    )


def _find(path: VersionPath, owner: str | None) -> _Exported:
    """The version, as it may be taken away now."""
    tenant_id = principal().tenant_id
    name = path.name if owner is None else f"{owner}/{path.name}"
    with note_denial(model=name), parts().db.tenant(tenant_id) as session:
        if owner is None:
            version = get_version(session, tenant_id, f"{path.name}@{path.number}")
            # Before the spec, which a version that is not ready has none of either.
            weights = stored_weights(version)
            return _Exported(name, path.number, spec_of(version), weights)
        shared = find_shared(session, f"{name}@{path.number}")
        if not shared.may(Right.EXPORT):
            raise not_granted(shared, Right.EXPORT)
        taken_by = name_of_tenant(session, tenant_id)
    return _Exported(name, path.number, shared.spec, shared.weights, shared.owner_id, taken_by)


class _Pieces:
    """The weights in pieces, the first of them read already: what is wrong shows before 200."""

    def __init__(self, weights: StoredWeights) -> None:
        here = parts()
        take_download(here.download_places)
        self._places: Places | None = here.download_places
        self._pieces = read_weights(
            here.store,
            here.settings.bucket,
            here.keyring(),
            weights,
            sealed_only=here.settings.sealed_only,
        )
        try:
            self._first = next(self._pieces, b"")
        except BaseException as error:
            self.close()
            if not isinstance(error, ObjectMissingError):
                raise
            raise NotFoundError(
                "the weights of this version are not there any more", code="weights_gone"
            ) from None

    def __iter__(self) -> Iterator[bytes]:
        with closing(self):
            yield self._first
            yield from self._pieces

    def close(self) -> None:
        """Give place and connection to the store back, wherever the download stood."""
        self._pieces.close()
        if self._places is not None:
            self._places.give_back()
            self._places = None


def _note_export(found: _Exported, pieces: _Pieces) -> None:
    """Audit the export before its first byte leaves, for the model's owner as well."""
    target = found.weights.version_id
    details: dict[str, Any] = {
        "number": found.number,
        "size_bytes": found.weights.size_bytes,
        "sha256": found.weights.sha256,
    }
    try:
        record_apart(target=target, model=found.model, **details)
        if found.owner_id is not None:
            details |= {"model": found.model.rpartition("/")[2], "tenant": found.taken_by}
            record_for_owner(found.owner_id, target=target, **details)
    except BaseException:
        pieces.close()
        raise
