"""A job reads from where its tenant may, by whatever it names the place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import update

from app.db.session import Database
from app.jobs.items import JobItem, pack_items
from app.jobs.states import JobState
from app.jobs.tables import Chunk
from app.locations import ANYWHERE, Locations, parse_locations
from app.queues.names import Queue
from app.settings import Settings
from app.storage.keys import shard
from app.storage.s3 import ObjectStore
from app.uploads.tables import UploadKind
from tests.doors import ring, worker_inside
from tests.factories import add_upload, add_version, entry
from tests.retries import predict_chunks
from tests.security.places import World
from tests.sharing import PHOTOS, make_side, picture, put_pictures
from tests.unit.pictures import small_recogniser
from worker.pipeline.values import ItemResult
from worker.process import WorkerProcess
from worker.tasks import predict
from worker.tasks.allowed import put_between, refuse_items

NOWHERE = Locations(())


@pytest.fixture(scope="module")
def process(settings: Settings, database: Database) -> Iterator[WorkerProcess]:
    """The inside of a worker that serves every queue."""
    slim = settings.model_copy(update={"decode_processes": 1, "heartbeat_seconds": 0.1})
    process = worker_inside(slim, Queue.INFERENCE, database)
    yield process
    process.decoder.close()


@pytest.fixture
def world(
    app: Any,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    process: WorkerProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    side = make_side(app, settings, database)
    victim = make_side(app, settings, database).tenant_id
    with database.tenant(side.tenant_id) as session:
        add_version(session, side.tenant_id)
    world = World(database, objects, process, side, victim)
    for prefix in (side.tenant_id, victim):
        put_pictures(objects, prefix, 2)
    recogniser = small_recogniser()
    monkeypatch.setattr(predict, "warm_recogniser", lambda *_: recogniser)
    really_open, really_ask = process.store.open, process.store.bucket_exists

    def watched_open(bucket: str, key: str, *words: Any) -> Any:
        world.opened.append(f"s3://{bucket}/{key}")
        return really_open(bucket, key, *words)

    def watched_ask(bucket: str) -> bool:
        world.asked.append(bucket)
        return really_ask(bucket)

    monkeypatch.setattr(process.store, "open", watched_open)
    monkeypatch.setattr(process.store, "bucket_exists", watched_ask)
    world.allow(parse_locations([world.mine]))
    return world


#: What a tenant may write that may read ``MINE`` alone, to get at what is not its own.
STRANGE = {
    "a neighbour": "OTHERS",
    "all of the bucket": f"s3://{PHOTOS}/",
    "the bucket": f"s3://{PHOTOS}",
    "another bucket": "s3://secret-scans/MINE/",
    "a bucket that begins alike": f"s3://{PHOTOS}-2/MINE/",
    "a prefix that begins alike": f"s3://{PHOTOS}/MINE2/",
    "its own without the slash": f"s3://{PHOTOS}/MINE",
    "an escaped slash": f"s3://{PHOTOS}/MINE%2fa/",
    "an escaped climb": f"s3://{PHOTOS}/MINE%2f..%2fOTHER/",
    "a slash more before it": f"s3://{PHOTOS}//MINE/",
    "another case": f"s3://{PHOTOS}/mINE/",
}


def filled(world: World, text: str) -> str:
    mine = world.side.tenant_id
    words = {
        "OTHERS": world.others,
        "OTHER": world.victim,
        "MINE": mine,
        "mINE": mine.capitalize(),
    }
    for word, value in words.items():
        text = text.replace(word, value)
    return text


@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE.keys())
def test_prefix_manifest_and_item_elsewhere_are_refused_before_there_is_a_job(
    world: World, text: str
) -> None:
    place = filled(world, text)
    inputs: dict[str, dict[str, Any]] = {
        "/input/prefix": {"prefix": place},
        "/input/manifest": {"manifest": f"{place.rstrip('/')}/list.jsonl"},
        "/input/items/1/key": {
            "items": [{"key": f"{world.mine}0.png"}, {"key": f"{place.rstrip('/')}/x.png"}]
        },
    }
    if place.endswith(world.side.tenant_id):
        # With a name behind it, it is the tenant's own.
        inputs = {"/input/prefix": {"prefix": place}}
    for pointer, source in inputs.items():
        answer = world.submit(source)
        assert (answer.status_code, answer.json["code"]) == (403, "location_not_allowed")
        assert [fault["pointer"] for fault in answer.json["errors"]] == [pointer]
        assert f"allowed is {world.mine}" in answer.json["detail"]
    assert world.side.api("GET", "/v1/jobs").json["data"] == []
    assert world.audited() == [("POST /v1/jobs", {"code": "location_not_allowed"})]


def test_own_prefix_manifest_and_items_are_read(world: World) -> None:
    listed = world.put("lists/all.jsonl", json.dumps({"key": f"{world.side.tenant_id}/0.png"}))
    for source in (
        {"prefix": world.mine, "include": ["*.png"]},
        {"prefix": f"{world.mine}0"},
        {"manifest": listed},
        {"items": [{"key": f"{world.mine}1.png"}]},
    ):
        answer = world.submit(source)
        assert answer.status_code == 202, answer.text
        job = world.run(answer.json["id"])
        assert (job.state, job.failed) == (JobState.SUCCEEDED, 0), job.error


@pytest.mark.parametrize("climb", ["../OTHER/0.png", "a/../../OTHER/0.png", "./0.png", ".."])
def test_key_that_climbs_is_no_location(world: World, climb: str) -> None:
    place = filled(world, f"{world.mine}{climb}")
    for source in ({"prefix": place}, {"manifest": place}, {"items": [{"key": place}]}):
        answer = world.submit(source)
        assert (answer.status_code, answer.json["code"]) in (
            (422, "location_invalid"),
            (422, "input_invalid"),
        )


def test_escaped_climb_within_ones_own_prefix_is_the_key_as_it_is_written(world: World) -> None:
    key = f"{world.mine}%2e%2e/{world.victim}/0.png"
    job = world.run(world.submit({"items": [{"key": key}]}).json["id"])
    assert world.ends(job.id) == ["object_missing"]
    assert world.opened == [key]


def as_csv(keys: Sequence[str]) -> str:
    return "\n".join(["key,custom_id", *(f"{key},c{n}" for n, key in enumerate(keys))])


def as_jsonl(keys: Sequence[str]) -> str:
    return "\n".join(json.dumps({"key": key, "custom_id": f"c{n}"}) for n, key in enumerate(keys))


@pytest.mark.parametrize(("name", "write"), [("list.jsonl", as_jsonl), ("list.csv", as_csv)])
def test_line_of_a_manifest_that_lies_elsewhere_fails_alone_and_is_never_asked_for(
    world: World, name: str, write: Any
) -> None:
    keys = [
        f"{world.mine}0.png",
        f"{world.others}0.png",
        # A key of the manifest's bucket, and buckets of which one is not there.
        f"{world.victim}/1.png",
        "s3://secret-scans/0.png",
        f"{world.mine}1.png",
    ]
    manifest = world.put(name, write(keys))
    job = world.run(world.submit({"manifest": manifest}).json["id"])
    assert job.state == JobState.PARTIALLY_SUCCEEDED, job.error
    refused = "location_not_allowed"
    assert world.ends(job.id) == ["succeeded", refused, refused, refused, "succeeded"]
    assert world.opened == [manifest, keys[0], keys[-1]]
    assert set(world.asked) == {PHOTOS}
    shown = world.side.api("GET", f"/v1/jobs/{job.id}/errors").json["data"]
    assert [(each["custom_id"], each["error"]["code"]) for each in shown] == [
        ("c1", refused),
        ("c2", refused),
        ("c3", refused),
    ]


@pytest.mark.parametrize("kind", ["prefix", "manifest"])
def test_plan_refuses_what_was_taken_away_since_it_was_submitted(world: World, kind: str) -> None:
    manifest = world.put("list.jsonl", as_jsonl([f"{world.mine}0.png"]))
    place = world.mine if kind == "prefix" else manifest
    job_id = world.submit({kind: place}).json["id"]
    world.allow(parse_locations(["s3://elsewhere/"]))
    job = world.plan(job_id)
    assert job.state == JobState.FAILED
    assert job.error is not None
    assert job.error["code"] == "location_not_allowed"
    assert job.error["errors"][0]["pointer"] == f"/input/{kind}"
    assert world.opened == []


def test_items_that_were_planned_already_fail_once_their_place_is_taken_away(
    world: World,
) -> None:
    job_id = world.submit({"items": [{"key": f"{world.mine}{n}.png"} for n in (0, 1)]}).json["id"]
    assert world.plan(job_id).state == JobState.QUEUED
    world.allow(NOWHERE)
    for chunk in predict_chunks(world.db, job_id):
        ring(world.process, world.side.tenant_id, chunk, predict.predict_chunk)
    assert world.ends(job_id) == ["location_not_allowed"] * 2
    assert (world.look(job_id).state, world.opened) == (JobState.FAILED, [])


def test_retry_reads_nothing_by_references_of_a_time_when_it_was_allowed(world: World) -> None:
    world.allow(ANYWHERE)
    keys = [f"{world.mine}0.png", f"{world.others}missing.png", f"{world.others}0.png"]
    job_id = world.submit({"items": [{"key": key} for key in keys]}).json["id"]
    world.run(job_id)
    assert world.ends(job_id) == ["succeeded", "object_missing", "succeeded"]
    world.store.put(PHOTOS, f"{world.victim}/missing.png", b"there now")
    world.allow(parse_locations([world.mine]))
    world.opened.clear()
    again = world.side.api("POST", f"/v1/jobs/{job_id}/retry").json["id"]
    world.run(again)
    assert (world.ends(again), world.opened) == (["location_not_allowed"], [])


@pytest.mark.parametrize("weights", ["OTHERSnet.safetensors", "MINEnet.safetensors"])
def test_import_of_weights_names_no_object(world: World, weights: str) -> None:
    options = {"arch": "small_cnn", "classes": ["a", "b"], "weights": filled(world, weights)}
    body = {"kind": "import", "model": "net", "options": options}
    answer = world.side.api("POST", "/v1/jobs", json=body)
    assert (answer.status_code, answer.json["code"]) == (422, "request_invalid")
    with world.db.tenant(world.victim) as session:
        upload = add_upload(session, world.victim, kind=UploadKind.WEIGHTS)
    options["weights"] = upload.id
    assert world.side.api("POST", "/v1/jobs", json=body).json["code"] == "upload_not_found"


def test_services_own_bucket_stays_closed_whatever_is_allowed(
    world: World, settings: Settings
) -> None:
    own = f"s3://{settings.bucket}/tenants/{world.victim}/"
    alias = f"s3://{settings.bucket}-7f3q-s3alias/tenants/"
    for locations in (ANYWHERE, parse_locations([f"s3://{settings.bucket}/"])):
        world.allow(locations)
        for place, code in ((own, "bucket_refused"), (alias, "location_invalid")):
            assert world.submit({"prefix": place}).json["code"] == code
            assert world.submit({"manifest": f"{place}list.csv"}).json["code"] == code
            answer = world.submit({"items": [{"key": f"{place}x"}]})
            assert (answer.status_code, answer.json["code"]) == (422, "input_invalid")
    world.allow(ANYWHERE)
    manifest = world.put("list.jsonl", as_jsonl([f"{own}uploads/x", f"{alias}x"]))
    job = world.plan(world.submit({"manifest": manifest}).json["id"])
    assert [fault["line"] for fault in (job.error or {})["errors"]] == [1, 2]


def test_forged_reference_to_another_tenants_upload_is_not_read(
    world: World, settings: Settings
) -> None:
    """Who could write a chunk's row would get no further by it."""
    job_id = world.submit({"items": [{"key": f"{world.mine}0.png"}]}).json["id"]
    world.plan(job_id)
    world.allow(ANYWHERE)
    key = f"tenants/{world.victim}/uploads/upl_1/shards/000000.shard"
    forged = JobItem("x", settings.bucket, key, "x", 0, 4)
    (chunk,) = predict_chunks(world.db, job_id)
    with world.db.system() as session:
        session.execute(update(Chunk).where(Chunk.id == chunk).values(items=pack_items([forged])))
    ring(world.process, world.side.tenant_id, chunk, predict.predict_chunk)
    assert (world.ends(job_id), world.opened) == (["location_not_allowed"], [])


def test_uploads_serve_a_tenant_that_may_read_nowhere(world: World, settings: Settings) -> None:
    world.allow(NOWHERE)
    tenant_id = world.side.tenant_id
    with world.db.tenant(tenant_id) as session:
        image = entry(0)._replace(offset=0, length=len(picture(0)))
        upload = add_upload(session, tenant_id, [image])
    world.store.put(settings.bucket, shard(tenant_id, upload.id, 0), picture(0))
    job_id = world.submit({"upload": upload.id}).json["id"]
    assert world.run(job_id).state == JobState.SUCCEEDED, world.ends(job_id)
    refused = world.submit({"prefix": world.mine})
    assert (refused.status_code, "allowed is nowhere" in refused.json["detail"]) == (403, True)


def test_refused_items_stand_in_their_places_and_a_stopped_chunk_ends_before_a_gap(
    world: World,
) -> None:
    job_id = world.submit({"items": [{"key": f"{world.mine}0.png"}]}).json["id"]
    world.plan(job_id)
    (chunk,) = predict_chunks(world.db, job_id)
    leases = []
    ring(world.process, world.side.tenant_id, chunk, lambda _, held: leases.append(held.lease))
    (lease,) = leases
    items = [
        JobItem(str(n), PHOTOS, f"{owner}/{n}.png", str(n))
        for n, owner in enumerate([world.victim, *[world.side.tenant_id] * 2, world.victim])
    ]
    refused = refuse_items(world.process, lease, items)
    assert refused.keys() == {0, 3}
    answers = [ItemResult(1, prediction=[]), ItemResult(2, prediction=[])]
    for answered, ordinals in ((2, [0, 1, 2, 3]), (1, [0, 1]), (0, [0])):
        merged = put_between(lease, len(items), refused, answers[:answered])
        assert [result.ordinal for result in merged] == ordinals
        assert all((result.ordinal in refused) == bool(result.error) for result in merged)
