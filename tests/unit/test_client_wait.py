import httpx2
import pytest

from app.client import ApiError
from app.client.jobs import Jobs
from tests.unit.fake_service import answer, job, problem

ROAD = "GET /v1/jobs/job_1"


class Clock:
    """A clock that moves as the client pauses, and while the service holds a request."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def pause(self, seconds: float) -> None:
        self.seconds += seconds

    def held(self, reply, seconds: float):
        def give(_request):
            self.seconds += seconds
            return reply

        return give


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def jobs(service, clock):
    darkroom = service.client()
    darkroom.transport.pause = clock.pause
    return Jobs(darkroom.transport, now=clock.now)


def test_wait_holds_one_request_and_sees_each_change_once(service, clock, jobs):
    service.on(
        ROAD,
        answer(job("queued"), ETag='"1"'),
        clock.held(httpx2.Response(304, headers={"ETag": '"1"'}), 20),
        clock.held(answer(job("running"), ETag='"2"'), 3),
        answer(job(), ETag='"3"'),
    )
    seen = []
    done = jobs.wait("job_1", on_change=lambda each: seen.append(each.state))
    assert done.state == "succeeded"
    assert seen == ["queued", "running", "succeeded"]
    assert [each.headers.get("If-None-Match") for each in service.requests] == [
        None,
        '"1"',
        '"1"',
        '"2"',
    ]
    assert [each.url.params.get("wait") for each in service.requests] == [None, "20", "20", "20"]


def test_wait_honours_retry_after_where_no_place_to_wait_is_left(service, clock, jobs):
    full = httpx2.Response(304, headers={"ETag": '"1"', "Retry-After": "7"})
    service.on(ROAD, answer(job("running"), ETag='"1"'), full, answer(job(), ETag='"2"'))
    jobs.wait("job_1")
    assert 7 <= clock.seconds < 8


def test_wait_survives_a_restart_of_the_service(service, jobs):
    away = [httpx2.ConnectError("refused")] * 12
    service.on(
        ROAD,
        answer(job("running"), ETag='"1"'),
        *away,
        problem(503, "unavailable", "starting"),
        answer(job(), ETag='"2"'),
    )
    assert jobs.wait("job_1").state == "succeeded"


def test_wait_gives_up_on_a_service_that_stays_away(service, clock, jobs):
    service.on(ROAD, answer(job("running"), ETag='"1"'), httpx2.ConnectError("refused"))
    with pytest.raises(ApiError) as caught:
        jobs.wait("job_1")
    assert caught.value.code == "unreachable"
    assert clock.seconds > 300


def test_wait_stops_at_its_timeout_and_says_that_the_job_goes_on(service, clock, jobs):
    nothing_new = httpx2.Response(304, headers={"ETag": '"1"'})
    service.on(ROAD, answer(job("running"), ETag='"1"'), clock.held(nothing_new, 5))
    with pytest.raises(ApiError, match="still running after 12 s") as caught:
        jobs.wait("job_1", timeout=12)
    assert caught.value.code == "wait_timeout"


def test_wait_for_an_unknown_job_is_refused_at_once(service, jobs):
    service.on(ROAD, problem(404, "job_not_found", "no job job_1"))
    with pytest.raises(ApiError) as caught:
        jobs.wait("job_1")
    assert caught.value.code == "job_not_found"
