"""Objects lie under their tenant, whatever an id holds, and no input reads another tenant's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any, cast

import pytest

from app.db.session import Database
from app.errors import DarkroomError, InvalidInputError
from app.jobs.inputs import Fault, Found, read_input
from app.jobs.source import check_source
from app.locations import ANYWHERE, parse_location
from app.settings import Settings
from app.storage import keys
from app.storage.s3 import ObjectStore
from tests.factories import make_tenant
from tests.plans import BUCKET, all_items, put, run_plan, submit
from tests.unit.test_inputs import lease_over

OWN = "darkroom"
MAKERS: dict[str, Callable[..., str]] = {
    name: make
    for name, make in inspect.getmembers(keys, inspect.isfunction)
    if next(iter(inspect.signature(make).parameters), None) == "tenant_id"
}
#: What an id must not be: each would leave the tenant's prefix, or a line of a log.
EVIL = ["", ".", "..", "../ten_b", "a/b", "/", "a/../b", "..\\x", "\x00", "a\n", "é", "%2e%2e", "~"]


def words_of(make: Callable[..., str], **instead: Any) -> dict[str, Any]:
    """Good arguments, by the functions' own signatures."""
    good = {
        name: 7
        if parameter.annotation in ("int", "int | None")
        else f"{name.removesuffix('_id')}_1"
        for name, parameter in inspect.signature(make).parameters.items()
    }
    return {**good, **instead}


def test_every_function_that_makes_a_key_is_among_those_attacked() -> None:
    others = {"_segment"}
    own = {
        name
        for name, found in inspect.getmembers(keys, inspect.isfunction)
        if found.__module__ == keys.__name__
    }
    assert own - others == set(MAKERS)
    assert len(MAKERS) >= 9


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_key_begins_with_its_tenants_prefix(name: str) -> None:
    make = MAKERS[name]
    key = make(**words_of(make))
    assert key.startswith("tenants/tenant_1/")
    assert ".." not in key


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_id_leads_out_of_the_tenants_prefix(name: str, evil: str) -> None:
    make = MAKERS[name]
    for word, value in words_of(make).items():
        if isinstance(value, str):
            with pytest.raises(ValueError, match="cannot be part of an object key"):
                make(**words_of(make, **{word: evil}))
        else:
            with pytest.raises(ValueError, match="negative"):
                make(**words_of(make, **{word: -1}))


#: What a client may write where a location belongs, to get at the service's own bucket.
OWN_LOCATIONS = [
    f"s3://{OWN}/tenants/ten_b/uploads/",
    f"s3://{OWN}/",
    f"s3://{OWN}",
    f"s3://{OWN}//tenants/ten_b/",
]


def refusal(source: dict[str, Any]) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        # Refused before the database is asked anything.
        check_source(cast(Any, None), "ten_a", source, own_bucket=OWN, locations=ANYWHERE)
    return caught.value


@pytest.mark.parametrize("location", OWN_LOCATIONS)
def test_own_bucket_is_no_prefix(location: str) -> None:
    assert refusal({"prefix": location}).code == "bucket_refused"


def test_own_bucket_is_no_manifest_and_no_bucket_of_its_lines() -> None:
    own = f"s3://{OWN}/tenants/ten_b/jobs/job_1/artifacts/results.jsonl"
    assert refusal({"manifest": own}).code == "bucket_refused"
    beside = {"manifest": f"s3://{BUCKET}/list.jsonl", "bucket": OWN}
    assert refusal(beside).code == "bucket_refused"


def test_own_bucket_is_no_bucket_of_inline_items() -> None:
    items = [{"key": f"s3://{BUCKET}/a.png"}, {"key": f"s3://{OWN}/tenants/ten_b/x"}]
    error = refusal({"items": items})
    assert [fault["pointer"] for fault in error.errors] == ["/input/items/1/key"]


@pytest.mark.parametrize(
    "location",
    [
        "s3://DARKROOM/tenants/",
        "s3://darkroom./tenants/",
        "s3://Darkroom/tenants/",
        "s3://darkroom%2ftenants/x",
        "s3://./darkroom/x",
        "s3://../darkroom/x",
        "s3://user@darkroom/x",
        "s3://darkroom:80/x",
        "s3://dark\u00adroom/x",
        "S3://darkroom/x",
        "file:///etc/passwd",
        "http://127.0.0.1/x",
        f"s3://{BUCKET}/../{OWN}/tenants/ten_b/x",
        f"s3://{BUCKET}/a/../../{OWN}/tenants/ten_b/x",
        f"s3://{BUCKET}/./../{OWN}/x",
        f"s3://{BUCKET}/..",
        f"s3://{BUCKET}/.",
    ],
)
def test_location_that_may_mean_another_bucket_is_none(location: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_location(location)
    assert caught.value.code == "location_invalid"
    assert refusal({"prefix": location}).code == "location_invalid"


@pytest.mark.parametrize("key", ["a.b/c..d/.hidden/...", "..a/b..", ".well-known/x.png"])
def test_dots_within_names_are_no_harm(key: str) -> None:
    assert parse_location(f"s3://{BUCKET}/{key}").key == key


@pytest.fixture
def secret(objects: ObjectStore, settings: Settings, database: Database) -> str:
    """The key of another tenant's image, which lies where it should be."""
    objects.ensure_bucket(settings.bucket)
    objects.ensure_bucket(BUCKET)
    key = keys.shard(make_tenant(database), "upl_1", 0)
    objects.put(settings.bucket, key, b"secret")
    return key


def test_lines_of_a_manifest_get_no_object_of_another_tenant(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, secret: str
) -> None:
    wanted = [f"s3://{OWN}/{secret}", f"../{OWN}/{secret}", f"s3://{BUCKET}/../{OWN}/{secret}"]
    lines = "\n".join(json.dumps({"key": key}) for key in [*wanted, f"{tenant_id}/a.png"])
    source = {"manifest": put(objects, f"{tenant_id}/list.jsonl", lines)}
    job_id = submit(database, tenant_id, source)
    job = run_plan(database, objects, settings, tenant_id, job_id)
    assert job.state == "failed"
    assert [fault["line"] for fault in (job.error or {})["errors"]] == [1, 2, 3]
    assert all_items(database, job_id) == []


@pytest.mark.parametrize(
    "source",
    [
        {"prefix": f"s3://{OWN}/tenants/", "include": [], "exclude": []},
        {"manifest": f"s3://{OWN}/list.jsonl", "bucket": BUCKET},
        {"items": [{"key": f"s3://{OWN}/tenants/ten_b/x"}]},
    ],
    ids=lambda source: next(iter(source)),
)
def test_plan_refuses_the_own_bucket_whatever_was_submitted(source: dict[str, Any]) -> None:
    no_store = cast(ObjectStore, None)
    entries = list(
        read_input(cast(Database, None), no_store, OWN, lease_over(source), locations=ANYWHERE)
    )
    assert not any(isinstance(entry, Found) for entry in entries)
    assert "belongs to the service" in " ".join(
        entry.detail for entry in entries if isinstance(entry, Fault)
    )


@pytest.mark.parametrize("way", ["../", "a/../../", "/../"])
def test_not_even_the_store_walks_up_out_of_a_bucket(
    objects: ObjectStore, settings: Settings, secret: str, way: str
) -> None:
    with pytest.raises(DarkroomError):
        objects.read(BUCKET, f"{way}{settings.bucket}/{secret}")
    assert list(objects.list(BUCKET, f"{way}{settings.bucket}/")) == []
