"""Families: planning, unpacking, exporting and steering jobs while their workers die."""

from __future__ import annotations

import http.client
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from app.jobs.states import JobState
from tests.faults.crew import Orders
from tests.faults.families import family
from tests.faults.kills import slow
from tests.faults.oracle import Accepted
from tests.faults.plan import PlannedFault
from tests.faults.trial import Trial

_IO_POINTS = ("after_claim", "before_commit", "inside_commit", "after_commit", "before_ack")
_STEERED = frozenset({JobState.SUCCEEDED, JobState.CANCELLED, JobState.EXPIRED})


def _io_faults(trial: Trial, count: int) -> list[PlannedFault]:
    faults = []
    for _ in range(count):
        point = trial.rng.choice(_IO_POINTS)
        act = "kill_soon" if point == "inside_commit" else "kill"
        faults.append(PlannedFault(point, act, trial.rng.randint(1, 3)))  # type: ignore[arg-type]
    return faults


@family()
def kill_planner(trial: Trial) -> None:
    """kill -9 of the worker that cuts manifests into chunks, part by part."""
    trial.muster(Orders(plan=trial.plans("io", _io_faults(trial, 10)), renamed=0.5))
    # More than one part of a plan, so that one goes on in the middle.
    trial.load(40_000, 6)
    trial.wait_for_end()


@family(quick=True)
def kill_ingest_and_export(trial: Trial) -> None:
    """kill -9 of the worker that unpacks an archive, then of the one that writes the export."""
    orders = Orders(
        plan=trial.plans("io", _io_faults(trial, trial.size(10, 3))),
        variables={"io": {"DARKROOM_SHARD_ITEMS": "200"}},
        renamed=0.5,
    )
    trial.muster(orders)
    pictures = trial.pictures(trial.size(4_000, 500))
    upload = trial.upload(trial.archive(pictures), pictures)
    trial.wait_for_end()
    source = trial.submit_upload(upload, pictures)
    trial.wait_for_end()
    orders.plan = trial.plans("io", _io_faults(trial, trial.size(8, 2)))
    trial.stage.crew.muster(inference=2, io=1, dispatcher=1)
    exports = [trial.export(source) for _ in range(trial.size(4, 1))]
    trial.wait_for_end()
    for export in exports:
        trial.require_export(source, export)


@family()
def steer_jobs(trial: Trial) -> None:
    """Cancel, pause, resume and deadlines at random while workers die: the counts still sum."""
    trial.recovery_limit = math.inf
    trial.muster(slow(trial))
    loads = [trial.pictures(trial.rng.randint(200, 2_000)) for _ in range(16)]

    def submit(number: int) -> Accepted:
        body: dict[str, Any] = {}
        if number % 4 == 0:
            soon = datetime.now(UTC) + timedelta(seconds=trial.rng.uniform(3, 10))
            body["deadline"] = soon.isoformat()
        return trial.submit(loads[number], ends=_STEERED, **body)

    strikes = threading.Thread(
        target=trial.strike_until_done, args=("inference", 10), kwargs={"between": (0.3, 1.0)}
    )
    with ThreadPoolExecutor(2) as clients:
        jobs = list(clients.map(submit, range(len(loads))))
    strikes.start()
    for _ in range(40):
        if trial.is_over():
            break
        job = trial.rng.choice(jobs)
        verb = trial.rng.choice(("pause", "resume", "resume", "pause", "cancel"))
        trial.made[verb] += _steer(trial, job, verb)
        trial.pause(0.1, 0.3)
    for job in jobs:
        _steer(trial, job, "resume")
    strikes.join()
    trial.wait_for_end()


def _steer(trial: Trial, job: Accepted, verb: str) -> bool:
    """Ask for it over HTTP; False where it came too late."""
    connection = http.client.HTTPConnection("127.0.0.1", trial.stage.api.port, timeout=15)
    try:
        headers = {"Authorization": f"Bearer {trial.key_of(job)}"}
        connection.request("POST", f"/v1/jobs/{job.job_id}/{verb}", headers=headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if status not in (200, 202, 409):
        raise AssertionError(f"{verb} was answered with {status}")
    return status != 409
