"""The audit log: every act leaves one entry, no refused or repeated one does, and none is lost."""

from __future__ import annotations

import inspect
import json

import pytest
from sqlalchemy import inspect as sqlalchemy_inspect
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.audit.actions import Action
from app.audit.append import DETAILS_MAX_CHARACTERS, append_entry
from app.audit.keys import AuditKey
from app.audit.read import list_entries
from app.audit.tables import AuditEntry
from app.tenants.scopes import Scope
from tests.api_client import Api, import_body, make_key
from tests.security.calls import routes
from tests.world import build_world


@pytest.fixture
def api(app, database, settings, tenant_id):
    return Api(app, make_key(database, settings, tenant_id))


def entries(database, tenant_id):
    """The tenant's entries in the order in which they were written."""
    with database.system() as session:
        rows = session.query(AuditEntry).filter_by(tenant_id=tenant_id)
        return list(rows.order_by(AuditEntry.at, AuditEntry.id))


def acts(app):
    """Operation → its act."""
    return {
        name.rpartition(".")[2]: operation.audit
        for resource in app.extensions["darkroom.resources"]
        for name, operation in resource.operations.items()
    }


def test_every_operation_that_is_no_plain_read_names_its_act(app):
    operations = {
        name: operation
        for resource in app.extensions["darkroom.resources"]
        for name, operation in resource.operations.items()
    }
    assert len(operations) > 40
    takes_out = ("/content", "/download", "/link", "/weights")
    forgotten = [
        f"{each.method} {each.path}"
        for each in operations.values()
        if (each.method != "get" or each.path.endswith(takes_out)) != bool(each.audit)
    ]
    assert forgotten == []


def test_every_act_that_is_done_leaves_one_entry(app, settings, database, objects):
    world = build_world(app, settings, database, objects)
    told = set()
    # What ends a thing comes last, so that all others find it there.
    for route in sorted(routes(), key=lambda route: route.method == "delete"):
        action = acts(app)[route.name]
        if action is None:
            continue
        answer = route.call(world.api, world.ids)
        written = [
            entry.action
            for entry in entries(database, world.tenant_id)
            if entry.request_id == answer.headers["X-Request-Id"]
        ]
        assert written == ([action] if answer.status_code < 300 else []), route.name
        told.update(written)
    # Routes that this world cannot bring to a good end are told by their own tests.
    assert len(told) >= 14
    assert told >= {Action.KEY_CREATED, Action.ARTIFACT_DOWNLOADED, Action.WEBHOOK_DELETED}


def test_act_is_told_with_who_what_whence_and_its_request(api, database, tenant_id):
    made = api("POST", "/v1/jobs", json=import_body())
    assert made.status_code == 202
    (entry,) = entries(database, tenant_id)
    assert entry.actor == "key_" + api.key.split("_")[1]
    assert (entry.action, entry.outcome, entry.target) == (
        "job.submitted",
        "done",
        made.json["id"],
    )
    assert entry.request_id == made.headers["X-Request-Id"]
    assert entry.client_address == "127.0.0.1"
    assert entry.details == {"kind": "import", "model": "squeeze"}


def test_plain_reads_are_not_told(api, database, tenant_id):
    for path in ("/v1/jobs", "/v1/keys", "/v1/audit"):
        assert api("GET", path).status_code == 200
    assert entries(database, tenant_id) == []


def test_repetition_under_the_same_idempotency_key_is_told_once(api, database, tenant_id):
    for _ in range(3):
        sent = api(
            "POST", "/v1/jobs", json=import_body(), headers={"Idempotency-Key": "the-same-one"}
        )
        assert sent.status_code == 202
    assert [each.action for each in entries(database, tenant_id)] == ["job.submitted"]


def test_act_that_fails_after_its_work_leaves_no_entry(api, database, tenant_id, monkeypatch):
    def fail(*_):
        raise RuntimeError("after the work, before the commit")

    monkeypatch.setattr("app.api.idempotency.Claim.keep", fail)
    sent = api("POST", "/v1/jobs", json=import_body(), headers={"Idempotency-Key": "fails"})
    assert sent.status_code == 500
    assert entries(database, tenant_id) == []
    with database.tenant(tenant_id) as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 0


def test_entry_that_cannot_be_written_undoes_the_act(api, database, tenant_id, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no entry")

    monkeypatch.setattr("app.api.audit.append_entry", fail)
    assert api("POST", "/v1/jobs", json=import_body()).status_code == 500
    with database.tenant(tenant_id) as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 0


@pytest.mark.parametrize(
    "long",
    [
        {"name": "x" * 10**6},
        {"name": "\N{GRINNING FACE}" * 10**5},
        {"name": '\\"' * 10**5, "events": ["job.ended"] * 10**4, "deep": {"a": {"b": "y" * 10**5}}},
        {"name": "z" * (DETAILS_MAX_CHARACTERS - 10)},
    ],
    ids=["text", "beyond-ascii", "list-and-mapping", "one-too-many"],
)
def test_long_details_are_cut_and_say_so(database, settings, tenant_id, long):
    key = AuditKey.derive(settings.key_pepper.get_secret_value())
    short = {"number": 3, "scopes": ["jobs:read"], "none": None}
    for details in (long, {**long, **short}):
        with database.tenant(tenant_id) as session:
            append_entry(
                session, key, tenant_id=tenant_id, action=Action.KEY_CREATED, details=details
            )
    with database.system() as session:
        first, second = session.scalars(
            text("SELECT details::text FROM audit_entries WHERE tenant_id = :id ORDER BY at"),
            {"id": tenant_id},
        ).all()
    for kept, details in ((first, long), (second, {**long, **short})):
        assert len(kept) <= DETAILS_MAX_CHARACTERS
        assert json.loads(kept).keys() == details.keys()
    told = json.loads(second)
    assert {name: told[name] for name in short} == short
    for name, value in long.items():
        length = len(value if isinstance(value, str) else json.dumps(value, separators=(",", ":")))
        assert told[name].endswith(f"… ({length:,} characters)")
        assert len(told[name]) > 50


def test_details_that_fit_are_kept_as_they_are(database, settings, tenant_id):
    key = AuditKey.derive(settings.key_pepper.get_secret_value())
    fits = {"name": "z" * (DETAILS_MAX_CHARACTERS - 11)}
    with database.tenant(tenant_id) as session:
        append_entry(session, key, tenant_id=tenant_id, action=Action.KEY_CREATED, details=fits)
    (entry,) = entries(database, tenant_id)
    assert entry.details == fits


def test_refusal_of_a_known_key_is_told_once_a_minute(app, database, settings, tenant_id):
    reader = Api(app, make_key(database, settings, tenant_id, Scope.JOBS_READ))
    for _ in range(5):
        assert reader("POST", "/v1/jobs", json=import_body()).status_code == 403
        assert reader("GET", "/v1/keys").status_code == 403
    denied = entries(database, tenant_id)
    assert [(each.action, each.outcome) for each in denied] == [("access.denied", "denied")] * 2
    assert [each.target for each in denied] == ["POST /v1/jobs", "GET /v1/keys"]
    assert denied[0].details == {"code": "scope_missing", "scope": "models:write"}


def test_revoked_key_is_told_and_a_strangers_is_not(api, app, database, settings, tenant_id):
    other = make_key(database, settings, tenant_id)
    key_id = "key_" + other.split("_")[1]
    assert api("DELETE", f"/v1/keys/{key_id}").status_code == 204
    assert Api(app, other)("GET", "/v1/jobs").status_code == 401
    # The right id with another secret: a stranger, whatever it knows.
    body = f"dk_{other.split('_')[1]}_{'a' * 52}"
    from app.tenants.keys import _checksum

    for key in ("dk_nonsense", f"{body}_{_checksum(body)}"):
        assert Api(app, key)("GET", "/v1/jobs").status_code == 401
    told = [(each.action, each.actor, each.target) for each in entries(database, tenant_id)]
    me = "key_" + api.key.split("_")[1]
    assert told == [
        ("key.revoked", me, key_id),
        ("access.denied", key_id, "GET /v1/jobs"),
    ]


def test_no_secret_gets_into_an_entry(api, database, settings, tenant_id):
    made = api("POST", "/v1/keys", json={"name": "k", "scopes": ["exports"]})
    secret = made.json["text"].split("_")[2]
    with database.system() as session:
        rows = session.scalars(
            text("SELECT audit_entries::text FROM audit_entries WHERE tenant_id = :tenant"),
            {"tenant": tenant_id},
        ).all()
    assert len(rows) == 1
    assert secret not in rows[0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET actor = 'somebody'",
        "UPDATE audit_entries SET seq = 1, hash = 'x', chained_at = now(), hash_key = 'x'",
        "DELETE FROM audit_entries",
        "TRUNCATE audit_entries",
        "UPDATE audit_heads SET seq = 0",
        "DELETE FROM audit_heads",
        "INSERT INTO audit_entries (tenant_id, id, at, actor, action, outcome, details, mac_key, "
        "mac) VALUES (current_setting('app.tenant'), 'aud_x', 'epoch', 'a', 'b', 'done', '{}', "
        "'x', 'x')",
        "INSERT INTO audit_entries (tenant_id, id, actor, action, outcome, details, mac_key, mac) "
        "VALUES ('ten_other', 'aud_x', 'a', 'b', 'done', '{}', 'x', 'x')",
    ],
)
def test_role_of_the_api_can_neither_change_nor_delete_nor_invent(
    api, database, tenant_id, statement
):
    api("POST", "/v1/jobs", json=import_body())
    refused = pytest.raises(ProgrammingError, match=r"permission denied|row-level security")
    with refused, database.tenant(tenant_id) as session:
        session.execute(text(statement))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_entries SET actor = 'somebody' WHERE tenant_id = :tenant",
        "UPDATE audit_entries SET details = '{ }', seq = 1, hash = 'x', chained_at = now(), "
        "hash_key = 'x' WHERE tenant_id = :tenant",
        "DELETE FROM audit_entries WHERE tenant_id = :tenant",
        "TRUNCATE audit_entries",
    ],
)
def test_owner_cannot_change_or_delete_by_accident(api, database, tenant_id, statement):
    api("POST", "/v1/jobs", json=import_body())
    refused = pytest.raises(ProgrammingError, match="append-only")
    with refused, database.system() as session:
        session.execute(text(statement), {"tenant": tenant_id} if ":tenant" in statement else {})


def test_every_filter_of_the_log_has_an_index_that_knows_its_tenant_too(database):
    words = inspect.signature(list_entries).parameters.values()
    filters = {word.name for word in words if word.kind is word.KEYWORD_ONLY} - {"after", "limit"}
    columns = {"at" if name in ("since", "until") else name for name in filters}
    assert columns == {"action", "actor", "target", "at"}
    with database.system() as session:
        found = sqlalchemy_inspect(session.connection()).get_indexes("audit_entries")
    begins = {tuple(index["column_names"][:2]) for index in found}
    assert {("tenant_id", column) for column in columns} <= begins


def test_tenant_reads_its_own_entries_and_nobody_elses(api, app, database, settings, tenant_id):
    from tests.factories import make_tenant

    other = make_tenant(database)
    Api(app, make_key(database, settings, other))("POST", "/v1/jobs", json=import_body())
    job = api("POST", "/v1/jobs", json=import_body()).json["id"]
    api("POST", f"/v1/jobs/{job}/cancel")
    page = api("GET", "/v1/audit").json
    assert [each["action"] for each in page["data"]] == ["job.cancelled", "job.submitted"]
    assert {each["target"] for each in page["data"]} == {job}
    only = api("GET", "/v1/audit?action=job.cancelled&limit=1").json
    assert [each["action"] for each in only["data"]] == ["job.cancelled"]
    assert api("GET", "/v1/audit?target=job_nothing").json["data"] == []
    moment = page["data"][0]["at"].replace("+", "%2B")
    assert len(api("GET", f"/v1/audit?since={moment}").json["data"]) == 1
    assert len(api("GET", f"/v1/audit?until={moment}").json["data"]) == 1
