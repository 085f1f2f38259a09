"""The object store: S3 and whatever speaks its language, through one small class.

What other stores do differently was met and is handled here: a ranged answer may carry
status 200, ``If-Match`` may be ignored (compare :attr:`ObjectStream.etag` yourself), and a
missing bucket looks like a missing key to HEAD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from app.errors import ObjectMissingError, StorageError
from app.storage.client import make_client
from app.storage.faults import bucket_missing, error_code, faults, where
from app.storage.streams import ObjectStream, ObjectWriter

if TYPE_CHECKING:
    from app.settings import Settings

_DELETE_KEYS = 1000
_BUCKET_EXISTS = frozenset({"BucketAlreadyExists", "BucketAlreadyOwnedByYou"})


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store says about an object; ``etag`` without quotes."""

    key: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One part of a multipart upload that the store already has."""

    number: int
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class OpenMultipart:
    """A multipart upload that nobody completed or aborted yet."""

    key: str
    multipart_id: str
    initiated_at: datetime


class ObjectStore:
    """Reads, writes, lists and signs objects; safe to share between threads.

    Every method raises :class:`StorageError` where the store did not answer, after
    bounded retries, and :class:`ObjectMissingError` where the bucket (code
    ``bucket_missing``) or the object is not there.
    """

    def __init__(self, client: Any, *, part_bytes: int) -> None:
        self._client = client
        self._part_bytes = part_bytes

    @classmethod
    def from_settings(cls, settings: Settings) -> ObjectStore:
        """A store with the endpoint and keys of the settings; nothing is contacted yet."""
        return cls(make_client(settings), part_bytes=settings.upload_part_bytes)

    # Reading

    def open(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> ObjectStream:
        """A stream of the object, or of ``length`` bytes at ``offset``, by one GET.

        Raises:
            ObjectMissingError: no such bucket or object, or it ends before the range does.
            StorageError: the store failed; trying again may help.
        """
        request: dict[str, Any] = {"Bucket": bucket, "Key": key}
        start = offset or 0
        ranged = start > 0 or length is not None
        if length == 0:
            info = self.head(bucket, key)
            return ObjectStream(None, 0, where(bucket, key), info.etag)
        if ranged:
            end = "" if length is None else str(start + length - 1)
            request["Range"] = f"bytes={start}-{end}"
        with faults(bucket, key):
            answer = self._client.get_object(**request)
        size = int(answer["ContentLength"])
        stream = ObjectStream(
            answer["Body"], size, where(bucket, key), answer.get("ETag", "").strip('"')
        )
        if ranged and "ContentRange" not in answer:
            stream.close()
            raise StorageError(f"the store ignored a range in {where(bucket, key)}")
        if length is not None and size < length:
            stream.close()
            raise ObjectMissingError(
                f"{where(bucket, key)} ends at byte {start + size}, "
                f"before the {length} bytes at {start}"
            )
        return stream

    def read(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> bytes:
        """The bytes of :meth:`open`, whole."""
        with self.open(bucket, key, offset, length) as stream:
            return stream.read()

    def head(self, bucket: str, key: str) -> ObjectInfo:
        """Size and etag of an object."""
        try:
            with faults(bucket, key):
                answer = self._client.head_object(Bucket=bucket, Key=key)
        except ObjectMissingError:
            self._require_bucket(bucket)
            raise
        return ObjectInfo(key, int(answer["ContentLength"]), answer["ETag"].strip('"'))

    def list(
        self, bucket: str, prefix: str = "", start_after: str | None = None
    ) -> Iterator[ObjectInfo]:
        """Every object under ``prefix`` whose key sorts after ``start_after``, as a stream."""
        request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
        if start_after:
            request["StartAfter"] = start_after
        pages = iter(self._client.get_paginator("list_objects_v2").paginate(**request))
        while True:
            with faults(bucket, prefix):
                page = next(pages, None)
            if page is None:
                return
            for found in page.get("Contents", ()):
                yield ObjectInfo(found["Key"], int(found["Size"]), found["ETag"].strip('"'))

    # Writing

    def put(
        self, bucket: str, key: str, body: bytes, content_type: str = "application/octet-stream"
    ) -> None:
        """Store ``body`` under ``key``, whole or not at all."""
        with faults(bucket, key):
            self._client.put_object(Bucket=bucket, Key=key, Body=body, ContentType=content_type)

    @contextmanager
    def writer(
        self, bucket: str, key: str, content_type: str = "application/octet-stream"
    ) -> Iterator[ObjectWriter]:
        """A file to write to, stored when the block ends well and discarded when it raises.

        Holds about one part in memory whatever the size.
        """
        out = ObjectWriter(self, bucket, key, content_type, self._part_bytes)
        try:
            yield out
            out.complete()
        except BaseException:
            out.abort()
            raise

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete objects; those that are gone already are fine."""
        pending: list[str] = []
        for key in keys:
            pending.append(key)
            if len(pending) == _DELETE_KEYS:
                self._delete(bucket, pending)
                pending = []
        if pending:
            self._delete(bucket, pending)

    def bucket_exists(self, bucket: str) -> bool:
        """Whether there is such a bucket that these keys may reach."""
        try:
            self._require_bucket(bucket)
        except ObjectMissingError:
            return False
        return True

    def ensure_bucket(self, bucket: str) -> None:
        """Create the bucket where it does not exist."""
        try:
            self._require_bucket(bucket)
        except ObjectMissingError:
            with faults(bucket, ""):
                try:
                    self._client.create_bucket(Bucket=bucket, **self._placement())
                except ClientError as error:
                    # Another process was faster.
                    if error_code(error) not in _BUCKET_EXISTS:
                        raise

    # Multipart, by us or by a client with presigned links

    def begin_multipart(
        self, bucket: str, key: str, content_type: str = "application/octet-stream"
    ) -> str:
        """The id of a new multipart upload to ``key``."""
        with faults(bucket, key):
            answer = self._client.create_multipart_upload(
                Bucket=bucket, Key=key, ContentType=content_type
            )
        return str(answer["UploadId"])

    def put_part(
        self, bucket: str, key: str, multipart_id: str, number: int, body: bytes | bytearray
    ) -> PartInfo:
        """Send part ``number`` (from 1); parts but the last have 5 MiB or more."""
        with faults(bucket, key):
            answer = self._client.upload_part(
                Bucket=bucket, Key=key, UploadId=multipart_id, PartNumber=number, Body=body
            )
        return PartInfo(number, len(body), answer["ETag"].strip('"'))

    def list_parts(self, bucket: str, key: str, multipart_id: str) -> Sequence[PartInfo]:
        """The parts that have arrived, by number."""
        parts: list[PartInfo] = []
        with faults(bucket, key):
            pages = self._client.get_paginator("list_parts").paginate(
                Bucket=bucket, Key=key, UploadId=multipart_id
            )
            for page in pages:
                for part in page.get("Parts", ()):
                    parts.append(
                        PartInfo(part["PartNumber"], int(part["Size"]), part["ETag"].strip('"'))
                    )
        return sorted(parts, key=lambda part: part.number)

    def complete_multipart(
        self, bucket: str, key: str, multipart_id: str, parts: Iterable[PartInfo]
    ) -> None:
        """Make one object of the parts."""
        listed = [{"PartNumber": part.number, "ETag": f'"{part.etag}"'} for part in parts]
        with faults(bucket, key):
            self._client.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=multipart_id, MultipartUpload={"Parts": listed}
            )

    def abort_multipart(self, bucket: str, key: str, multipart_id: str) -> None:
        """Discard a multipart upload; one that is gone already is fine."""
        with faults(bucket, key):
            try:
                self._client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=multipart_id)
            except ClientError as error:
                if error_code(error) != "NoSuchUpload":
                    raise

    def list_open_multiparts(self, bucket: str, prefix: str = "") -> Iterator[OpenMultipart]:
        """Multipart uploads under ``prefix`` that are neither completed nor aborted."""
        with faults(bucket, prefix):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(
                Bucket=bucket, Prefix=prefix
            )
            try:
                found = [entry for page in pages for entry in page.get("Uploads", ())]
            except ClientError as error:
                # How `rclone serve s3` says that there are none.
                if error_code(error) != "NoSuchUpload":
                    raise
                return
        for entry in found:
            yield OpenMultipart(entry["Key"], entry["UploadId"], entry["Initiated"])

    # Links

    def presign_get(self, bucket: str, key: str, seconds: int, filename: str | None = None) -> str:
        """A link that downloads the object for ``seconds``, saved as ``filename``.

        What it is said to be is chosen here, never by who stored it: a file to save, and no page.
        """
        params = {
            "Bucket": bucket,
            "Key": key,
            "ResponseContentType": "application/octet-stream",
            "ResponseContentDisposition": "attachment",
        }
        if filename is not None:
            params["ResponseContentDisposition"] = _attachment(filename)
        return str(
            self._client.generate_presigned_url("get_object", Params=params, ExpiresIn=seconds)
        )

    def presign_part(
        self, bucket: str, key: str, multipart_id: str, number: int, seconds: int
    ) -> str:
        """A link to PUT part ``number`` to for ``seconds``."""
        params = {"Bucket": bucket, "Key": key, "UploadId": multipart_id, "PartNumber": number}
        return str(
            self._client.generate_presigned_url("upload_part", Params=params, ExpiresIn=seconds)
        )

    def _delete(self, bucket: str, keys: Sequence[str]) -> None:
        body = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
        with faults(bucket, keys[0]):
            answer = self._client.delete_objects(Bucket=bucket, Delete=body)
        failed = [fault for fault in answer.get("Errors", ()) if fault["Code"] != "NoSuchKey"]
        if failed:
            raise StorageError(
                f"{len(failed)} of {len(keys)} objects in {bucket} were not deleted; the first "
                f"is {failed[0]['Key']}: {failed[0]['Code']}"
            )

    def _require_bucket(self, bucket: str) -> None:
        try:
            with faults(bucket, ""):
                self._client.head_bucket(Bucket=bucket)
        except ObjectMissingError:
            raise bucket_missing(bucket) from None

    def _placement(self) -> dict[str, Any]:
        region = self._client.meta.region_name
        if region == "us-east-1":
            return {}
        return {"CreateBucketConfiguration": {"LocationConstraint": region}}


def _attachment(filename: str) -> str:
    """A Content-Disposition of RFC 6266: a plain name, and the exact one in UTF-8."""
    plain = "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\' else "_"
        for char in filename
    )
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
