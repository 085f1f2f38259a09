"""The two database roles, and the database that one of them owns.

``darkroom_api`` serves API and workers: no superuser, no BYPASSRLS, owner of nothing, so row
level security binds it. ``darkroom_system`` owns the tables and sees every tenant: migrations,
dispatcher and sweeper. Only a superuser can make them, so this runs before the migrations.
"""

from __future__ import annotations

import psycopg
from psycopg import sql

API_ROLE = "darkroom_api"
SYSTEM_ROLE = "darkroom_system"


def ensure_roles(admin_url: str, database: str, *, api_password: str, system_password: str) -> None:
    """Make or update both roles and the database; safe to run again.

    ``admin_url`` is a superuser's ``postgresql://`` URL of any database of the cluster.
    """
    with psycopg.connect(admin_url, autocommit=True, connect_timeout=5) as connection:
        # Several nodes may start at once; roles are shared by the whole cluster.
        connection.execute("SELECT pg_advisory_lock(hashtext('darkroom.roles'))")
        _ensure_role(connection, API_ROLE, api_password, bypass=False)
        _ensure_role(connection, SYSTEM_ROLE, system_password, bypass=True)
        found = connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", (database,)
        ).fetchone()
        if found is None:
            connection.execute(
                sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'").format(
                    sql.Identifier(database), sql.Identifier(SYSTEM_ROLE)
                )
            )
        connection.execute(
            sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database))
        )
        connection.execute(
            sql.SQL("GRANT CONNECT ON DATABASE {} TO {}").format(
                sql.Identifier(database), sql.Identifier(API_ROLE)
            )
        )
        connection.execute(
            sql.SQL("ALTER DATABASE {} OWNER TO {}").format(
                sql.Identifier(database), sql.Identifier(SYSTEM_ROLE)
            )
        )
    with psycopg.connect(admin_url, dbname=database, autocommit=True, connect_timeout=5) as inside:
        _close_large_objects(inside)


def _close_large_objects(connection: psycopg.Connection[tuple[object, ...]]) -> None:
    """Take large objects away from everybody: they know no tenant, and fill the disk unseen.

    The superuser of a managed PostgreSQL does not own these functions; there they stay open.
    """
    rows = connection.execute(
        "SELECT oid::regprocedure::text FROM pg_proc "
        "WHERE pronamespace = 'pg_catalog'::regnamespace "
        "AND proname IN ('lo_creat', 'lo_create', 'lo_from_bytea') "
        "AND has_function_privilege('public', oid, 'EXECUTE')"
    ).fetchall()
    for (function,) in rows:
        try:
            connection.execute(f"REVOKE EXECUTE ON FUNCTION {function} FROM PUBLIC".encode())
        except psycopg.errors.InsufficientPrivilege:
            return


def _ensure_role(
    connection: psycopg.Connection[tuple[object, ...]], name: str, password: str, *, bypass: bool
) -> None:
    found = connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (name,)).fetchone()
    verb = "ALTER" if found else "CREATE"
    connection.execute(
        sql.SQL("{} ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE {} PASSWORD {}").format(
            sql.SQL(verb),
            sql.Identifier(name),
            sql.SQL("BYPASSRLS" if bypass else "NOBYPASSRLS"),
            sql.Literal(password),
        )
    )
