"""The chain of the audit log: whatever a superuser does to it is found and named."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from typer.testing import CliRunner

from app.audit.actions import Action
from app.audit.append import append_entry
from app.audit.chain import BATCH, Head, chain_entries
from app.audit.faults import FaultKind
from app.audit.keys import AuditKey, AuditKeys
from app.audit.verify import Verdict, begin_verification, verify_chain
from app.cli.main import app as commands
from app.db.session import Database
from app.dispatch.audit import chaining
from app.settings import Settings
from app.stack.postgres import ADMIN, LocalPostgres
from tests.factories import make_tenant

LENGTH = 6


@pytest.fixture(scope="module")
def keys(settings: Settings) -> AuditKeys:
    return AuditKeys.from_settings(settings)


@pytest.fixture
def chained(database: Database, keys: AuditKeys) -> str:
    """A tenant with a chain of six entries."""
    tenant_id = make_tenant(database)
    append(database, keys, tenant_id, LENGTH)
    chain_all(database, keys)
    return tenant_id


@contextmanager
def superuser(postgres: LocalPostgres, settings: Settings) -> Iterator[psycopg.Cursor[Any]]:
    """A superuser who has switched the triggers off; what it does is committed."""
    name = settings.database_url.get_secret_value().rpartition("/")[2]
    url = postgres.url(ADMIN, postgres.secrets.admin_password, name)
    with psycopg.connect(url) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE audit_entries DISABLE TRIGGER USER")
        yield cursor
        cursor.execute("ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER keep_rows")
        cursor.execute("ALTER TABLE audit_entries ENABLE ALWAYS TRIGGER keep_table")


def append(database: Database, keys: AuditKeys, tenant_id: str, count: int) -> None:
    for number in range(count):
        with database.tenant(tenant_id) as session:
            append_entry(
                session,
                keys.active,
                tenant_id=tenant_id,
                action=Action.JOB_SUBMITTED,
                target=f"job_{number}",
                details={"number": number, "share": 1.0, "ü": "ä\u2028"},
            )


def chain_all(database: Database, keys: AuditKeys) -> None:
    while chain_entries(database, keys).count:
        pass


def walk(database: Database, keys: AuditKeys, tenant_id: str, kept: Head | None = None) -> Verdict:
    with database.system() as session:
        begin_verification(session)
        return verify_chain(session, keys, tenant_id, kept=kept)


def test_chain_that_nobody_touched_is_good(database, keys, chained):
    verdict = walk(database, keys, chained)
    assert (verdict.fault, verdict.good, verdict.unchained, verdict.late) == (None, LENGTH, 0, 0)
    assert verdict.head is not None
    assert verdict.head.seq == LENGTH
    append(database, keys, chained, 2)
    assert walk(database, keys, chained).unchained == 2
    chain_all(database, keys)
    later = walk(database, keys, chained, kept=verdict.head)
    assert (later.fault, later.good) == (None, LENGTH + 2)


_SHIFT_UP = (
    "UPDATE audit_entries SET seq = -seq WHERE tenant_id = %(t)s AND seq >= 3",
    "UPDATE audit_entries SET seq = 1 - seq WHERE tenant_id = %(t)s AND seq < 0",
)
_SHIFT_DOWN = (
    "UPDATE audit_entries SET seq = -seq WHERE tenant_id = %(t)s AND seq > 3",
    "UPDATE audit_entries SET seq = -seq - 1 WHERE tenant_id = %(t)s AND seq < 0",
)
_COPY = (
    "INSERT INTO audit_entries SELECT tenant_id, 'aud_forged', at, 'key_innocent', action, "
    "outcome, target, request_id, client_address, details, mac_key, mac, {seq}, {at}, {key}, "
    "{hash} FROM audit_entries WHERE tenant_id = %(t)s AND seq = 2"
)
_IN_CHAIN = {"at": "chained_at", "key": "hash_key", "hash": "hash"}


@pytest.mark.parametrize(
    ("statements", "kind", "seq"),
    [
        (
            ["UPDATE audit_entries SET actor = 'x' WHERE tenant_id = %(t)s AND seq = 3"],
            FaultKind.ALTERED,
            3,
        ),
        (
            [
                "UPDATE audit_entries SET details = replace(details::text, '2', '3')::json "
                "WHERE tenant_id = %(t)s AND seq = 3"
            ],
            FaultKind.ALTERED,
            3,
        ),
        (
            [
                "UPDATE audit_entries SET at = at - interval '1 microsecond' "
                "WHERE tenant_id = %(t)s AND seq = 3"
            ],
            FaultKind.ALTERED,
            3,
        ),
        (
            [
                "UPDATE audit_entries SET hash = set_byte(hash, 5, get_byte(hash, 5) # 1) "
                "WHERE tenant_id = %(t)s AND seq = 3"
            ],
            FaultKind.ALTERED,
            3,
        ),
        (
            ["UPDATE audit_entries SET actor = 'x' WHERE tenant_id = %(t)s AND seq = 6"],
            FaultKind.ALTERED,
            6,
        ),
        (["DELETE FROM audit_entries WHERE tenant_id = %(t)s AND seq = 1"], FaultKind.REMOVED, 1),
        (
            ["DELETE FROM audit_entries WHERE tenant_id = %(t)s AND seq IN (3, 4)"],
            FaultKind.REMOVED,
            3,
        ),
        (
            ["DELETE FROM audit_entries WHERE tenant_id = %(t)s AND seq = 3", *_SHIFT_DOWN],
            FaultKind.REMOVED,
            3,
        ),
        ([*_SHIFT_UP, _COPY.format(seq=3, **_IN_CHAIN)], FaultKind.INSERTED, 3),
        ([_COPY.format(seq=7, **_IN_CHAIN)], FaultKind.INSERTED, 7),
        (
            [
                "UPDATE audit_entries SET seq = -seq WHERE tenant_id = %(t)s AND seq IN (3, 5)",
                "UPDATE audit_entries SET seq = 8 + seq WHERE tenant_id = %(t)s AND seq < 0",
            ],
            FaultKind.REORDERED,
            3,
        ),
        (
            [
                "UPDATE audit_entries a SET actor = b.actor, at = b.at, target = b.target, "
                "details = b.details, mac = b.mac, id = b.id || '_', chained_at = b.chained_at "
                "FROM audit_entries b WHERE a.tenant_id = %(t)s AND b.tenant_id = %(t)s AND "
                "(a.seq, b.seq) IN ((3, 4), (4, 3))",
                "UPDATE audit_entries SET id = rtrim(id, '_') WHERE tenant_id = %(t)s AND "
                "seq IN (3, 4)",
            ],
            FaultKind.REORDERED,
            3,
        ),
        (
            ["DELETE FROM audit_entries WHERE tenant_id = %(t)s AND seq > 4"],
            FaultKind.TRUNCATED,
            5,
        ),
        (["DELETE FROM audit_entries WHERE tenant_id = %(t)s"], FaultKind.TRUNCATED, 1),
        (["UPDATE audit_heads SET seq = 5 WHERE tenant_id = %(t)s"], FaultKind.ALTERED, 5),
        (["DELETE FROM audit_heads WHERE tenant_id = %(t)s"], FaultKind.ALTERED, 6),
    ],
)
def test_what_a_superuser_does_is_found_and_named(
    database, postgres, settings, keys, chained, statements, kind, seq
):
    checks = "ALTER TABLE audit_entries {} CONSTRAINT ck_audit_entries_chained"
    with superuser(postgres, settings) as cursor:
        cursor.execute(checks.format("DROP"))
        for statement in statements:
            cursor.execute(statement, {"t": chained})
            assert cursor.rowcount > 0
        cursor.execute(
            checks.format("ADD")
            + " CHECK (num_nulls(seq, chained_at, hash_key, hash) IN (0, 4) AND seq >= 1)"
        )
    fault = walk(database, keys, chained).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (kind, seq), fault.detail


def cut(cursor: psycopg.Cursor[Any], tenant_id: str, seq: int) -> None:
    """Take the end of the chain away, and put back a head that was true once."""
    cursor.execute("DELETE FROM audit_entries WHERE tenant_id = %s AND seq > %s", [tenant_id, seq])


def test_end_that_was_cut_off_with_its_head_is_missed_by_who_kept_one(
    database, postgres, settings, keys
):
    tenant_id = make_tenant(database)
    append(database, keys, tenant_id, 4)
    chain_all(database, keys)
    with superuser(postgres, settings) as cursor:
        cursor.execute("SELECT * FROM audit_heads WHERE tenant_id = %s", [tenant_id])
        old = cursor.fetchone()
    append(database, keys, tenant_id, 2)
    chain_all(database, keys)
    kept = walk(database, keys, tenant_id).head
    assert kept is not None
    with superuser(postgres, settings) as cursor:
        cut(cursor, tenant_id, 4)
        cursor.execute("DELETE FROM audit_heads WHERE tenant_id = %s", [tenant_id])
        cursor.execute("INSERT INTO audit_heads VALUES (%s, %s, %s, %s, %s)", old)
    # This is what a chain in one database cannot know of itself.
    assert walk(database, keys, tenant_id).fault is None
    fault = walk(database, keys, tenant_id, kept=kept).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.TRUNCATED, 5)
    append(database, keys, tenant_id, 2)
    chain_all(database, keys)
    fault = walk(database, keys, tenant_id, kept=kept).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.REWRITTEN, 6)


def test_chain_goes_on_after_a_cut_end_and_leaves_the_hole_open(
    database, postgres, settings, keys, chained
):
    with superuser(postgres, settings) as cursor:
        cut(cursor, chained, 4)
    append(database, keys, chained, 1)
    chain_all(database, keys)
    fault = walk(database, keys, chained).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.REMOVED, 5)


def test_entry_that_was_put_in_before_it_is_chained_is_not_blessed(
    database, postgres, settings, keys, chained
):
    forged = _COPY.format(seq="NULL", at="NULL", key="NULL", hash="NULL")
    with superuser(postgres, settings) as cursor:
        cursor.execute(forged, {"t": chained})
    fault = walk(database, keys, chained).fault
    assert fault is not None
    assert (fault.kind, fault.entry_id) == (FaultKind.INSERTED, "aud_forged")
    chain_all(database, keys)
    fault = walk(database, keys, chained).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.INSERTED, LENGTH + 1)


def test_pepper_that_was_changed_is_told_and_the_old_one_can_be_named(
    database, settings, keys, chained
):
    other = AuditKey.derive("another pepper of thirty-two characters")
    alone = AuditKeys(other, {other.id: other})
    both = AuditKeys(other, {**keys.known, other.id: other})
    append(database, both, chained, 1)
    chain_all(database, both)
    fault = walk(database, alone, chained).fault
    assert fault is not None
    assert (fault.kind, fault.seq) == (FaultKind.UNKNOWN_KEY, 1)
    assert walk(database, both, chained).fault is None
    named = settings.model_copy(update={"old_key_peppers": settings.key_pepper})
    assert AuditKeys.from_settings(named).known.keys() == keys.known.keys()


def test_dispatchers_that_run_at_once_neither_fork_a_chain_nor_leave_a_hole(
    database, settings, keys
):
    tenants = [make_tenant(database) for _ in range(3)]
    stopping, faults = threading.Event(), list[Exception]()
    writers = [
        threading.Thread(target=append, args=(database, keys, tenant_id, 150))
        for tenant_id in tenants
    ]
    others = [Database.from_settings(settings) for _ in range(2)]
    dispatchers = [
        threading.Thread(target=_chain_until, args=(each, keys, stopping, faults))
        for each in others
    ]
    for thread in (*writers, *dispatchers):
        thread.start()
    for thread in writers:
        thread.join()
    stopping.set()
    for thread in dispatchers:
        thread.join()
    assert faults == []
    chain_all(database, keys)
    for tenant_id in tenants:
        verdict = walk(database, keys, tenant_id)
        assert (verdict.fault, verdict.good, verdict.unchained) == (None, 150, 0)
    for each in others:
        each.close()


def _chain_until(
    db: Database, keys: AuditKeys, stopping: threading.Event, faults: list[Exception]
) -> None:
    # Two that chained at once would be kept apart by the unique index: by an error.
    while not stopping.is_set():
        try:
            chain_entries(db, keys)
        except Exception as error:
            faults.append(error)


def test_dispatcher_chains_what_is_appended(database, settings, keys):
    tenant_id = make_tenant(database)
    append(database, keys, tenant_id, 2)
    stopping = threading.Event()
    with chaining(settings, database, stopping):
        wait_for(lambda: walk(database, keys, tenant_id).good == 2)


def wait_for(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(600):
        if condition():
            return
        pause.wait(0.05)
    raise AssertionError("it did not come about within 30 s")


def test_batch_is_bounded(database, keys, monkeypatch):
    tenant_id = make_tenant(database)
    append(database, keys, tenant_id, 5)
    chain_all(database, keys)
    assert BATCH <= 1000
    monkeypatch.setattr("app.audit.chain.BATCH", 2)
    append(database, keys, tenant_id, 5)
    counts = [chain_entries(database, keys).count for _ in range(4)]
    assert counts == [2, 2, 1, 0]
    assert walk(database, keys, tenant_id).good == 10


@pytest.fixture
def environment(settings, monkeypatch):
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("SYSTEM_DATABASE_URL", settings.system_url)
    monkeypatch.setenv("DARKROOM_KEY_PEPPER", settings.key_pepper.get_secret_value())


def tenant_name(database: Database, tenant_id: str) -> str:
    from app.tenants.tables import Tenant

    with database.system() as session:
        tenant = session.get(Tenant, tenant_id)
        assert tenant is not None
        return tenant.name


def run(*words: str) -> Any:
    return CliRunner().invoke(commands, ["audit", "verify", *words])


@pytest.mark.usefixtures("environment")
def test_command_prints_a_head_that_it_takes_again(database, postgres, settings, chained):
    name = tenant_name(database, chained)
    done = run("--tenant", name)
    assert done.exit_code == 0, done.output
    head = done.stdout.split()[-1]
    assert head.startswith(f"{LENGTH}:")
    assert run("--tenant", name, "--head", head).exit_code == 0
    assert run("--tenant", name, "--head", f"{LENGTH}:{'0' * 64}").exit_code == 1
    assert run("--tenant", name, "--head", "nonsense").exit_code == 2
    assert run("--head", head).exit_code == 2
    with superuser(postgres, settings) as cursor:
        cursor.execute(
            "UPDATE audit_entries SET actor = 'x' WHERE tenant_id = %s AND seq = 3", [chained]
        )
    done = run("--tenant", name, "--json")
    assert done.exit_code == 1
    (row,) = json.loads(done.stdout)
    assert (row["fault"]["kind"], row["fault"]["seq"], row["good"]) == ("altered", 3, 2)
    done = run("--tenant", name)
    assert done.exit_code == 1
    assert "BROKEN, altered: number 3 aud_" in done.stdout


@pytest.mark.usefixtures("environment")
def test_act_of_the_operator_is_told(database, chained):
    name = tenant_name(database, chained)
    words = ["tenants", "quota", name, "--max-open-jobs", "7"]
    assert CliRunner().invoke(commands, words).exit_code == 0
    assert CliRunner().invoke(commands, ["tenants", "quota", name]).exit_code == 0
    with database.system() as session:
        from app.audit.read import list_entries

        newest, _ = list_entries(session, chained, action="quota.changed")
    assert [(each.actor, each.details) for each in newest] == [("operator", {"max_open_jobs": 7})]


@pytest.mark.parametrize(
    "details",
    [
        pytest.param('{"name": "\\u0000"}', id="a zero"),
        pytest.param('{"name": "\\ud800"}', id="half a character"),
        pytest.param("[" * 5000 + "]" * 5000, id="deep"),
        pytest.param(f'{{"number": 1e{"9" * 6}}}', id="too large a number"),
    ],
)
def test_entry_that_a_stolen_role_wrote_keeps_nobody_from_being_chained(
    database: Database, keys: AuditKeys, details: str
) -> None:
    """The role of the API may add rows; what it adds cannot be taken away again."""
    thief, other = make_tenant(database), make_tenant(database)
    with database.tenant(thief) as session:
        session.connection().exec_driver_sql(
            "INSERT INTO audit_entries (tenant_id, id, actor, action, outcome, details, mac_key, "
            "mac) VALUES (%s, 'aud_stolen', 'x', 'job.submitted', 'done', %s::json, 'x', 'x')",
            (thief, details),
        )
    append(database, keys, other, 2)
    chain_all(database, keys)
    assert walk(database, keys, other).good == 2
    verdict = walk(database, keys, thief)
    assert verdict.fault is not None
    assert verdict.fault.kind == FaultKind.UNKNOWN_KEY
