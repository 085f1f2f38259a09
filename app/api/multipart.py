"""Uploads in parts: begin, and complete; the parts go straight to the object store."""

from __future__ import annotations

from contextlib import suppress

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import record
from app.api.idempotency import REPLAYED, read_claim, replay
from app.api.parts import parts, principal
from app.api.replies import Reply, send
from app.api.resource import Resource
from app.api.schemas.uploads import (
    BeginMultipart,
    BegunMultipart,
    CompleteMultipart,
    PartLink,
    StoredUpload,
    UploadPath,
)
from app.api.uploads import check_quotas, store_upload
from app.api.views import show_upload
from app.audit.actions import Action
from app.errors import ConflictError, DarkroomError, InvalidInputError, TooLargeError
from app.ids import UPLOAD, new_id
from app.storage.keys import upload_archive
from app.storage.s3 import PartInfo
from app.tenants.scopes import Scope
from app.uploads.multipart import join_parts, plan_parts, sign_parts
from app.uploads.receive import begin_upload, get_upload
from app.uploads.tables import Upload, UploadKind, UploadState

resource = Resource("multipart", "Uploads", "Hand over archives of images and weights.")


@resource.route_as(
    "post",
    "/uploads/multipart",
    answers={201: BegunMultipart},
    scope=Scope.JOBS_WRITE,
    problems=[429],
    headers={201: ("Location",)},
    audit=Action.UPLOAD_BEGUN,
)
def begin_multipart(body: BeginMultipart) -> Response:
    """Begin a large upload in parts.

    PUT each part to its link, then complete the upload with the ETags that came back. A
    replay under the same Idempotency-Key brings fresh links to the same upload.
    """
    here, tenant_id = parts(), principal().tenant_id
    if body.size_bytes > here.settings.upload_max_bytes:
        raise TooLargeError(
            f"the upload has {body.size_bytes} bytes; at most {here.settings.upload_max_bytes} "
            "are taken (setting upload_max_bytes)"
        )
    claim, bucket = read_claim(), here.settings.bucket
    with here.db.tenant(tenant_id) as session:
        kept = claim.recall(session) if claim else None
        if kept is not None:
            upload = get_upload(session, tenant_id, kept.body["upload"]["id"])
        else:
            check_quotas(session, body.kind, body.size_bytes)
    if kept is not None:
        return _begun(upload, replayed=True)
    # The store is asked between two transactions: none is open while it takes its time.
    upload_id = new_id(UPLOAD)
    key = upload_archive(tenant_id, upload_id)
    multipart_id = here.store.begin_multipart(bucket, key)
    kept = None
    try:
        with here.db.tenant(tenant_id) as session:
            kept = claim.recall(session) if claim else None
            if kept is not None:
                upload = get_upload(session, tenant_id, kept.body["upload"]["id"])
            else:
                upload = begin_upload(
                    session,
                    tenant_id,
                    kind=UploadKind(body.kind),
                    filename=body.filename,
                    upload_id=upload_id,
                    size_bytes=body.size_bytes,
                    multipart_id=multipart_id,
                )
                record(session, target=upload.id, kind=body.kind, size_bytes=body.size_bytes)
                if claim:
                    claim.keep(session, Reply(201, {"upload": {"id": upload.id}}))
    except (ConflictError, InvalidInputError):
        # A twin holds the key: nothing of ours will ever name these parts.
        _forget_parts(key, multipart_id)
        raise
    if kept is not None:
        _forget_parts(key, multipart_id)
    return _begun(upload, replayed=kept is not None)


@resource.route_as(
    "post",
    "/uploads/<upload_id>/complete",
    answers={201: StoredUpload, 202: StoredUpload},
    scope=Scope.JOBS_WRITE,
    headers={201: ("Location",), 202: ("Location", "Retry-After")},
    audit=Action.UPLOAD_RECEIVED,
)
def complete_multipart(path: UploadPath, body: CompleteMultipart) -> Response:
    """Complete an upload whose parts are all sent.

    An archive answers 202 with its ingest job, weights answer 201.
    """
    here, tenant_id = parts(), principal().tenant_id
    claim = read_claim()
    with here.db.tenant(tenant_id) as session:
        kept = claim.recall(session) if claim else None
        upload = get_upload(session, tenant_id, path.upload_id)
    if kept is not None:
        return replay(kept, **_soon(kept))
    _require_open(upload)
    sent = [PartInfo(part.number, 0, part.etag.strip('"')) for part in body.parts]
    join_parts(here.store, here.settings.bucket, upload, sent)
    try:
        with here.db.tenant(tenant_id) as session:
            kept = claim.recall(session) if claim else None
            if kept is None:
                reply = _store(session, upload)
                if claim:
                    claim.keep(session, reply)
    except ConflictError:
        _drop_if_aborted(upload)
        raise
    if kept is not None:
        return replay(kept, **_soon(kept))
    return reply.response(**_soon(reply))


def _store(session: Session, upload: Upload) -> Reply:
    # The bytes went past us, so their digest is not known here; the jobs that read them check.
    return store_upload(session, upload.id, size_bytes=upload.size_bytes or 0, sha256=None)


def _forget_parts(key: str, multipart_id: str) -> None:
    here = parts()
    with suppress(DarkroomError):
        here.store.abort_multipart(here.settings.bucket, key, multipart_id)


def _drop_if_aborted(upload: Upload) -> None:
    """Delete what was joined for an upload that was given up meanwhile; a twin's stays."""
    here = parts()
    with suppress(DarkroomError):
        with here.db.tenant(upload.tenant_id) as session:
            state = get_upload(session, upload.tenant_id, upload.id).state
        if state == UploadState.FAILED:
            here.store.delete(here.settings.bucket, [upload.object_key])


def _begun(upload: Upload, *, replayed: bool) -> Response:
    here = parts()
    _require_open(upload)
    plan = plan_parts(upload.size_bytes or 0, part_bytes=here.settings.upload_part_bytes)
    signed, ends_at = sign_parts(
        here.store,
        here.settings.bucket,
        upload,
        plan,
        link_seconds=here.settings.link_seconds,
    )
    response = send(
        BegunMultipart(
            upload=show_upload(upload),
            part_bytes=plan.part_bytes,
            parts=[PartLink(number=part.number, url=part.url) for part in signed],
            expires_at=ends_at,
        ),
        201,
    )
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    if replayed:
        response.headers[REPLAYED] = "true"
    return response


def _require_open(upload: Upload) -> None:
    if upload.multipart_id is None or upload.state != UploadState.RECEIVING:
        raise ConflictError(
            f"upload {upload.id} takes no parts: it is {upload.state}",
            code="upload_not_receiving",
        )


def _soon(reply: Reply) -> dict[str, str]:
    return {"Retry_After": "1"} if reply.status == 202 else {}
