import hashlib
import io
import tarfile

import httpx2
import pytest

from app.client import ApiError
from app.client.folder import FolderTar
from tests.unit.fake_service import FakeService, answer, job, problem

BODY = bytes(range(256)) * 5000
UPLOAD = {"id": "upl_1", "kind": "archive", "state": "stored", "filename": "photos.zip"}
CONTENT = "GET /v1/artifacts/art_1/content"


def artifact(**fields):
    return {
        "id": "art_1",
        "name": "results.jsonl",
        "size_bytes": len(BODY),
        "sha256": hashlib.sha256(BODY).hexdigest(),
        **fields,
    }


@pytest.fixture
def service():
    service = FakeService()
    service.on("GET /v1/artifacts/art_1", answer(artifact()))
    return service


def broken(body, status=206):
    """An answer whose connection is lost after ``body``."""

    def stream():
        yield body
        raise httpx2.ReadError("cut")

    return httpx2.Response(status, content=stream())


def test_download_resumes_where_the_connection_was_lost(service, tmp_path):
    service.on(CONTENT, broken(BODY[:700_000], 200), httpx2.Response(206, content=BODY[700_000:]))
    seen = []
    with service.client() as darkroom:
        written = darkroom.artifacts.download(
            "art_1", tmp_path, lambda done, total: seen.append((done, total))
        )
    assert written == tmp_path / "results.jsonl"
    assert written.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert [each.headers.get("Range") for each in service.asked(CONTENT)] == [
        None,
        "bytes=700000-",
    ]
    assert list(tmp_path.iterdir()) == [written]


def test_download_goes_on_from_what_an_earlier_run_left(service, tmp_path):
    (tmp_path / ".out.jsonl.art_1.part").write_bytes(BODY[:1000])
    service.on(CONTENT, httpx2.Response(206, content=BODY[1000:]))
    with service.client() as darkroom:
        darkroom.artifacts.download("art_1", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == BODY
    assert service.asked(CONTENT)[0].headers["Range"] == "bytes=1000-"


def test_download_starts_over_where_the_range_is_ignored(service, tmp_path):
    service.on(CONTENT, broken(BODY[:1000], 200), httpx2.Response(200, content=BODY))
    with service.client() as darkroom:
        written = darkroom.artifacts.download("art_1", tmp_path)
    assert written.read_bytes() == BODY


def test_damaged_download_leaves_no_file(service, tmp_path):
    service.on(CONTENT, httpx2.Response(200, content=BODY[:-1] + b"!"))
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.artifacts.download("art_1", tmp_path)
    assert caught.value.code == "damaged"
    assert list(tmp_path.iterdir()) == []


def test_download_gives_up_when_no_byte_comes_any_more(service, tmp_path):
    service.on(CONTENT, httpx2.ReadError("cut"))
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.artifacts.download("art_1", tmp_path)
    assert caught.value.code == "unreachable"


def test_artifact_name_cannot_leave_the_folder(service, tmp_path):
    service.on("GET /v1/artifacts/art_2", answer(artifact(id="art_2", name="../../evil")))
    service.on("GET /v1/artifacts/art_2/content", httpx2.Response(200, content=BODY))
    with service.client() as darkroom:
        assert darkroom.artifacts.download("art_2", tmp_path) == tmp_path / "evil"


def test_upload_streams_with_its_length_and_reports_bytes(service, tmp_path):
    path = tmp_path / "photos.zip"
    path.write_bytes(BODY * 2)
    service.on("POST /v1/uploads", answer({"upload": UPLOAD, "job": job("queued")}, 202))
    seen = []
    with service.client() as darkroom:
        added = darkroom.uploads.add(path, on_progress=lambda *each: seen.append(each))
    assert added.upload.id == "upl_1"
    assert added.job is not None
    (request,) = service.requests
    assert request.content == BODY * 2
    assert request.headers["Content-Length"] == str(len(BODY) * 2)
    assert "Transfer-Encoding" not in request.headers
    assert dict(request.url.params) == {"kind": "archive", "filename": "photos.zip"}
    assert seen[-1] == (len(BODY) * 2, len(BODY) * 2)


def test_upload_that_broke_is_sent_again_whole_under_the_same_key(service, tmp_path):
    path = tmp_path / "photos.zip"
    path.write_bytes(BODY)
    service.on("GET /v1/jobs/job_1", answer(job()))
    service.on(
        "POST /v1/uploads",
        httpx2.WriteError("cut"),
        answer({"upload": UPLOAD, "job": job("queued")}, 202),
    )
    with service.client() as darkroom:
        darkroom.jobs.get("job_1")
        darkroom.uploads.add(path)
    first, second = service.asked("POST /v1/uploads")
    assert second.content == BODY
    assert first.headers["Idempotency-Key"] == second.headers["Idempotency-Key"]


def multipart(service, tmp_path):
    path = tmp_path / "large.zip"
    path.write_bytes(BODY)
    size = 500_000
    parts = [
        {"number": number, "url": f"http://store.test/part/{number}?sig=x"} for number in (1, 2, 3)
    ]
    service.on(
        "POST /v1/uploads/multipart",
        answer({"upload": UPLOAD, "part_bytes": size, "parts": parts}, 201),
    )
    service.on(
        "POST /v1/uploads/upl_1/complete", answer({"upload": UPLOAD, "job": job("queued")}, 202)
    )
    return path, size


def stored(request):
    name = request.url.path.rsplit("/", 1)[-1]
    return httpx2.Response(200, headers={"ETag": f'"etag-{name}"'})


def test_large_upload_goes_in_parts_and_only_a_lost_part_is_sent_again(service, tmp_path):
    path, size = multipart(service, tmp_path)
    service.on("PUT /part/1", stored)
    service.on("PUT /part/2", httpx2.Response(500), httpx2.ReadError("cut"), stored)
    service.on("PUT /part/3", stored)
    seen = []
    with service.client() as darkroom:
        darkroom.uploads.add(
            path, multipart_above_bytes=1, on_progress=lambda *each: seen.append(each)
        )
    assert b"".join(service.asked(f"PUT /part/{n}")[-1].content for n in (1, 2, 3)) == BODY
    assert [len(service.asked(f"PUT /part/{n}")) for n in (1, 2, 3)] == [1, 3, 1]
    assert service.asked("PUT /part/1")[0].content == BODY[:size]
    (complete,) = service.asked("POST /v1/uploads/upl_1/complete")
    assert b'"etag-2"' in complete.content
    assert max(seen) == (len(BODY), len(BODY))


def test_presigned_links_never_see_the_key(service, tmp_path):
    path, _ = multipart(service, tmp_path)
    for number in (1, 2, 3):
        service.on(f"PUT /part/{number}", stored)
    with service.client() as darkroom:
        darkroom.uploads.add(path, multipart_above_bytes=1)
    sent = [each for each in service.requests if each.url.host == "store.test"]
    assert len(sent) == 3
    assert not any("Authorization" in each.headers for each in sent)


def test_upload_streams_through_the_api_where_the_store_is_out_of_sight(service, tmp_path):
    path, _ = multipart(service, tmp_path)
    for number in (1, 2, 3):
        service.on(f"PUT /part/{number}", httpx2.ConnectError("refused"))
    service.on("DELETE /v1/uploads/upl_1", httpx2.Response(204))
    service.on("POST /v1/uploads", answer({"upload": UPLOAD, "job": job("queued")}, 202))
    with service.client() as darkroom:
        darkroom.uploads.add(path, multipart_above_bytes=1)
    assert service.asked("POST /v1/uploads")[0].content == BODY
    assert len(service.asked("DELETE /v1/uploads/upl_1")) == 1


def test_refused_part_discards_the_upload_and_is_told(service, tmp_path):
    path, _ = multipart(service, tmp_path)
    for number in (1, 2, 3):
        service.on(f"PUT /part/{number}", problem(403, "x", "expired"))
    service.on("DELETE /v1/uploads/upl_1", httpx2.Response(204))
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.uploads.add(path, multipart_above_bytes=1)
    assert caught.value.code == "part_refused"
    assert len(service.asked("DELETE /v1/uploads/upl_1")) == 1


def make_folder(tmp_path):
    folder = tmp_path / "photos"
    (folder / "cat").mkdir(parents=True)
    (folder / "dog").mkdir()
    (folder / ".git").mkdir()
    (folder / "cat" / "a.png").write_bytes(b"a" * 700)
    (folder / "dog" / ("long-" * 30 + "b.png")).write_bytes(b"b" * 512)
    (folder / "dog" / "ü.txt").write_bytes(b"")
    (folder / ".git" / "HEAD").write_bytes(b"x")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


def test_folder_is_a_tar_of_exactly_the_length_it_announces(tmp_path):
    tar = FolderTar(make_folder(tmp_path))
    body = b"".join(tar.chunks())
    assert len(body) == tar.size_bytes
    with tarfile.open(fileobj=io.BytesIO(body)) as read:
        files = {member.name: read.extractfile(member) for member in read}
        found = {name: file.read() for name, file in files.items() if file is not None}
    assert found == {
        "cat/a.png": b"a" * 700,
        "dog/" + "long-" * 30 + "b.png": b"b" * 512,
        "dog/ü.txt": b"",
    }


def test_globs_choose_the_files_of_a_folder(tmp_path):
    tar = FolderTar(make_folder(tmp_path), include=["*.png"], exclude=["dog/*"])
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar.chunks()))) as read:
        assert read.getnames() == ["cat/a.png"]


def test_file_that_shrinks_while_sending_is_named(tmp_path):
    folder = make_folder(tmp_path)
    tar = FolderTar(folder)
    (folder / "cat" / "a.png").write_bytes(b"short")
    with pytest.raises(ApiError, match=r"a\.png became shorter"):
        list(tar.chunks())


def test_empty_folder_and_globs_on_an_archive_are_refused(service, tmp_path):
    with pytest.raises(ApiError, match="no file to send"):
        FolderTar(tmp_path)
    path = tmp_path / "photos.zip"
    path.write_bytes(BODY)
    with service.client() as darkroom, pytest.raises(ApiError, match="taken whole"):
        darkroom.uploads.add(path, include=["*.png"])
