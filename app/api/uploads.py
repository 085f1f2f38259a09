"""Uploads: one stream, or parts that go straight to the object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from flask import Response, request
from sqlalchemy.orm import Session

from app.api.audit import record
from app.api.idempotency import Claim, read_claim, replay
from app.api.parts import parts, principal
from app.api.replies import Reply, as_json, page_fields, send
from app.api.requests import MediaTypeError, body_incomplete, raise_body_fault
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.uploads import (
    StoredUpload,
    UploadAnswer,
    UploadPage,
    UploadPath,
    UploadQuery,
)
from app.api.views import show_job, show_upload
from app.audit.actions import Action
from app.errors import DarkroomError, TooLargeError, UnavailableError
from app.jobs.submit import submit_ingest
from app.tenants.scopes import Scope
from app.uploads.multipart import discard_parts
from app.uploads.receive import (
    begin_upload,
    fail_upload,
    finish_upload,
    receive_bytes,
)
from app.uploads.receive import get_upload as find_upload
from app.uploads.receive import list_uploads as page_uploads
from app.uploads.room import check_room
from app.uploads.tables import Upload, UploadKind

resource = Resource("uploads", "Uploads", "Hand over archives of images and weights.")

_PIECE_BYTES = 256 * 1024
#: When a client that found no place should come back.
_RETRY_SECONDS = 5
_TAKEN = ("application/octet-stream", "application/zip", "application/x-tar", "application/gzip")


@resource.route_as(
    "post",
    "/uploads",
    answers={201: StoredUpload, 202: StoredUpload},
    scope=Scope.JOBS_WRITE,
    problems=[429],
    headers={201: ("Location",), 202: ("Location", "Retry-After")},
    media_types=_TAKEN,
    audit=Action.UPLOAD_RECEIVED,
)
def send_upload(query: UploadQuery) -> Response:
    """Send a file as the raw body.

    A zip, tar or tar.gz of images answers 202 with the ingest job that unpacks it; weights
    (safetensors) answer 201. The body goes straight through to the object store, so its size
    does not matter to the service's memory; very large files had better go by parts.
    """
    announced = _check_announced(parts().settings.upload_max_bytes)
    with _place():
        return _receive(query, announced)


def _receive(query: UploadQuery, announced: int | None) -> Response:
    here, tenant_id = parts(), principal().tenant_id
    claim = read_claim(with_body=False)
    with here.db.tenant(tenant_id) as session:
        kept = claim.recall(session) if claim else None
        if kept is None:
            check_quotas(session, query.kind, announced or 0)
            upload = begin_upload(
                session,
                tenant_id,
                kind=UploadKind(query.kind),
                filename=query.filename,
                size_bytes=announced,
            )
    if kept is not None:
        _drain()
        return replay(kept, **_again(kept))
    bucket = here.settings.bucket
    try:
        received = receive_bytes(
            here.store,
            bucket,
            upload.object_key,
            _pieces(announced),
            max_bytes=here.settings.upload_max_bytes,
        )
    except BaseException:
        _give_up(upload.id)
        raise
    try:
        with here.db.tenant(tenant_id) as session:
            # A twin of this request may have been faster; then its answer is ours too.
            kept = claim.recall(session) if claim else None
            if kept is None:
                if received.size_bytes != announced:
                    quotas = here.admission.quotas(session, tenant_id)
                    check_room(session, tenant_id, quotas, received.size_bytes, but_for=upload.id)
                reply = store_upload(
                    session, upload.id, size_bytes=received.size_bytes, sha256=received.sha256
                )
                _keep(claim, session, reply)
    except UnavailableError:
        # Whether that was committed is not known, so the bytes stay.
        raise
    except DarkroomError:
        _discard(upload)
        raise
    if kept is not None:
        _discard(upload)
        return replay(kept, **_again(kept))
    return reply.response(**_again(reply))


def check_quotas(session: Session, kind: str, size_bytes: int) -> None:
    """Let an upload begin only where its bytes, and the ingest job of an archive, may follow.

    Raises:
        TooManyError: a quota of the tenant is used up.
    """
    admission, tenant_id = parts().admission, principal().tenant_id
    check_room(session, tenant_id, admission.quotas(session, tenant_id), size_bytes)
    if kind == UploadKind.ARCHIVE:
        admission.admit_job(session, tenant_id)


@contextmanager
def _place() -> Iterator[None]:
    """One of the places for uploads, so that they never take every thread of the process.

    Raises:
        UnavailableError: ``uploads_busy``: all are taken.
    """
    places = parts().upload_places
    if not places.take():
        raise UnavailableError(
            f"as many uploads are arriving as this process takes, {places.most} at most; "
            "try again, or send parts straight to the object store",
            code="uploads_busy",
            retry_after_seconds=_RETRY_SECONDS,
        )
    request.begin_upload(parts().settings.upload_min_bytes_per_second)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        places.give_back()


def store_upload(session: Session, upload_id: str, *, size_bytes: int, sha256: str | None) -> Reply:
    """Say that an upload is all there, and submit the ingest of an archive with it."""
    tenant_id = principal().tenant_id
    upload = finish_upload(session, tenant_id, upload_id, size_bytes=size_bytes, sha256=sha256)
    record(session, target=upload.id, kind=upload.kind, size_bytes=size_bytes, sha256=sha256)
    if upload.kind != UploadKind.ARCHIVE:
        answer = StoredUpload(upload=show_upload(upload), job=None)
        return Reply(201, as_json(answer), f"/v1/uploads/{upload.id}")
    job = submit_ingest(session, tenant_id, upload.id)
    session.refresh(upload)
    answer = StoredUpload(upload=show_upload(upload), job=show_job(session, job))
    return Reply(202, as_json(answer), f"/v1/jobs/{job.id}")


@resource.route_as("get", "/uploads", answers={200: UploadPage}, scope=Scope.JOBS_READ)
def list_uploads(query: PageQuery) -> Response:
    """List uploads, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = page_uploads(session, tenant_id, after=query.after, limit=query.limit)
    return send(UploadPage(**page_fields(rows, has_more, show_upload)))


@resource.route_as(
    "get", "/uploads/<upload_id>", answers={200: UploadAnswer}, scope=Scope.JOBS_READ
)
def get_upload(path: UploadPath) -> Response:
    """Read one upload."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        return send(show_upload(find_upload(session, tenant_id, path.upload_id)))


@resource.route_as(
    "delete",
    "/uploads/<upload_id>",
    answers={204: None},
    scope=Scope.JOBS_WRITE,
    problems=[409],
    audit=Action.UPLOAD_ABORTED,
)
def abort_upload(path: UploadPath) -> Response:
    """Give up an upload whose bytes are still arriving; a stored one answers 409."""
    here, tenant_id = parts(), principal().tenant_id
    with here.db.tenant(tenant_id) as session:
        upload = fail_upload(session, tenant_id, path.upload_id)
        record(session, target=upload.id)
    discard_parts(here.store, here.settings.bucket, upload)
    return Response(status=204)


def _check_announced(max_bytes: int) -> int | None:
    """The announced length, None where the body comes in chunks of unknown number."""
    if request.mimetype == "multipart/form-data":
        raise MediaTypeError(
            "send the file itself as the body (curl --data-binary @FILE or -T FILE), not a form"
        )
    announced = request.content_length
    if announced is not None and announced > max_bytes:
        raise TooLargeError(
            f"the upload has {announced} bytes; at most {max_bytes} are taken "
            "(setting upload_max_bytes)"
        )
    # Only now, and only here, may a body be larger than JSON; one more, so that the count of
    # what really arrives is the one to refuse it.
    request.max_content_length = max_bytes + 1
    return announced


def _pieces(announced: int | None) -> Iterator[bytes]:
    """The body, a piece at a time.

    Raises:
        BadRequestError: ``body_incomplete``: the connection ended, or fell silent, too early.
        TooSlowBodyError: it comes more slowly than the least rate.
    """
    arrived = 0
    try:
        while piece := request.stream.read(_PIECE_BYTES):
            arrived += len(piece)
            yield piece
    except Exception as error:
        raise_body_fault(error)
    if announced is not None and arrived < announced:
        raise body_incomplete()


def _drain() -> None:
    """Read a body that is not needed: many a client looks for the answer only after it is sent."""
    with suppress(DarkroomError):
        for _ in _pieces(None):
            pass


def _give_up(upload_id: str) -> None:
    tenant_id = principal().tenant_id
    # Whoever aborted it meanwhile did the same; the first error is the one to tell.
    with suppress(DarkroomError), parts().db.tenant(tenant_id) as session:
        fail_upload(session, tenant_id, upload_id)


def _discard(upload: Upload) -> None:
    """Drop an upload that arrived whole and is not wanted: aborted meanwhile, or a twin's."""
    _give_up(upload.id)
    here = parts()
    with suppress(DarkroomError):
        here.store.delete(here.settings.bucket, [upload.object_key])


def _keep(claim: Claim | None, session: Session, reply: Reply) -> None:
    if claim:
        claim.keep(session, reply)


def _again(reply: Reply) -> dict[str, str]:
    return {"Retry_After": "1"} if reply.status == 202 else {}
