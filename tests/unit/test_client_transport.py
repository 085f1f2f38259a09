import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx2
import pytest

from app.client import ApiError, Darkroom
from app.client.address import find_address
from tests.unit.fake_service import KEY, URL, answer, job, page, problem


def test_every_call_carries_the_key_and_every_post_an_idempotency_key(service):
    service.on("POST /v1/jobs", answer(job("queued"), 202))
    service.on("GET /v1/jobs/job_1", answer(job()))
    with service.client() as darkroom:
        darkroom.jobs.submit_predict({"upload": "upl_1"}, "digits")
        darkroom.jobs.submit_predict({"upload": "upl_1"}, "digits")
        darkroom.jobs.get("job_1")
    first, second, third = service.requests
    assert {each.headers["Authorization"] for each in service.requests} == {f"Bearer {KEY}"}
    assert first.headers["Idempotency-Key"] != second.headers["Idempotency-Key"]
    assert "Idempotency-Key" not in third.headers


def test_post_is_tried_again_under_the_same_idempotency_key(service):
    service.on(
        "POST /v1/jobs",
        problem(503, "database_unavailable", "try again", retry_after=3),
        httpx2.ReadError("cut"),
        answer(job("queued"), 202),
    )
    with service.client() as darkroom:
        assert darkroom.jobs.submit_predict({"upload": "upl_1"}, "digits").state == "queued"
    assert len({each.headers["Idempotency-Key"] for each in service.requests}) == 1
    assert service.pauses[0] == 3
    assert len(service.pauses) == 2


def test_each_wait_is_told_with_its_reason_before_it_begins(service):
    heard = []

    def told(error, seconds):
        heard.append((error.code, seconds, len(service.pauses)))

    service.on(
        "POST /v1/jobs",
        problem(429, "too_many_jobs", "2 open jobs", retry_after=5),
        problem(429, "too_many_submissions", "3 jobs within a minute", retry_after=60),
        answer(job("queued"), 202),
    )
    with service.client(on_retry=told) as darkroom:
        darkroom.jobs.submit_predict({"upload": "upl_1"}, "digits")
    assert heard == [("too_many_jobs", 5, 0), ("too_many_submissions", 10, 1)]
    assert service.pauses == [5, 10]


def test_last_refusal_is_raised_and_not_told_as_a_wait(service):
    heard = []
    service.on("POST /v1/jobs", problem(429, "too_many_jobs", "2 open jobs", retry_after=5))
    darkroom = service.client(on_retry=lambda *words: heard.append(words))
    with darkroom, pytest.raises(ApiError, match="2 open jobs"):
        darkroom.jobs.submit_predict({"upload": "upl_1"}, "digits")
    assert len(heard) == len(service.pauses) == len(service.requests) - 1


def test_storage_that_is_used_up_is_not_asked_again(service):
    service.on("POST /v1/jobs", problem(429, "too_many_bytes", "no room", retry_after=10))
    with service.client() as darkroom, pytest.raises(ApiError) as refused:
        darkroom.jobs.submit_predict({"upload": "upl_1"}, "digits")
    assert refused.value.code == "too_many_bytes"
    assert service.pauses == []


def test_refusal_is_one_error_with_code_detail_and_faults_and_is_not_tried_again(service):
    faults = [{"line": 2, "detail": "duplicate custom_id 'a'"}]
    service.on(
        "POST /v1/jobs",
        problem(
            422, "invalid_input", "2 bad lines", errors=faults, errors_total=2, request_id="req_9"
        ),
    )
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.jobs.submit_predict({"manifest": "s3://b/m.csv"}, "digits")
    error = caught.value
    assert (error.status, error.code, error.detail) == (422, "invalid_input", "2 bad lines")
    assert (error.errors, error.errors_total, error.request_id) == (faults, 2, "req_9")
    assert len(service.requests) == 1


def test_answer_of_a_proxy_that_is_no_problem_document_is_still_a_sentence(service):
    service.on("GET /v1/jobs/job_1", httpx2.Response(413, text="<html>too big</html>"))
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.jobs.get("job_1")
    assert caught.value.code == "http_413"
    assert "413" in caught.value.detail


def test_refused_connection_names_the_address_and_what_to_do_at_once(service):
    service.on("GET /v1/jobs/job_1", httpx2.ConnectError("refused"))
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.jobs.get("job_1")
    assert caught.value.code == "unreachable"
    assert caught.value.detail == (
        f"no Darkroom at {URL}: start one with `darkroom up`, or set DARKROOM_URL, or "
        "DARKROOM_DATA to the folder of one that runs"
    )
    assert service.pauses == []


def test_missing_key_is_explained(service, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DARKROOM_API_KEY", raising=False)
    monkeypatch.delenv("DARKROOM_DATA", raising=False)
    service.on("GET /v1/jobs/job_1", problem(401, "unauthorized", "no key"))
    with Darkroom(URL, http=service.transport) as darkroom, pytest.raises(ApiError) as caught:
        darkroom.jobs.get("job_1")
    assert caught.value.code == "no_key"
    assert "DARKROOM_API_KEY" in caught.value.detail


def test_lists_are_fetched_page_by_page_as_they_are_iterated(service):
    service.on(
        "GET /v1/jobs/job_1/results",
        page([{"ordinal": 0, "custom_id": "a", "prediction": None}], more=True, cursor="o.0"),
        page([{"ordinal": 1, "custom_id": "b", "prediction": [{"class": "3", "score": 0.5}]}]),
    )
    with service.client() as darkroom:
        results = darkroom.jobs.results("job_1", page_size=1)
        assert next(results).custom_id == "a"
        assert len(service.requests) == 1
        (second,) = results
    assert second.prediction is not None
    assert second.prediction[0].name == "3"
    assert [each.url.params.get("after") for each in service.requests] == [None, "o.0"]


def test_unknown_fields_of_an_answer_are_tolerated_and_kept(service):
    service.on("GET /v1/jobs/job_1", answer(job(colour="green")))
    with service.client() as darkroom:
        found = darkroom.jobs.get("job_1")
    assert found.raw["colour"] == "green"
    assert found.counts.succeeded == 4
    assert found.seconds == 2.0


def test_address_comes_from_arguments_then_environment_then_the_nearest_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "client.json").write_text('{"url": "http://127.0.0.1:9", "key": "dk_file"}')
    env = {"DARKROOM_DATA": str(data)}
    assert find_address(environ=env, home=tmp_path).key == "dk_file"
    named = find_address(environ={**env, "DARKROOM_URL": "http://h/", "DARKROOM_API_KEY": "k"})
    assert (named.url, named.key) == ("http://h", "k")
    assert find_address("http://x", "y", environ=env).url == "http://x"
    assert find_address(environ={}, home=tmp_path).url == "http://127.0.0.1:8080"


def test_key_of_a_file_is_never_sent_to_another_address(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "client.json").write_text('{"url": "http://127.0.0.1:9", "key": "dk_file"}')
    env = {"DARKROOM_DATA": str(tmp_path)}
    assert find_address("http://elsewhere", environ=env, home=tmp_path).key is None
    assert find_address("http://127.0.0.1:9", environ=env, home=tmp_path).key == "dk_file"


def test_what_a_user_typed_stays_one_part_of_the_road(service):
    with service.client() as darkroom, pytest.raises(ApiError) as caught:
        darkroom.jobs.get("../keys?x=1\n")
    assert caught.value.status == 404
    (request,) = service.requests
    assert request.url.raw_path == b"/v1/jobs/..%2Fkeys%3Fx%3D1%0A"


def test_links_to_this_machine_go_past_a_proxy_of_the_environment(service, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    sent = []

    class Store(BaseHTTPRequestHandler):
        def do_PUT(self):
            sent.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("ETag", '"e"')
            self.end_headers()

        def log_message(self, *_words):
            pass

    with HTTPServer(("127.0.0.1", 0), Store) as server, Darkroom(URL, KEY) as darkroom:
        worker = threading.Thread(target=server.handle_request, daemon=True)
        worker.start()
        etag = darkroom.transport.put_link(f"http://127.0.0.1:{server.server_port}/part", b"abc")
        worker.join()
    assert (etag, sent) == ("e", [b"abc"])
