"""Artifacts: what jobs made, as files to download."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from flask import Response, g, request
from werkzeug.http import dump_options_header

from app.api.audit import record_apart, skip_note
from app.api.links import make_link, open_link
from app.api.parts import parts, principal
from app.api.places import Places, take_download
from app.api.problems import problem
from app.api.ranges import RangeNotSatisfiableError, wanted_range
from app.api.replies import send
from app.api.resource import Resource
from app.api.schemas.service import (
    ArtifactAnswer,
    ArtifactPath,
    LinkAnswer,
    LinkQuery,
    MakeLink,
)
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


_DOWNLOAD: dict[str, Any] = {
    "answers": {200: "*/*", 206: "*/*", 304: None},
    "headers": {
        200: _CONTENT_HEADERS,
        206: (*_CONTENT_HEADERS, "Content-Range"),
        304: ("ETag",),
    },
    "takes": ["Range", "IfRange", "IfNoneMatch"],
    "audit": Action.ARTIFACT_DOWNLOADED,
}


@resource.route_as(
    "get",
    "/artifacts/<artifact_id>/content",
    scope=Scope.EXPORTS,
    problems=[416],
    **_DOWNLOAD,
)
def download_artifact(path: ArtifactPath) -> Response:
    """Download an artifact, whole or one range of it.

    Its ETag is the SHA-256 of the whole file. A request for several ranges gets the whole.
    """
    return _download(path.artifact_id)


@resource.route_as(
    "get",
    "/artifacts/<artifact_id>/download",
    guarded=False,
    problems=[403, 416, 429],
    **_DOWNLOAD,
)
def download_linked(path: ArtifactPath, query: LinkQuery) -> Response:
    """Download an artifact by a link, without a key.

    The link is made by `POST /v1/artifacts/{artifact_id}/link`, opens this file and nothing else,
    and ends after a while, or with the key that made it.
    """
    here = parts()
    here.rates.admit_stranger(request.remote_addr)
    g.principal = open_link(query.token, path.artifact_id)
    here.rates.admit_request(principal().tenant_id)
    return _download(path.artifact_id, by_link=True)


@resource.route_as(
    "post",
    "/artifacts/<artifact_id>/link",
    answers={200: LinkAnswer},
    scope=Scope.EXPORTS,
    body_optional=True,
    replays=False,
    audit=Action.ARTIFACT_LINKED,
)
def link_artifact(path: ArtifactPath, body: MakeLink) -> Response:
    """Make a link that downloads the artifact without a key, for a while.

    Whoever has the link has the file, so hand it on with care. Each call makes a fresh link and
    changes nothing, so an Idempotency-Key is neither needed nor kept. The link ends early where
    the key that made it is revoked or expires; a direct one does not.
    """
    here, artifact = parts(), _find(path.artifact_id)
    if body.direct:
        seconds = here.settings.link_seconds
        url = here.store.presign_get(
            here.settings.bucket, artifact.object_key, seconds, filename=artifact.name
        )
        ends_at = utc_now() + timedelta(seconds=seconds)
    else:
        url, ends_at = make_link(principal(), artifact.id)
    record_apart(
        target=artifact.id,
        job=artifact.job_id,
        seconds=here.settings.link_seconds,
        direct=body.direct,
    )
    return send(LinkAnswer(url=url, expires_at=ends_at))


def _download(artifact_id: str, *, by_link: bool = False) -> Response:
    artifact = _find(artifact_id)
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
    whole = wanted is None
    pieces: Iterable[bytes] = _take_stream(artifact, first, length, whole=whole, by_link=by_link)
    headers["Content-Disposition"] = dump_options_header("attachment", {"filename": artifact.name})
    headers["Content-Length"] = str(length)
    if wanted is not None:
        headers["Content-Range"] = f"bytes {first}-{first + length - 1}/{size}"
    return Response(pieces, 200 if whole else 206, headers, content_type=artifact.media_type)


def _find(artifact_id: str) -> Artifact:
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        return find_artifact(session, tenant_id, artifact_id)


def _note_download(artifact: Artifact, *, whole: bool, by_link: bool) -> None:
    """Audit a download before its first byte; of one in many ranges one entry a minute."""
    if not whole and not parts().repeats.is_news("range", principal().key_id, artifact.id):
        skip_note()
        return
    record_apart(
        target=artifact.id,
        job=artifact.job_id,
        size_bytes=artifact.size_bytes,
        by_link=by_link or None,
    )


def _open(artifact: Artifact, first: int, length: int) -> ObjectStream:
    here = parts()
    ranged = (first, length) if length != artifact.size_bytes else (None, None)
    try:
        return here.store.open(here.settings.bucket, artifact.object_key, *ranged)
    except ObjectMissingError:
        raise NotFoundError(
            f"the file of artifact {artifact.id} is not there any more", code="artifact_gone"
        ) from None


def _take_stream(
    artifact: Artifact, first: int, length: int, *, whole: bool, by_link: bool
) -> Iterable[bytes]:
    """The bytes asked for; the reader of the answer closes what it holds, read or not.

    Raises:
        UnavailableError: ``downloads_busy``.
    """
    places = parts().download_places
    if request.method == "HEAD":
        # Nobody will read from it.
        _open(artifact, first, length).close()
        return ()
    take_download(places)
    try:
        download = _Download(_open(artifact, first, length), places)
    except BaseException:
        places.give_back()
        raise
    try:
        _note_download(artifact, whole=whole, by_link=by_link)
    except BaseException:
        download.close()
        raise
    return download


class _Download:
    """An object's bytes on their way to a client, and the place that they hold."""

    def __init__(self, stream: ObjectStream, places: Places) -> None:
        self._stream = stream
        self._places: Places | None = places

    def __iter__(self) -> Iterator[bytes]:
        try:
            while piece := self._stream.read(_PIECE_BYTES):
                yield piece
        finally:
            self.close()

    def close(self) -> None:
        """Let go; the server calls it when the answer is sent, or its client has gone."""
        self._stream.close()
        if self._places is not None:
            self._places.give_back()
            self._places = None
