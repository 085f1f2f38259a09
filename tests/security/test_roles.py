"""The role of API and workers is tried out by SQL: whatever it tries on others' rows is refused.

Row level security is the second wall, behind a WHERE in every statement. What it cannot be is a
wall against whoever runs SQL of their own under this role: they would bind another tenant
themselves. Nor does PostgreSQL refuse a role its advisory locks, its sessions' own timeouts, the
end of its own sessions and its own password: who holds the password of ``darkroom_api`` can stop
the service.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql

from app.db.roles import API_ROLE, SYSTEM_ROLE
from app.db.session import Database
from app.ids import KEY, new_id
from app.stack.postgres import LocalPostgres
from tests.local_parts import Urls, build_database
from tests.security.tenant_rows import (
    Connection,
    all_relations,
    as_api,
    bound,
    columns_of,
    count,
    furnish_all,
    links,
    tenant_tables,
)

#: What is common to all tenants, and what the API's role may do with it.
COMMON = {
    "alembic_version": {"SELECT"},
    # A worker writes itself down; which rows, the API tells nobody but the operator.
    "workers": {"SELECT", "INSERT", "UPDATE"},
    # Only its own row, by a policy of its own.
    "tenants": {"SELECT"},
}
#: The dispatcher's alone.
CLOSED = {"turns"}
ROWS = {"SELECT", "INSERT", "UPDATE", "DELETE"}
#: Columns that hold the id of another row without a foreign key, and why.
UNCHECKED = {
    "items.job_id": "checked once per image it would cost; a recording writes its own job's",
    "webhook_deliveries.job_id": "the job's event is cleaned up before the delivery",
    "turns.job_id": "the dispatcher's own, which sees all tenants",
    "chunks.worker_id": "workers belong to no tenant",
    "uploads.multipart_id": "the object store's",
    "training_time.job_id": "the time counts whatever becomes of the job",
    "training_time.chunk_id": "the same",
    "audit_entries.request_id": "requests are no rows",
    "grants.grantee_id": "a tenant, and another one by its nature",
    "jobs.shared_version_id": "another tenant's, by a grant that is looked up at each use",
}


@pytest.fixture(scope="module")
def urls(postgres: LocalPostgres) -> Urls:
    """A database of this module alone: whole tables are asked for."""
    return build_database(postgres, "roles")


@pytest.fixture(scope="module")
def tenants(urls: Urls) -> tuple[str, str]:
    """The ids of two tenants that have a row in every table."""
    database = Database(*urls)
    try:
        return furnish_all(database), furnish_all(database)
    finally:
        database.close()


@pytest.fixture(scope="module")
def me(tenants: tuple[str, str]) -> str:
    return tenants[0]


@pytest.fixture(scope="module")
def they(tenants: tuple[str, str]) -> str:
    return tenants[1]


@pytest.fixture(scope="module")
def api(urls: Urls, tenants: tuple[str, str]) -> Iterator[Connection]:
    with as_api(urls.api) as connection:
        yield connection


@pytest.fixture(scope="module")
def system(urls: Urls) -> Iterator[Connection]:
    """The owner's view, to look things up."""
    with psycopg.connect(urls.system, autocommit=True) as connection:
        yield connection


@pytest.fixture(scope="module")
def tables(system: Connection) -> list[str]:
    return tenant_tables(system)


def test_every_table_with_a_tenant_stands_behind_a_forced_policy(
    system: Connection, tables: list[str]
) -> None:
    mine = "(tenant_id = current_setting('app.tenant'::text, true))"
    assert len(tables) >= 18
    for table in tables:
        flags = system.execute(
            "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = %s::regclass",
            [table],
        ).fetchone()
        assert flags == (True, True), table
        policies = system.execute(
            "SELECT permissive, roles::text, cmd, qual, with_check FROM pg_policies "
            "WHERE schemaname = 'public' AND tablename = %s",
            [table],
        ).fetchall()
        # One more permissive policy would open what this one closes.
        assert policies == [("PERMISSIVE", "{public}", "ALL", mine, mine)], table


def test_every_relation_is_a_tenants_or_known_to_be_common(
    system: Connection, tables: list[str]
) -> None:
    assert set(all_relations(system)) - set(tables) == set(COMMON)


def test_api_role_has_the_rights_it_needs_and_no_other(
    system: Connection, tables: list[str]
) -> None:
    for table in all_relations(system):
        rows = system.execute(
            "SELECT privilege_type FROM pg_class, aclexplode(relacl) "
            "WHERE oid = %s::regclass AND grantee IN (0, %s::regrole)",
            [table, API_ROLE],
        ).fetchall()
        may = {privilege for (privilege,) in rows}
        if table in CLOSED:
            assert may == set(), table
        elif table in COMMON:
            assert may == COMMON[table], table
        else:
            # Fewer are welcome: a table that is only ever added to.
            assert may <= ROWS, table


def test_api_role_is_nobody_special_and_owns_nothing(system: Connection) -> None:
    role = system.execute(
        "SELECT rolsuper, rolbypassrls, rolcreaterole, rolcreatedb, rolreplication "
        "FROM pg_roles WHERE rolname = %s",
        [API_ROLE],
    ).fetchone()
    assert role == (False, False, False, False, False)
    for question in (
        "SELECT roleid::regrole::text FROM pg_auth_members WHERE member = %s::regrole",
        "SELECT relname FROM pg_class WHERE relowner = %s::regrole",
        "SELECT proname FROM pg_proc WHERE proowner = %s::regrole",
        "SELECT nspname FROM pg_namespace WHERE nspowner = %s::regrole",
        "SELECT datname FROM pg_database WHERE datdba = %s::regrole",
    ):
        assert system.execute(question.encode(), [API_ROLE]).fetchall() == [], question


def test_both_tenants_have_a_row_in_every_table(
    system: Connection, tables: list[str], me: str, they: str
) -> None:
    """What is tried below proves nothing of an empty table: furnish_all() is to fill a new one."""
    for table in tables:
        found = system.execute(
            sql.SQL("SELECT DISTINCT tenant_id FROM {} WHERE tenant_id = ANY(%s)").format(
                sql.Identifier(table)
            ),
            [[me, they]],
        ).fetchall()
        assert len(found) == 2, f"tests/security/tenant_rows.py fills no {table}"


def rls_refuses() -> Any:
    """Expect row level security, and nothing else, to refuse the statement."""
    return pytest.raises(errors.InsufficientPrivilege, match="row-level security")


def readable(tables: list[str]) -> list[str]:
    return [table for table in tables if table not in CLOSED]


def may(api: Connection, table: str, privilege: str, column: str = "tenant_id") -> bool:
    """Whether the role has the right on the column; nothing is deleted column by column."""
    if privilege == "DELETE":
        row = api.execute("SELECT has_table_privilege(%s, 'DELETE')", [table]).fetchone()
    else:
        row = api.execute(
            "SELECT has_column_privilege(%s, %s, %s)", [table, column, privilege]
        ).fetchone()
    return row is not None and bool(row[0])


@pytest.mark.parametrize("tenant", [None, "", "nobody", "%", "ten_"])
def test_without_a_tenant_no_row_is_seen_changed_or_deleted(
    api: Connection, tables: list[str], tenant: str | None
) -> None:
    for table in readable(tables):
        name = sql.Identifier(table)
        with bound(api, tenant):
            assert count(api, table) == 0, table
            if may(api, table, "UPDATE"):
                changed = api.execute(sql.SQL("UPDATE {} SET tenant_id = tenant_id").format(name))
                assert changed.rowcount == 0, table
            if may(api, table, "DELETE"):
                assert api.execute(sql.SQL("DELETE FROM {}").format(name)).rowcount == 0, table


def test_one_tenant_neither_sees_nor_touches_a_row_of_another(
    api: Connection, tables: list[str], me: str, they: str
) -> None:
    for table in readable(tables):
        name = sql.Identifier(table)
        with bound(api, me):
            owners = api.execute(sql.SQL("SELECT DISTINCT tenant_id FROM {}").format(name))
            assert owners.fetchall() == [(me,)], table
            for verb, statement in (
                ("SELECT", "SELECT 1 FROM {} WHERE tenant_id = %s"),
                ("SELECT", "SELECT 1 FROM {} WHERE tenant_id <> current_setting('app.tenant')"),
                ("SELECT", "SELECT 1 FROM {} WHERE tenant_id = %s FOR UPDATE"),
                ("UPDATE", "UPDATE {} SET tenant_id = tenant_id WHERE tenant_id = %s"),
                ("DELETE", "DELETE FROM {} WHERE tenant_id = %s"),
            ):
                if verb != "SELECT" and not may(api, table, verb):
                    continue
                if "FOR UPDATE" in statement and not may(api, table, "UPDATE"):
                    continue
                words = [they] if "%s" in statement else []
                reached = api.execute(sql.SQL(statement).format(name), words)
                assert reached.rowcount == 0, f"{statement} of {table}"


def test_no_row_is_written_for_another_tenant(
    api: Connection, system: Connection, tables: list[str], me: str, they: str
) -> None:
    for table in readable(tables):
        columns = [
            column for column in columns_of(system, table) if may(api, table, "INSERT", column)
        ]
        if not columns:
            continue
        listed = sql.SQL(", ").join(map(sql.Identifier, columns))
        taken = sql.SQL(", ").join(
            sql.Placeholder() if column == "tenant_id" else sql.Identifier(column)
            for column in columns
        )
        planted = sql.SQL("INSERT INTO {0} ({1}) SELECT {2} FROM {0} LIMIT 1").format(
            sql.Identifier(table), listed, taken
        )
        with rls_refuses(), bound(api, me):
            api.execute(planted, [they])


def test_no_row_moves_to_another_tenant(
    api: Connection, tables: list[str], me: str, they: str
) -> None:
    for table in readable(tables):
        if not may(api, table, "UPDATE"):
            continue
        moved = sql.SQL("UPDATE {} SET tenant_id = %s").format(sql.Identifier(table))
        with rls_refuses(), bound(api, me):
            api.execute(moved, [they])


def test_every_link_between_rows_names_the_tenant(system: Connection) -> None:
    found = links(system)
    assert len(found) >= 17
    assert [link.name for link in found if link.columns[0] != "tenant_id"] == []


def test_no_row_links_to_one_of_another_tenant(
    api: Connection, system: Connection, me: str, they: str
) -> None:
    tried = 0
    for link in links(system):
        if link.table in CLOSED or not may(api, link.table, "UPDATE"):
            continue
        column = sql.Identifier(link.columns[1])
        childless = sql.SQL(
            "SELECT id FROM {} WHERE tenant_id = %s AND id NOT IN "
            "(SELECT {} FROM {} WHERE {} IS NOT NULL) LIMIT 1"
        ).format(sql.Identifier(link.target), column, sql.Identifier(link.table), column)
        foreign = system.execute(childless, [they]).fetchone()
        assert foreign is not None, f"tests/security/tenant_rows.py leaves none for {link}"
        linked = sql.SQL("UPDATE {0} SET {1} = %s WHERE ctid = (SELECT ctid FROM {0} LIMIT 1)")
        with pytest.raises(errors.ForeignKeyViolation), bound(api, me):
            api.execute(linked.format(sql.Identifier(link.table), column), foreign)
        tried += 1
    assert tried >= 17


def test_every_id_of_another_row_is_checked_or_excused(
    system: Connection, tables: list[str]
) -> None:
    checked = {f"{link.table}.{column}" for link in links(system) for column in link.columns}
    loose = {
        f"{table}.{column}"
        for table in tables
        for column in columns_of(system, table)
        if column.endswith("_id") and column not in ("tenant_id", "custom_id")
    }
    assert loose - checked == set(UNCHECKED)


#: What the role tries to become more, to leave something behind or to reach what is outside.
REFUSED = [
    f"SET ROLE {SYSTEM_ROLE}",
    f"SET SESSION AUTHORIZATION {SYSTEM_ROLE}",
    "SET session_replication_role = replica",
    f"ALTER ROLE {API_ROLE} BYPASSRLS",
    f"ALTER ROLE {API_ROLE} SUPERUSER",
    f"ALTER ROLE {API_ROLE} CREATEROLE",
    f"ALTER ROLE {API_ROLE} SET app.tenant = 'ten_x'",
    f"ALTER ROLE {SYSTEM_ROLE} PASSWORD 'x'",
    f"GRANT {SYSTEM_ROLE} TO {API_ROLE}",
    "CREATE ROLE other",
    "CREATE DATABASE other",
    "ALTER TABLE jobs DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE jobs NO FORCE ROW LEVEL SECURITY",
    f"ALTER TABLE jobs OWNER TO {API_ROLE}",
    "ALTER TABLE jobs ADD COLUMN x text",
    "CREATE POLICY open ON jobs USING (true)",
    "DROP POLICY tenant_rows ON jobs",
    "ALTER POLICY tenant_rows ON jobs USING (true)",
    "CREATE TRIGGER t AFTER INSERT ON jobs EXECUTE FUNCTION set_first_item()",
    "CREATE RULE r AS ON INSERT TO jobs DO NOTHING",
    "TRUNCATE jobs",
    "DROP TABLE jobs",
    "CREATE TABLE public.mine (a int)",
    "CREATE TABLE mine (a int)",
    "CREATE TEMP TABLE mine (a int)",
    "CREATE TABLE mine AS SELECT 1 AS a",
    "CREATE VIEW mine AS SELECT 1 AS a",
    "CREATE MATERIALIZED VIEW mine AS SELECT 1 AS a",
    "CREATE SEQUENCE mine",
    "CREATE TYPE mine AS (a int)",
    "CREATE SCHEMA mine",
    "CREATE FUNCTION mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE FUNCTION pg_temp.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE OR REPLACE FUNCTION find_api_key(wanted text) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "ALTER FUNCTION find_api_key(text) SET search_path = pg_temp",
    "ALTER FUNCTION find_api_key(text) SECURITY INVOKER",
    "CREATE EXTENSION dblink",
    "CREATE EXTENSION postgres_fdw",
    "CREATE EXTENSION file_fdw",
    "CREATE LANGUAGE plpython3u",
    "CREATE EVENT TRIGGER t ON ddl_command_start EXECUTE FUNCTION set_first_item()",
    "CREATE PUBLICATION p FOR ALL TABLES",
    "SELECT pg_create_physical_replication_slot('x')",
    "SELECT pg_create_logical_replication_slot('x', 'test_decoding')",
    "COPY jobs TO PROGRAM 'id'",
    "COPY jobs FROM PROGRAM 'id'",
    "COPY jobs TO '/tmp/jobs'",
    "COPY jobs FROM '/etc/passwd'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('postgresql.conf')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_stat_file('postgresql.conf')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/x')",
    "SELECT lo_create(0)",
    "SELECT lo_creat(-1)",
    "SELECT lo_from_bytea(0, 'x')",
    "SELECT loid FROM pg_largeobject",
    "SELECT rolpassword FROM pg_authid",
    "SELECT passwd FROM pg_shadow",
    "SELECT current_setting('data_directory')",
    "SELECT * FROM pg_hba_file_rules",
    "ALTER SYSTEM SET fsync = off",
    "SELECT pg_reload_conf()",
    "SELECT pg_switch_wal()",
    "CHECKPOINT",
    "LOAD 'auto_explain'",
]


@pytest.mark.parametrize("statement", REFUSED)
def test_what_would_make_the_role_more_is_refused(api: Connection, statement: str) -> None:
    # Undefined or not there is a refusal too: dblink is not installed, say.
    refusals = (
        errors.InsufficientPrivilege,
        errors.FeatureNotSupported,
        errors.UndefinedFile,
        errors.UndefinedObject,
    )
    with pytest.raises(refusals):
        api.execute(statement.encode())


def test_row_security_that_is_switched_off_shows_nothing(api: Connection, me: str) -> None:
    with bound(api, me):
        api.execute("SET LOCAL row_security = off")
        with rls_refuses():
            api.execute("SELECT count(*) FROM jobs")


def test_copy_takes_out_own_rows_and_brings_in_none(api: Connection, me: str, they: str) -> None:
    with bound(api, me), api.cursor().copy("COPY jobs (tenant_id) TO STDOUT") as out:
        assert {bytes(line).decode().strip() for line in out} == {me}
    with (
        pytest.raises(errors.FeatureNotSupported),
        bound(api, me),
        api.cursor().copy("COPY models (id, tenant_id, name) FROM STDIN") as into,
    ):
        into.write(f"mdl_x\t{they}\tplanted\n")


def test_neither_errors_nor_statistics_tell_of_hidden_rows(
    api: Connection, system: Connection, tables: list[str], me: str
) -> None:
    system.execute("ANALYZE api_keys, jobs, webhooks")
    with bound(api, "nobody"):
        # Were the condition tried on others' rows first, its error would show their values.
        assert api.execute("SELECT 1 FROM api_keys WHERE secret_hash::int = 1").fetchall() == []
    with bound(api, me):
        shown = api.execute(
            "SELECT DISTINCT tablename FROM pg_stats WHERE schemaname = 'public' "
            "AND tablename = ANY(%s)",
            [tables],
        ).fetchall()
    assert shown == []


def test_functions_that_run_as_their_owner_are_known_and_closed(system: Connection) -> None:
    rows = system.execute(
        """
        SELECT p.oid::regprocedure::text, p.proconfig,
               has_function_privilege('public', p.oid, 'EXECUTE'),
               p.prorettype = 'trigger'::regtype
        FROM pg_proc p WHERE p.prosecdef AND p.pronamespace = 'public'::regnamespace ORDER BY 1
        """
    ).fetchall()
    assert [name for name, _, _, is_trigger in rows if not is_trigger] == [
        "find_api_key(text)",
        "find_tenant(text)",
        "list_grants(text)",
        "others_wait(text,text)",
        "shared_models()",
        "shared_versions(text,text,text)",
        "spend_queries(text,bigint)",
    ]
    for name, config, open_to_all, _ in rows:
        # pg_temp is last, or a temporary table would stand before ours.
        assert config == ["search_path=public, pg_temp"], name
        assert not open_to_all, name


@pytest.mark.parametrize("wanted", ["", "%", "key_%", "' OR true --", None])
def test_key_is_found_by_its_whole_id_and_no_other_way(api: Connection, wanted: str | None) -> None:
    assert api.execute("SELECT * FROM find_api_key(%s)", [wanted]).fetchall() == []


def test_key_that_is_found_tells_its_hash_and_no_secret(
    api: Connection, system: Connection, they: str
) -> None:
    row = system.execute("SELECT id FROM api_keys WHERE tenant_id = %s", [they]).fetchone()
    assert row is not None
    found = api.execute("SELECT * FROM find_api_key(%s)", row)
    assert [column.name for column in found.description or ()] == [
        "id",
        "tenant_id",
        "secret_hash",
        "scopes",
        "expires_at",
        "revoked_at",
        "last_used_at",
    ]
    assert len(found.fetchall()) == 1


def test_search_path_of_the_caller_changes_nothing_within(
    api: Connection, system: Connection, they: str
) -> None:
    row = system.execute("SELECT id FROM api_keys WHERE tenant_id = %s", [they]).fetchone()
    with bound(api, None):
        api.execute("SET LOCAL search_path = pg_temp, pg_catalog")
        assert api.execute("SELECT tenant_id FROM public.find_api_key(%s)", row).fetchall() == [
            (they,)
        ]


def test_whether_others_wait_is_one_bit(api: Connection) -> None:
    answer = api.execute("SELECT * FROM others_wait('io', %s)", [new_id(KEY)]).fetchall()
    assert [type(value) for row in answer for value in row] == [bool]
