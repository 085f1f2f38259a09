"""``darkroom tenants create`` and ``key``: a tenant comes from the command line, and back by it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import func, select
from typer.testing import CliRunner

from app.audit.actions import OPERATOR
from app.audit.keys import AuditKeys
from app.audit.read import list_entries
from app.audit.verify import verify_chain
from app.cli.exits import Exit
from app.cli.main import app as commands
from app.db.session import Database
from app.ids import new_id
from app.settings import Settings
from app.tenants.known_keys import KnownKeys
from app.tenants.tables import ApiKey, Tenant
from tests.api_client import Api
from tests.service import environment


@pytest.fixture
def name() -> str:
    """The name of a tenant that is not there."""
    return new_id("ten").replace("_", "-")


@pytest.fixture
def run(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs ``darkroom tenants`` in the environment of whoever runs the service."""
    for variable, value in environment(settings).items():
        monkeypatch.setenv(variable, value)

    def invoke(*words: str, code: Exit = Exit.DONE) -> Any:
        done = CliRunner().invoke(commands, ["tenants", *words])
        assert done.exit_code == code, done.output
        return done

    return invoke


def tenants_called(database: Database, name: str) -> int:
    with database.system() as session:
        found = session.scalar(select(func.count()).where(Tenant.name == name))
    return found or 0


def acts(database: Database, tenant_id: str) -> list[tuple[str, str, str | None]]:
    """Actor, act and target of what the audit log tells, in the order in which it was done."""
    with database.system() as session:
        entries, _ = list_entries(session, tenant_id)
    return [(entry.actor, entry.action, entry.target) for entry in reversed(entries)]


def test_tenant_made_by_the_command_works_with_the_key_that_was_shown(
    run: Any, name: str, app: Any
) -> None:
    shown = run("create", name)
    key_text = shown.stdout.strip()
    assert f"scope admin of {name}: keep it now, it is not shown again" in shown.stderr
    assert f"darkroom tenants locations {name}" in shown.stderr
    assert key_text not in shown.stderr
    api = Api(app, key_text)
    made = api("POST", "/v1/keys", json={"name": "robot", "scopes": ["jobs:read"]})
    assert made.status_code == 201, made.text
    names = [key["name"] for key in api("GET", "/v1/keys").json["data"]]
    assert names == ["robot", "first"]
    assert name in {row["name"] for row in json.loads(run("list", "--json").stdout)}


def test_tenant_whose_keys_are_all_gone_comes_back_by_a_further_key(
    run: Any, name: str, database: Database, settings: Settings
) -> None:
    first = json.loads(run("create", name, "--json").stdout)
    with database.system() as session:
        session.get_one(ApiKey, first["id"]).revoked_at = func.now()
    further = json.loads(run("key", name, "--json").stdout)
    assert further["tenant_id"] == first["tenant_id"]
    assert (further["tenant"], further["scopes"]) == (name, ["admin"])
    keys = KnownKeys(settings.key_pepper.get_secret_value())
    principal = keys.authenticate(database, further["text"])
    assert (principal.tenant_id, principal.key_id) == (first["tenant_id"], further["id"])


def test_audit_log_tells_of_both_with_the_operator_as_actor(
    run: Any, name: str, database: Database, settings: Settings
) -> None:
    first = json.loads(run("create", name, "--json").stdout)
    further = json.loads(run("key", name, "--json").stdout)
    tenant_id = first["tenant_id"]
    assert acts(database, tenant_id) == [
        (OPERATOR, "tenant.created", name),
        (OPERATOR, "key.created", first["id"]),
        (OPERATOR, "key.created", further["id"]),
    ]
    with database.system() as session:
        verdict = verify_chain(session, AuditKeys.from_settings(settings), tenant_id)
        entries, _ = list_entries(session, tenant_id)
    assert (verdict.fault, verdict.good + verdict.unchained) == (None, 3)
    told = json.dumps([entry.details for entry in entries])
    assert first["text"] not in told
    assert further["text"] not in told


def test_name_that_is_taken_is_refused_and_makes_no_key(
    run: Any, name: str, database: Database
) -> None:
    tenant_id = json.loads(run("create", name, "--json").stdout)["tenant_id"]
    before = acts(database, tenant_id)
    refused = run("create", name, code=Exit.FAILED)
    assert refused.stdout == ""
    assert "[tenant_exists]" in refused.stderr
    assert f"darkroom tenants key {name}" in refused.stderr
    assert acts(database, tenant_id) == before


@pytest.mark.parametrize(
    "wrong", ["", "two words", "../up", "a/b", "ten_0123456789abcdefghjkmnpqrs"]
)
def test_name_against_the_rule_makes_no_tenant(run: Any, wrong: str, database: Database) -> None:
    refused = run("create", wrong, code=Exit.FAILED)
    assert "[tenant_name_invalid]" in refused.stderr
    assert tenants_called(database, wrong) == 0


def test_key_of_an_unknown_tenant_is_refused_with_a_way_to_find_it(run: Any, name: str) -> None:
    refused = run("key", name, code=Exit.FAILED)
    assert refused.stdout == ""
    assert "[tenant_not_found]" in refused.stderr
    assert "darkroom tenants list" in refused.stderr


def test_without_the_pepper_of_the_service_no_tenant_is_made(
    run: Any, name: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DARKROOM_KEY_PEPPER", "short")
    refused = run("create", name, code=Exit.FAILED)
    assert "DARKROOM_KEY_PEPPER must have 32 characters" in refused.stderr
    assert tenants_called(database, name) == 0
