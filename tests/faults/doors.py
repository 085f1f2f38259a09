"""Families: what stands between the client and the workers: API, dispatchers, bells."""

from __future__ import annotations

import json
import math
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from app.queues.celery import make_celery
from app.queues.names import QUEUE_OF_TASK, Queue
from app.queues.publish import Bell, ring
from tests.faults.crew import Orders
from tests.faults.families import family
from tests.faults.kills import slow
from tests.faults.plan import Plan, PlannedFault
from tests.faults.trial import Trial


@family()
def kill_dispatcher(trial: Trial) -> None:
    """Three dispatchers at once, each sweeping, and kill -9 of one after the other."""
    trial.recovery_limit = math.inf
    trial.muster(slow(trial), dispatcher=3)
    trial.load(16_000, 6)
    strikes = threading.Thread(
        target=trial.strike_until_done, args=("dispatcher", 24), kwargs={"between": (0.1, 0.4)}
    )
    strikes.start()
    # Ended leases give the sweepers something to free at the same time.
    trial.strike_until_done("inference", 6, between=(0.5, 1.0))
    trial.wait_for_end()
    strikes.join()


@family(quick=True)
def forge_bells(trial: Trial) -> None:
    """Bells that are doubled, of another tenant, of nothing, of another task, and no JSON."""
    trial.muster(slow(trial))
    trial.load(trial.size(10_000, 800), 4)
    celery = make_celery(trial.stage.settings)
    wanted = trial.size(120, 15)
    while trial.made.total() < wanted and not trial.is_over():
        for chunk_id, tenant_id, task in trial.open_chunks(10):
            queue = QUEUE_OF_TASK[task]
            other = trial.rng.choice(trial.callers).tenant_id
            wrong = "plan" if task == "predict" else "export"
            bells = [
                Bell(chunk_id, tenant_id, task, queue),
                Bell(chunk_id, other, task, queue),
                Bell("chk_" + "0" * 26, tenant_id, task, queue),
                Bell(chunk_id, tenant_id, wrong, QUEUE_OF_TASK[wrong]),
                Bell("'; DROP TABLE items; --", "\x00", task, queue),
            ]
            ring(celery, trial.rng.sample(bells, 2))
            trial.made["forged bell"] += 2
        trial.pause(0.05, 0.2)
    trial.wait_for_end()
    celery.close()


@family()
def garble_bells(trial: Trial) -> None:
    """Messages in Valkey that Celery itself cannot read."""
    trial.muster(slow(trial))
    trial.load(4_000, 3)
    garbage = ["", "{", "[]", "null", '{"body": 1}', "\x00\xff", json.dumps({"body": "e30="})]
    with trial.stage.redis() as redis:
        for text in garbage:
            redis.lpush(trial.rng.choice(list(Queue)[::2]).value, text)
            trial.made["garbage in a queue"] += 1
            trial.pause(0.2, 0.4)
    trial.wait_for_end()


@family(quick=True)
def kill_api_before_reply(trial: Trial) -> None:
    """The API dies when a submit is committed and not answered; the client asks again."""
    trial.muster()
    nth = trial.size(9, 6)
    plan = Plan(
        faults=(PlannedFault("before_reply", "kill", nth),), ledger=str(trial.stage.ledger.path)
    )
    trial.stage.api.kill()
    trial.stage.api.start(plan)
    unheard = trial.stage.client.unheard
    loads = [trial.pictures(trial.size(60, 20)) for _ in range(trial.size(90, 14))]
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(trial.submit, loads))
    trial.require(trial.stage.client.unheard > unheard, "every submit was answered at once")
    trial.stage.api.kill()
    trial.stage.api.start()
    trial.wait_for_end()


@family()
def kill_api(trial: Trial) -> None:
    """kill -9 of the whole API, master and all, while clients submit."""
    trial.muster()
    over = threading.Event()

    def strike() -> None:
        while trial.made["kill of the API"] < 5 and not over.is_set():
            trial.pause(0.2, 0.8)
            trial.stage.api.kill()
            trial.made["kill of the API"] += 1
            trial.stage.api.start()

    strikes = threading.Thread(target=strike)
    strikes.start()
    loads = [trial.pictures(60) for _ in range(80)]
    with ThreadPoolExecutor(3) as clients:
        list(clients.map(trial.submit, loads))
    over.set()
    strikes.join()
    trial.wait_for_end()


@family()
def kill_api_in_upload(trial: Trial) -> None:
    """The API dies in the middle of an upload; sent again, it is there once and whole."""
    trial.muster(Orders(variables={"io": {"DARKROOM_SHARD_ITEMS": "300"}}))
    for _ in range(4):
        pictures = trial.pictures(800)
        archive = trial.archive(pictures)
        _send_half(trial, archive)
        upload = trial.upload(archive, pictures)
        trial.wait_for_end()
        trial.submit_upload(upload, pictures)
    trial.wait_for_end()


def _send_half(trial: Trial, archive: bytes) -> None:
    """Announce the archive, send half of it, and kill the process that reads."""
    head = (
        f"POST /v1/uploads HTTP/1.1\r\nHost: darkroom\r\nContent-Length: {len(archive)}\r\n"
        f"Authorization: Bearer {trial.callers[0].key}\r\n\r\n"
    )
    address = ("127.0.0.1", trial.stage.api.port)
    with suppress(OSError), socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head.encode() + archive[: len(archive) // 2])
        trial.wait(lambda: trial.count("uploads", "state = 'receiving'"), "the upload has begun")
        pid = trial.stage.api.kill_worker()
        trial.made["kill of the API in an upload"] += pid is not None
        connection.recv(1)


@family()
def stop_all(trial: Trial) -> None:
    """SIGTERM and SIGKILL of every process at once, as when a machine is switched off."""
    trial.recovery_limit = math.inf
    trial.muster(slow(trial), inference=2, io=1, dispatcher=2)
    trial.load(12_000, 4)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
        trial.pause(0.5, 1.5)
        for role in ("inference", "io", "dispatcher"):
            for _ in trial.stage.crew.living(role):
                trial.stage.crew.strike(role, number)
    trial.wait_for_end()
