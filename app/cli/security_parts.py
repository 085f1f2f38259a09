"""What ``darkroom doctor --security`` asks PostgreSQL and Redis."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit, urlunsplit

from app.cli.checks import Check

if TYPE_CHECKING:
    from app.settings import Settings

_DAYS_UNUSED = 90
#: So many tenants are named.
_NAMED = 5
_TLS_MODES = ("verify-ca", "verify-full")


def check_database(settings: Settings) -> Iterator[Check]:
    """How the database is reached, and what our two roles may do."""
    from sqlalchemy import text

    from app.db.roles import API_ROLE
    from app.db.session import Database

    urls = {
        "DATABASE_URL": settings.database_url,
        "SYSTEM_DATABASE_URL": settings.system_database_url,
    }
    for name, url in urls.items():
        if url is not None and not _is_safe_way(url.get_secret_value()):
            yield Check(
                "database",
                "warn",
                f"{name} reaches another machine without a checked TLS connection",
                "add sslmode=verify-full and sslrootcert=… to it",
            )
    if settings.admin_database_url is not None:
        yield Check(
            "database",
            "warn",
            "ADMIN_DATABASE_URL is set: only `darkroom migrate` needs the superuser",
            "set it for that command alone",
        )
    db = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with db.anonymous() as session:
            role = session.execute(
                text(
                    "SELECT current_user AS name, rolsuper OR rolbypassrls AS bypasses, "
                    "rolcreaterole OR rolcreatedb OR rolreplication AS rules, "
                    "EXISTS (SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = "
                    "relnamespace WHERE nspname = 'public' AND relowner = pg_roles.oid) AS owns, "
                    "has_schema_privilege('public', 'CREATE') AS creates, "
                    "ARRAY(SELECT parent.rolname::text FROM pg_auth_members JOIN pg_roles parent "
                    "ON parent.oid = roleid WHERE member = pg_roles.oid) AS also "
                    "FROM pg_roles WHERE rolname = current_user"
                )
            ).one()
    finally:
        db.close()
    faults = {
        "is bound by no row level security": role.bypasses,
        "may make roles, databases or copies of all": role.rules,
        "owns tables, and could switch their row level security off": role.owns,
        "may create tables and functions": role.creates,
        f"is also {', '.join(role.also)}": bool(role.also),
    }
    for words, weak in faults.items():
        if weak:
            yield Check(
                "database",
                "fail",
                f"DATABASE_URL is the role {role.name}, which {words}",
                f"use the role {API_ROLE}; `darkroom migrate` makes it",
            )


def check_tables(settings: Settings) -> Iterator[Check]:
    """Tables with a tenant's rows that row level security does not guard."""
    from sqlalchemy import text

    from app.db.session import Database

    db = Database(settings.database_url.get_secret_value(), pool_size=1)
    try:
        with db.anonymous() as session:
            open_tables = session.scalars(
                text(
                    "SELECT relname::text FROM pg_class "
                    "JOIN pg_namespace ON pg_namespace.oid = relnamespace "
                    "JOIN pg_attribute ON attrelid = pg_class.oid AND attname = 'tenant_id' "
                    "WHERE nspname = 'public' AND relkind IN ('r', 'p') "
                    "AND NOT (relrowsecurity AND relforcerowsecurity) ORDER BY relname"
                )
            ).all()
    finally:
        db.close()
    if open_tables:
        yield Check(
            "tables",
            "fail",
            f"no row level security on {', '.join(open_tables)}",
            "somebody switched it off: ALTER TABLE … ENABLE, and FORCE, ROW LEVEL SECURITY",
        )


def check_weights(settings: Settings) -> Iterator[Check]:
    """Whether weights that nobody sealed would be used, and whether any are left."""
    from app.db.session import Database
    from app.models.weights import VERSION_KEYS
    from app.sealing.columns import count_column

    db = Database(settings.database_url.get_secret_value(), settings.system_url, pool_size=1)
    try:
        with db.system() as session:
            in_clear = count_column(session, VERSION_KEYS).in_clear
    finally:
        db.close()
    if settings.sealed_only:
        if in_clear:
            yield Check(
                "weights",
                "warn",
                f"{in_clear:,} model versions lie in clear, and DARKROOM_SEALED_ONLY refuses them",
                "import or train them anew, or set DARKROOM_SEALED_ONLY=off until you have",
            )
    elif in_clear:
        yield Check(
            "weights",
            "warn",
            f"{in_clear:,} model versions lie in clear: whoever can write to database and bucket "
            "may put others in the place of any",
            "import or train them anew, then set DARKROOM_SEALED_ONLY=on",
        )
    else:
        yield Check(
            "weights",
            "warn",
            "weights in clear would be used, and no model version needs that: whoever can write to "
            "database and bucket may put some in the place of sealed ones",
            "set DARKROOM_SEALED_ONLY=on for API and workers",
        )


def check_redis(settings: Settings) -> Iterator[Check]:
    """How Redis is reached, and whether it lets in whoever asks."""
    import redis

    from app.queues.address import redis_py_url

    url = redis_py_url(settings.redis_url.get_secret_value())
    parts = urlsplit(url)
    if parts.scheme != "unix" and not is_local(parts.hostname):
        if parts.scheme != "rediss":
            yield Check(
                "redis",
                "warn",
                "REDIS_URL reaches another machine without TLS",
                "use rediss:// with ssl_ca_certs, or keep that network to yourself",
            )
        elif parse_qs(parts.query).get("ssl_cert_reqs", ["required"])[0] != "required":
            yield Check(
                "redis", "fail", "REDIS_URL checks no certificate", "leave out ssl_cert_reqs"
            )
    if parts.scheme == "unix":
        return
    others = [
        (name, value)
        for name, value in parse_qsl(parts.query)
        if name not in ("username", "password")
    ]
    netloc = parts.netloc.rpartition("@")[2]
    bare = urlunsplit(parts._replace(netloc=netloc, query=urlencode(others)))
    try:
        with redis.Redis.from_url(bare, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
    except redis.RedisError:
        return
    yield Check(
        "redis",
        "fail" if not is_local(parts.hostname) else "warn",
        "Redis asks for no password: who reaches it can keep workers from hearing",
        "set requirepass, or a user of few rights; see docs/operations.md",
    )


def check_keys(settings: Settings) -> Iterator[Check]:
    """Keys that nobody would miss."""
    from sqlalchemy import text

    from app.db.session import Database

    db = Database(settings.database_url.get_secret_value(), settings.system_url, pool_size=1)
    try:
        with db.system() as session:
            found = session.execute(
                text(
                    "SELECT count(*) FILTER (WHERE expires_at IS NULL AND 'admin' = ANY(scopes)) "
                    "AS endless, count(*) FILTER (WHERE coalesce(last_used_at, created_at) "
                    "< now() - make_interval(days => :days)) AS unused FROM api_keys "
                    "WHERE revoked_at IS NULL AND coalesce(expires_at > now(), true)"
                ),
                {"days": _DAYS_UNUSED},
            ).one()
    finally:
        db.close()
    if found.endless:
        yield Check(
            "keys",
            "warn",
            f"{found.endless} keys with scope admin never expire",
            "`darkroom keys rotate`, or make keys with fewer scopes and an expiry",
        )
    if found.unused:
        yield Check(
            "keys",
            "warn",
            f"{found.unused} keys were not used for {_DAYS_UNUSED} days",
            "`darkroom keys list` shows them, `darkroom keys revoke` ends them",
        )


def check_locations(settings: Settings) -> Iterator[Check]:
    """Tenants that may read the buckets of others; one alone has no others."""
    from sqlalchemy import select

    from app.db.session import Database
    from app.locations import bucket_fault
    from app.tenants.tables import Tenant

    fault = bucket_fault(settings.bucket)
    if fault:
        yield Check(
            "locations",
            "warn",
            f"DARKROOM_BUCKET: {fault}: jobs could read our own objects by the bucket's other name",
            "set DARKROOM_BUCKET to the bucket itself",
        )
    db = Database(settings.database_url.get_secret_value(), settings.system_url, pool_size=1)
    try:
        with db.system() as session:
            tenants = session.execute(
                select(Tenant.name, Tenant.input_locations).order_by(Tenant.id)
            ).all()
    finally:
        db.close()
    anywhere = who_reads_others({row.name: row.input_locations for row in tenants}, settings)
    if anywhere:
        more = f" and {len(anywhere) - _NAMED} more" if len(anywhere) > _NAMED else ""
        yield Check(
            "locations",
            "warn",
            f"of {len(tenants)} tenants {', '.join(anywhere[:_NAMED])}{more} may read every bucket "
            "that the service's S3 access key reaches, those of others too",
            "`darkroom tenants locations NAME --allow s3://bucket/prefix/` for each, or "
            "DARKROOM_INPUT_LOCATIONS for all; and give the access key no more than they need",
        )


def who_reads_others(tenants: Mapping[str, list[str] | None], settings: Settings) -> list[str]:
    """Names of tenants, with their own locations where they have some, that may read anywhere."""
    from app.locations import Locations

    if len(tenants) < 2:
        return []
    default = settings.default_locations
    return [
        name
        for name, own in tenants.items()
        if (default if own is None else Locations(tuple(own))).is_anywhere
    ]


def _is_safe_way(database_url: str) -> bool:
    """Whether a connection stays on this machine, or in TLS that checks who answers."""
    from psycopg.conninfo import conninfo_to_dict

    words = conninfo_to_dict(database_url.replace("postgresql+psycopg://", "postgresql://", 1))
    host = str(words.get("host") or words.get("hostaddr") or "")
    stays = not host or host.startswith("/") or all(map(is_local, host.split(",")))
    return stays or words.get("sslmode") in _TLS_MODES


def is_local(host: str | None) -> bool:
    """Whether a host is this machine, by its spelling alone."""
    if host in (None, "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(host).strip("[]")).is_loopback
    except ValueError:
        return False
