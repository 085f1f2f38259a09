"""Redis belongs to nobody: who writes to it gets nothing done, and who listens learns nothing."""

from __future__ import annotations

import base64
import json
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
import redis

from app.db.session import Database
from app.errors import UnavailableError
from app.jobs.states import ChunkState, JobState
from app.queues.address import redis_py_url
from app.queues.celery import make_celery
from app.queues.names import Queue
from app.queues.publish import Bell, ring
from app.settings import Settings
from app.stack.valkey import LocalValkey
from tests.factories import make_tenant
from tests.jobs import look_at_chunk, make_job
from tests.security.tls import Authority
from tests.service import Service, WorkerHandle, running_service
from tests.tls_door import TlsDoor
from tests.unit.archives import image_bytes, make_zip

USER, PASSWORD = "darkroom", "a password: with / signs? & more"
#: As docs/operations.md says.
RIGHTS = ("~*", "&*", "+@all", "-@admin", "-@dangerous", "+info")


class Door(NamedTuple):
    """Redis over TLS, as a user of few rights; its authority's certificate."""

    port: int
    authority: Path
    redis: redis.Redis

    def url(self, *, host: str = "127.0.0.1", password: str = PASSWORD, trust: bool = True) -> str:
        # Kombu takes connections that differ in TLS alone for the same one: another database then.
        rest = f"0?ssl_ca_certs={quote(str(self.authority))}" if trust else "1"
        return f"rediss://{USER}:{quote(password, safe='')}@{host}:{self.port}/{rest}"


@pytest.fixture(scope="module")
def door(valkey: LocalValkey, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    with (
        redis.Redis.from_url(valkey.client_url) as owner,
        TlsDoor(valkey.socket_path, authority.serve("127.0.0.1")) as way,
    ):
        owner.execute_command("ACL", "SETUSER", USER, "reset", "on", f">{PASSWORD}", *RIGHTS)
        owner.execute_command("ACL", "LOG", "RESET")
        try:
            yield Door(way.port, authority.file(), owner)
        finally:
            owner.execute_command("ACL", "DELUSER", USER)


@pytest.fixture(scope="module")
def guarded(settings: Settings, door: Door) -> Settings:
    """Settings that reach Redis through the door."""
    url = type(settings.redis_url)(door.url())
    return settings.model_copy(update={"redis_url": url})


@pytest.fixture(scope="module")
def service(
    guarded: Settings, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    with running_service(guarded, database, tmp_path_factory.mktemp("broker")) as service:
        yield service


@pytest.fixture(scope="module")
def worker(service: Service) -> WorkerHandle:
    return service.start_worker("io")


def assert_works(service: Service, worker: WorkerHandle, tenant_id: str) -> None:
    job = service.ingest(tenant_id, make_zip({"a.png": image_bytes("PNG")}))
    assert service.wait_for_end(tenant_id, job.id).state == JobState.SUCCEEDED
    assert worker.process.poll() is None


def test_bells_ring_over_tls_for_a_user_of_few_rights(
    service: Service, worker: WorkerHandle, tenant_id: str, door: Door
) -> None:
    assert_works(service, worker, tenant_id)
    denied = door.redis.execute_command("ACL", "LOG")
    assert not [entry for entry in denied if entry[b"username"] == USER.encode()]
    with redis.Redis.from_url(door.url()) as user:
        for forbidden in (["FLUSHALL"], ["CONFIG", "GET", "*"], ["KEYS", "*"], ["SHUTDOWN"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                user.execute_command(*forbidden)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param(lambda door: door.url(trust=False), id="no_trust"),
        pytest.param(lambda door: door.url(host="localhost"), id="another_name"),
        pytest.param(lambda door: door.url(password="a guess"), id="wrong_password"),
    ],
)
def test_redis_that_proves_nothing_or_that_we_cannot_prove_ourselves_to_gets_no_bell(
    settings: Settings, door: Door, url: Any
) -> None:
    address = url(door)
    strange = settings.model_copy(update={"redis_url": type(settings.redis_url)(address)})
    celery = make_celery(strange)
    try:
        with pytest.raises(UnavailableError) as refused:
            ring(celery, [Bell("chk_1", "ten_1", "plan", "io")])
        assert refused.value.code == "queue_unavailable"
        assert "guess" not in str(refused.value)
    finally:
        celery.close()
    with redis.Redis.from_url(redis_py_url(address)) as client, pytest.raises(redis.RedisError):
        client.ping()


class Bomb:
    """Leaves a mark where its pickle is opened."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def message(
    body: bytes, *, content_type: str = "application/json", task: Any = "darkroom.plan", **more: Any
) -> bytes:
    """A message as Celery's producers push it to a list of Redis."""
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if "json" in content_type else "binary",
            "content-type": content_type,
            "headers": {"lang": "py", "task": task, "id": "x", "root_id": "x", **more},
            "properties": {
                "correlation_id": "x",
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": "io"},
                "body_encoding": "base64",
                "delivery_tag": "x",
            },
        }
    ).encode()


def call(*arguments: Any, **words: Any) -> bytes:
    """The body of a call."""
    return json.dumps([arguments, words, {"callbacks": None}]).encode()


def test_whatever_is_pushed_to_redis_runs_nothing_and_the_worker_goes_on(
    service: Service, worker: WorkerHandle, tenant_id: str, door: Door, tmp_path: Path
) -> None:
    mark = tmp_path / "opened"
    opened = pickle.dumps(([], {}, Bomb(mark)))
    _, (chunk,) = make_job(service.db, tenant_id, 3)
    stranger = make_tenant(service.db)
    bell = {"chunk_id": chunk, "tenant_id": tenant_id}
    forged = [
        b"",
        b"\xff\x00 no json",
        b"[" * 100_000,
        b"{}",
        b"[]",
        b"null",
        json.dumps({"body": "x", "headers": {}, "properties": {}}).encode(),
        message(b"not json"),
        message(call(), task="darkroom.none"),
        message(call(), task="os.system"),
        message(call(), task="celery.backend_cleanup"),
        message(call(), task=None),
        message(call(), task=["darkroom.plan"]),
        message(opened, content_type="application/x-python-serialize"),
        message(opened, content_type="application/x-yaml"),
        message(opened, content_type="application/json"),
        message(b"!!python/object/apply:os.system ['true']", content_type="application/x-yaml"),
        message(call("x" * 5_000_000, "y")),
        message(call(chunk_id="chk\0", tenant_id=tenant_id)),
        message(call(chunk_id=chunk, tenant_id="ten\0")),
        message(call(chunk_id={"$gt": ""}, tenant_id=["x"])),
        message(call(chunk_id=f"{chunk}' OR true --", tenant_id=tenant_id)),
        # Somebody else's chunk under one's own name, and under none.
        message(call(chunk_id=chunk, tenant_id=stranger)),
        message(call(chunk_id=chunk, tenant_id="")),
        # A chunk to recognise, at the door of those that plan.
        message(call(**bell)),
        message(call(**bell), eta="2020-01-01T00:00:00", expires="never", retries=-1),
        message(call(**bell), eta="no time at all"),
        message(call(**bell, more="x")),
    ]
    for one in forged:
        door.redis.lpush(Queue.IO.value, one)
    assert_works(service, worker, tenant_id)
    row = look_at_chunk(service.db, chunk)
    assert (row.state, row.attempt) == (ChunkState.PENDING, 0)
    assert not mark.exists()
    assert door.redis.llen(Queue.IO.value) == 0


def test_who_listens_to_redis_hears_ids_and_nothing_else(
    settings: Settings, valkey: LocalValkey, door: Door
) -> None:
    celery = make_celery(settings)
    heard: list[bytes] = []
    began = threading.Event()
    try:
        with redis.Redis.from_url(valkey.client_url) as client, client.monitor() as monitor:

            def listen() -> None:
                began.set()
                for command in monitor.listen():
                    heard.append(command["command"].encode())
                    if "LPUSH" in command["command"]:
                        return

            thread = threading.Thread(target=listen, daemon=True)
            thread.start()
            assert began.wait(10)
            ring(celery, [Bell("chk_heard", "ten_heard", "finetune", "training")])
            thread.join(10)
            client.delete(Queue.TRAINING.value)
    finally:
        celery.close()
    (pushed,) = [one for one in heard if b"LPUSH" in one]
    text = pushed.split(b" ", 2)[2].decode()
    sent = json.loads(text.encode().decode("unicode_escape").strip('"'))
    assert json.loads(base64.b64decode(sent["body"]))[:2] == [
        [],
        {"chunk_id": "chk_heard", "tenant_id": "ten_heard"},
    ]
    secrets = [settings.key_pepper, settings.database_url, settings.aws_secret_access_key]
    for secret in filter(None, secrets):
        assert secret.get_secret_value() not in text
