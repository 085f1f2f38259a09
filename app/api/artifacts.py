"""Artifacts: what jobs made, as files to download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from flask import Response, request
from werkzeug.http import dump_options_header

from app.api.audit import record_apart, skip_note
from app.api.parts import parts, principal
from app.api.problems import problem
from app.api.ranges import RangeNotSatisfiableError, wanted_range
from app.api.replies import send
from app.api.resource import Resource
from app.api.schemas.service import ArtifactAnswer, ArtifactPath, LinkAnswer
from app.api.views import show_artifact
from app.audit.actions import Action
from app.clock import utc_now
from app.errors import NotFoundError, ObjectMissingError
from app.jobs.artifacts import get_artifact as find_artifact
from app.jobs.tables import Artifact
from app.storage.streams import ObjectStream
from app.tenants.scopes import Scope

resource = Resource("artifacts", "Artifacts", "Files that jobs made.")

_PIECE_BYTES = 256 * 1024
_CONTENT_HEADERS = ("ETag", "Accept-Ranges", "Content-Disposition")


@resource.route_as(
    "get", "/artifacts/<artifact_id>", answers={200: ArtifactAnswer}, scope=Scope.JOBS_READ
)
def get_artifact(path: ArtifactPath) -> Response:
    """Read an artifact's name, size and digest."""
    return send(show_artifact(_find(path.artifact_id)))


@resource.route_as(
    "get",
    "/artifacts/<artifact_id>/content",
    answers={200: "*/*", 206: "*/*", 304: None},
    scope=Scope.EXPORTS,
    problems=[416],
    headers={
        200: _CONTENT_HEADERS,
        206: (*_CONTENT_HEADERS, "Content-Range"),
        304: ("ETag",),
    },
    takes=["Range", "IfRange", "IfNoneMatch"],
    audit=Action.ARTIFACT_DOWNLOADED,
)
def download_artifact(path: ArtifactPath) -> Response:
    """Download an artifact, whole or one range of it.

    Its ETag is the SHA-256 of the whole file. A request for several ranges gets the whole.
    """
    artifact = _find(path.artifact_id)
    headers = {
        "ETag": f'"{artifact.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
    }
    if request.if_none_match.contains_weak(artifact.sha256):
        return Response(status=304, headers=headers)
    size = artifact.size_bytes
    try:
        wanted = wanted_range(size, artifact.sha256)
    except RangeNotSatisfiableError:
        return problem(
            416,
            "range_not_satisfiable",
            f"the file has {size} bytes; the range begins after its end",
            headers={"Content-Range": f"bytes */{size}"},
        )
    first, length = wanted or (0, size)
    stream = _open(artifact, first, length)
    pieces: Iterable[bytes] = _pieces(stream)
    if request.method == "HEAD":
        # Nobody will read from it, and only its reader closes it.
        stream.close()
        pieces = ()
    else:
        _note_download(artifact, stream, whole=wanted is None)
    headers["Content-Disposition"] = dump_options_header("attachment", {"filename": artifact.name})
    headers["Content-Length"] = str(length)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{size}"
    return Response(
        pieces,
        206 if wanted is not None else 200,
        headers,
        content_type=artifact.media_type,
    )


@resource.route_as(
    "post",
    "/artifacts/<artifact_id>/link",
    answers={200: LinkAnswer},
    scope=Scope.EXPORTS,
    replays=False,
    audit=Action.ARTIFACT_LINKED,
)
def link_artifact(path: ArtifactPath) -> Response:
    """Make a link that downloads the artifact without a key, for a while.

    Each call makes a fresh link and changes nothing, so an Idempotency-Key is neither
    needed nor kept.
    """
    here, artifact = parts(), _find(path.artifact_id)
    seconds = here.settings.link_seconds
    url = here.store.presign_get(
        here.settings.bucket, artifact.object_key, seconds, filename=artifact.name
    )
    record_apart(target=artifact.id, job=artifact.job_id, seconds=seconds)
    return send(LinkAnswer(url=url, expires_at=utc_now() + timedelta(seconds=seconds)))


def _find(artifact_id: str) -> Artifact:
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        return find_artifact(session, tenant_id, artifact_id)


def _note_download(artifact: Artifact, stream: ObjectStream, *, whole: bool) -> None:
    """Audit a download before its first byte; of one in many ranges one entry a minute."""
    if not whole and not parts().repeats.is_news("range", principal().key_id, artifact.id):
        skip_note()
        return
    try:
        record_apart(target=artifact.id, job=artifact.job_id, size_bytes=artifact.size_bytes)
    except BaseException:
        stream.close()
        raise


def _open(artifact: Artifact, first: int, length: int) -> ObjectStream:
    here = parts()
    ranged = (first, length) if length != artifact.size_bytes else (None, None)
    try:
        return here.store.open(here.settings.bucket, artifact.object_key, *ranged)
    except ObjectMissingError:
        raise NotFoundError(
            f"the file of artifact {artifact.id} is not there any more", code="artifact_gone"
        ) from None


def _pieces(stream: ObjectStream) -> Iterator[bytes]:
    with stream:
        while piece := stream.read(_PIECE_BYTES):
            yield piece
