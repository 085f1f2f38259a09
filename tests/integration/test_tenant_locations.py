"""From where a tenant may read: what the operator says, and what the tenant sees of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from app.audit.read import list_entries
from app.cli.main import app as commands
from app.cli.security_parts import check_locations, who_reads_others
from app.db.session import Database
from app.locations import ANYWHERE, parse_locations
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.locations import set_locations
from app.tenants.tables import Tenant
from tests.api_client import Api, make_app, make_key
from tests.factories import make_tenant
from tests.service import environment

COMMON = "s3://common/"


@pytest.fixture
def name(
    database: Database, settings: Settings, tenant_id: str, monkeypatch: pytest.MonkeyPatch
) -> str:
    """The tenant's name, in an environment that allows ``s3://common/`` to all."""
    for variable, value in environment(settings, input_locations=COMMON).items():
        monkeypatch.setenv(variable, value)
    with database.system() as session:
        return session.get_one(Tenant, tenant_id).name


def run(*words: str) -> Any:
    return CliRunner().invoke(commands, ["tenants", "locations", *words])


def read(*words: str) -> Any:
    done = run(*words, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_command_shows_and_sets_locations_and_the_audit_log_tells_it(
    database: Database, tenant_id: str, name: str
) -> None:
    unset = {"name": name, "input_locations": [COMMON], "is_own": False}
    assert read(name) == unset
    own = ["s3://photos/a/", "s3://photos/b/"]
    shown = read(name, "--allow", "s3://photos/a", "--allow", "s3://photos/b/")
    assert shown == read(name) == {"name": name, "input_locations": own, "is_own": True}
    assert read(name, "--any")["input_locations"] == ["*"]
    assert read(name, "--none") == {"name": name, "input_locations": [], "is_own": True}
    assert "nowhere: images come by upload alone" in run(name).stdout
    assert read(name, "--default") == unset
    with database.system() as session:
        found, _ = list_entries(session, tenant_id, action="tenant.locations_changed")
    said: list[Any] = [None, [], ["*"], own]
    assert [(each.actor, each.details) for each in found] == [
        ("operator", {"input_locations": words}) for words in said
    ]


@pytest.mark.parametrize(
    ("words", "exit_code", "told"),
    [
        (["--any", "--none"], 2, "say one of"),
        (["--default", "--allow", "s3://photos/"], 2, "say one of"),
        (["--allow", "photos"], 1, "must begin with s3://"),
        (["--allow", "s3://photos/*"], 1, "takes no '*'"),
        (["--allow", ""], 1, "must begin with s3://"),
    ],
)
def test_what_is_no_location_changes_nothing(
    name: str, words: list[str], exit_code: int, told: str
) -> None:
    done = run(name, *words)
    assert (done.exit_code, told in done.output) == (exit_code, True), done.output
    assert read(name)["is_own"] is False


def test_unknown_tenant_is_told(name: str) -> None:
    done = run(f"{name}-2", "--any")
    assert (done.exit_code, "there is no tenant" in done.output) == (1, True)


def test_tenant_sees_from_where_it_may_read_and_its_own_come_before_the_setting(
    database: Database, settings: Settings, objects: ObjectStore, tenant_id: str
) -> None:
    app = make_app(settings.model_copy(update={"input_locations": COMMON}), objects)
    api = Api(app, make_key(database, settings, tenant_id))

    assert api("GET", "/v1/quotas").json["input_locations"] == [COMMON]
    with database.system() as session:
        set_locations(session, tenant_id, parse_locations(["s3://photos/"]))
    assert api("GET", "/v1/quotas").json["input_locations"] == ["s3://photos/"]
    with database.system() as session:
        set_locations(session, tenant_id, parse_locations([]))
    assert api("GET", "/v1/quotas").json["input_locations"] == []


def test_doctor_warns_of_tenants_that_may_read_each_others_buckets(
    database: Database, settings: Settings, tenant_id: str
) -> None:
    def look(**more: Any) -> str:
        checks = check_locations(settings.model_copy(update=more))
        return " ".join(f"{check.verdict} {check.detail}" for check in checks)

    make_tenant(database)
    assert "warn of " in look()
    with database.system() as session:
        set_locations(session, tenant_id, ANYWHERE)
    assert "may read every bucket" in look(input_locations="none")
    assert "warn DARKROOM_BUCKET" in look(bucket="ours--x-s3")


@pytest.mark.parametrize(
    ("tenants", "default", "expected"),
    [
        ({"one": None}, "*", []),
        ({"one": ["*"]}, "none", []),
        ({"one": None, "two": None}, "*", ["one", "two"]),
        ({"one": None, "two": None}, COMMON, []),
        ({"one": [COMMON], "two": None}, "*", ["two"]),
        ({"one": [], "two": ["*"]}, "none", ["two"]),
    ],
)
def test_one_tenant_alone_has_no_others_to_read(
    settings: Settings, tenants: dict[str, Any], default: str, expected: list[str]
) -> None:
    changed = settings.model_copy(update={"input_locations": default})
    assert who_reads_others(tenants, changed) == expected
