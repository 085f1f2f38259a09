from __future__ import annotations

import hashlib
import io
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.errors import InvalidInputError, ObjectMissingError, StorageError
from app.settings import load_settings
from app.stack.s3 import LocalS3
from app.storage.ranged import open_ranged
from app.storage.s3 import ObjectStore
from app.uploads.archive import open_archive
from tests.unit.archives import LIMITS, make_zip

BUCKET = "darkroom"
MIB = 1024 * 1024


def store_of(s3: LocalS3, **changes: object) -> ObjectStore:
    settings = load_settings(
        DATABASE_URL="postgresql://nowhere",
        S3_ENDPOINT_URL=s3.endpoint_url,
        AWS_ACCESS_KEY_ID=s3.access_key_id,
        AWS_SECRET_ACCESS_KEY=s3.secret_access_key,
        upload_part_bytes=5 * MIB,
        **changes,
    )
    return ObjectStore.from_settings(settings)


@pytest.fixture(scope="module")
def store(s3: LocalS3) -> ObjectStore:
    return store_of(s3)


def test_what_is_put_is_read_whole_and_in_parts(store: ObjectStore) -> None:
    store.put(BUCKET, "read/a", b"0123456789", "text/plain")
    assert store.read(BUCKET, "read/a") == b"0123456789"
    assert store.read(BUCKET, "read/a", 2, 3) == b"234"
    assert store.read(BUCKET, "read/a", 7) == b"789"
    assert store.read(BUCKET, "read/a", 3, 0) == b""
    with store.open(BUCKET, "read/a", 0, 5) as stream:
        assert (stream.size, stream.read(2), stream.read(2), stream.read(9), stream.read(1)) == (
            5,
            b"01",
            b"23",
            b"4",
            b"",
        )


def test_proxy_of_the_environment_is_not_asked_for_a_store_on_this_machine(
    s3: LocalS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    store = store_of(s3)
    store.put(BUCKET, "read/direct", b"x")
    assert store.read(BUCKET, "read/direct") == b"x"


def test_an_empty_object_is_read_as_such(store: ObjectStore) -> None:
    store.put(BUCKET, "read/empty", b"")
    assert store.read(BUCKET, "read/empty") == b""


def test_a_missing_object_and_a_missing_bucket_differ(store: ObjectStore) -> None:
    for call in (store.read, store.head):
        with pytest.raises(ObjectMissingError) as missing:
            call(BUCKET, "not/there")
        assert missing.value.code == "object_missing"
        with pytest.raises(ObjectMissingError) as missing:
            call("nobody-made-this", "not/there")
        assert missing.value.code == "bucket_missing"
    with pytest.raises(ObjectMissingError) as missing:
        list(store.list("nobody-made-this"))
    assert missing.value.code == "bucket_missing"


def test_a_range_beyond_the_end_is_missing_for_good(store: ObjectStore) -> None:
    store.put(BUCKET, "read/short", b"0123456789")
    for offset, length in ((10, 1), (8, 5)):
        with pytest.raises(ObjectMissingError):
            store.open(BUCKET, "read/short", offset, length)


def test_a_body_that_ends_early_is_a_fault_that_may_pass(store: ObjectStore) -> None:
    store.put(BUCKET, "read/cut", b"0123456789")
    for size in (-1, 10):
        stream = store.open(BUCKET, "read/cut")
        stream._body = io.BytesIO(b"0123")
        with pytest.raises(StorageError, match=r"at byte \d+ of 10"):
            [stream.read(size) for _ in range(3)]


def test_a_store_that_does_not_answer_is_a_fault_that_may_pass() -> None:
    settings = load_settings(
        DATABASE_URL="postgresql://nowhere",
        S3_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="nobody",
        AWS_SECRET_ACCESS_KEY="nothing",
    )
    with pytest.raises(StorageError) as fault:
        ObjectStore.from_settings(settings).read(BUCKET, "a")
    assert fault.value.retryable
    assert "nothing" not in str(fault.value)


def test_a_listing_is_sorted_and_goes_on_after_a_key(store: ObjectStore) -> None:
    names = [f"list/{number:04d}" for number in range(1203)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: store.put(BUCKET, name, name.encode()), names))
    found = list(store.list(BUCKET, "list/"))
    assert [info.key for info in found] == names
    assert {info.size for info in found} == {9}
    assert [info.key for info in store.list(BUCKET, "list/", names[1199])] == names[1200:]
    assert found[3].etag == store.head(BUCKET, names[3]).etag
    store.delete(BUCKET, [*names, "list/never-was"])
    assert list(store.list(BUCKET, "list/")) == []


@pytest.mark.parametrize("size", [0, 10, 5 * MIB, 11 * MIB + 3])
def test_a_written_file_becomes_one_object(store: ObjectStore, size: int) -> None:
    content = bytes(range(251)) * (size // 251 + 1)
    content = content[:size]
    with store.writer(BUCKET, "write/file", "image/x") as out:
        for start in range(0, size, 700_001):
            out.write(content[start : start + 700_001])
        assert out.tell() == size
    assert out.sha256 == hashlib.sha256(content).hexdigest()
    assert store.read(BUCKET, "write/file") == content


def test_a_file_left_by_an_exception_never_appears(store: ObjectStore) -> None:
    def fail() -> None:
        with store.writer(BUCKET, "write/left") as out:
            out.write(bytes(6 * MIB))
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    with pytest.raises(ObjectMissingError):
        store.head(BUCKET, "write/left")
    assert list(store.list_open_multiparts(BUCKET, "write/")) == []


def test_a_client_uploads_parts_by_presigned_links(store: ObjectStore) -> None:
    multipart = store.begin_multipart(BUCKET, "parts/whole")
    assert [found.key for found in store.list_open_multiparts(BUCKET, "parts/")] == ["parts/whole"]
    bodies = [bytes(5 * MIB), b"tail"]
    for number, body in enumerate(bodies, 1):
        link = store.presign_part(BUCKET, "parts/whole", multipart, number, 60)
        request = urllib.request.Request(link, data=body, method="PUT")
        request.add_header("Content-Type", "")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200
    parts = store.list_parts(BUCKET, "parts/whole", multipart)
    assert [(part.number, part.size) for part in parts] == [(1, 5 * MIB), (2, 4)]
    store.complete_multipart(BUCKET, "parts/whole", multipart, parts)
    assert store.head(BUCKET, "parts/whole").size == 5 * MIB + 4
    store.abort_multipart(BUCKET, "parts/whole", multipart)


def test_a_presigned_link_downloads_under_a_name(store: ObjectStore) -> None:
    store.put(BUCKET, "links/a", b"linked")
    link = store.presign_get(BUCKET, "links/a", 60, 'caf\u00e9 "1".jsonl')
    with urllib.request.urlopen(link) as answer:
        assert answer.read() == b"linked"
        disposition = answer.headers["Content-Disposition"]
    assert "filename*=UTF-8''caf%C3%A9%20%221%22.jsonl" in disposition
    assert 'filename="caf_ _1_.jsonl"' in disposition


def test_a_bucket_is_made_once(store: ObjectStore) -> None:
    store.ensure_bucket("made-by-a-test")
    store.ensure_bucket("made-by-a-test")
    assert list(store.list("made-by-a-test")) == []


def test_a_ranged_file_reads_and_seeks_like_a_plain_one(store: ObjectStore) -> None:
    content = bytes(range(256)) * 1000
    store.put(BUCKET, "ranged/file", content)
    plain = io.BytesIO(content)
    ranged = open_ranged(store, BUCKET, "ranged/file", block_bytes=1000)
    for offset, whence, size in (
        (0, 0, 10),
        (-50, 2, 100),
        (999, 0, 2),
        (5000, 1, 2500),
        (0, 2, 1),
        (300_000, 0, 5),
        (0, 0, -1),
    ):
        assert ranged.seek(offset, whence) == plain.seek(offset, whence)
        assert ranged.read(size) == plain.read(size)
        assert ranged.tell() == plain.tell()


def test_an_object_replaced_while_it_is_read_is_noticed(store: ObjectStore) -> None:
    store.put(BUCKET, "ranged/changing", bytes(3 * MIB))
    ranged = open_ranged(store, BUCKET, "ranged/changing", block_bytes=MIB)
    assert ranged.read(10) == bytes(10)
    store.put(BUCKET, "ranged/changing", b"\1" * 3 * MIB)
    ranged.seek(2 * MIB)
    with pytest.raises(InvalidInputError) as changed:
        ranged.read(10)
    assert changed.value.code == "object_changed"


def test_an_archive_is_read_straight_from_the_store(store: ObjectStore) -> None:
    files = {f"cat/{number}.jpg": bytes([number]) * 5000 for number in range(9)}
    store.put(BUCKET, "ranged/archive", make_zip(files, 0))
    file = open_ranged(store, BUCKET, "ranged/archive", block_bytes=7000)
    members = open_archive(file, LIMITS).members()
    assert {member.name: member.read() for member in members} == files
