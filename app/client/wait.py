"""Waits for a job by long polls, over restarts of the service."""

from __future__ import annotations

from collections.abc import Callable

from app.client.errors import OUTAGE_SECONDS, WAIT_TIMEOUT, ApiError
from app.client.transport import Transport, back_off, road
from app.client.values import Job

_HOLD_SECONDS = 20.0
#: Room for the answer to a long poll to travel.
_SLACK_SECONDS = 15.0
_LEAST_PAUSE_SECONDS = 0.1


def wait_for_job(
    transport: Transport,
    job_id: str,
    *,
    timeout: float | None,
    on_change: Callable[[Job], None] | None,
    now: Callable[[], float],
) -> Job:
    """The job once it is over; see :meth:`app.client.jobs.Jobs.wait`."""
    begun = heard = now()
    job: Job | None = None
    etag = ""
    while True:
        left = float("inf") if timeout is None else timeout - (now() - begun)
        if job is not None and left <= 0:
            raise ApiError(
                f"{job.id} is still {job.state} after {timeout:g} s; it goes on",
                code=WAIT_TIMEOUT,
            )
        # The first answer comes at once, so that there is something to show.
        hold = int(max(1.0, min(_HOLD_SECONDS, left))) if job else 0
        asked = now()
        try:
            answer = transport.call(
                "GET",
                road("jobs", job_id),
                query={"wait": hold or None},
                headers={"If-None-Match": etag} if etag else None,
                timeout_seconds=hold + _SLACK_SECONDS,
            )
        except ApiError as error:
            if job is None or not error.may_pass or now() - heard > OUTAGE_SECONDS:
                raise
            transport.pause(back_off(4))
            continue
        heard = now()
        changed = answer.status != 304 and (not etag or answer.headers.get("ETag") != etag)
        if changed:
            job = Job.from_dict(answer.json())
            etag = answer.headers.get("ETag", "")
            if on_change is not None:
                on_change(job)
            if job.is_over:
                return job
        # "Nothing new" before its time means that all places for waiting are taken.
        if not changed and heard - asked < hold / 2:
            transport.pause(answer.retry_after_seconds or 1.0)
        else:
            transport.pause(_LEAST_PAUSE_SECONDS)
