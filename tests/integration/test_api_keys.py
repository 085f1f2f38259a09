import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any, cast

import pytest
from sqlalchemy import func, select, text

from app.clock import utc_now
from app.db.session import Database
from app.errors import (
    ConflictError,
    InvalidInputError,
    NotFoundError,
    SettingsError,
    UnauthorizedError,
)
from app.ids import KEY, new_id
from app.stack.postgres import LocalPostgres
from app.tenants.admin_keys import FIRST_TENANT, ensure_first_key
from app.tenants.keys import NewKey, create_key, create_tenant, list_keys, revoke_key
from app.tenants.known_keys import KnownKeys
from app.tenants.scopes import Principal, Scope
from app.tenants.tables import ApiKey, Tenant
from tests.factories import PEPPER
from tests.local_parts import build_database


@pytest.fixture
def empty_database(postgres: LocalPostgres) -> Iterator[Database]:
    database = Database(*build_database(postgres, "without_keys"))
    yield database
    database.close()


def new_key(database: Database, tenant_id: str, **options: Any) -> NewKey:
    chosen = {"name": "ci", "scopes": [Scope.JOBS_READ, "exports"], "pepper": PEPPER, **options}
    with database.tenant(tenant_id) as session:
        return create_key(session, tenant_id, **chosen)


def authenticate(database: Database, key_text: str, pepper: str) -> Principal:
    """As a process does that has not seen the key before."""
    return KnownKeys(pepper).authenticate(database, key_text)


def refusal(database: Database, key_text: str, pepper: str = PEPPER) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        authenticate(database, key_text, pepper)
    return caught.value.code


def with_checksum(body: str) -> str:
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def set_time(database: Database, key_id: str, column: str, ago: timedelta) -> datetime | None:
    with database.system() as session:
        moment: datetime | None = session.scalar(
            text(f"UPDATE api_keys SET {column} = now() - :ago WHERE id = :id RETURNING {column}"),
            {"ago": ago, "id": key_id},
        )
        return moment


def last_use(database: Database, key_id: str) -> datetime | None:
    with database.system() as session:
        return session.scalar(select(ApiKey.last_used_at).where(ApiKey.id == key_id))


def test_key_proves_its_tenant_and_scopes(database: Database, tenant_id: str) -> None:
    key = new_key(database, tenant_id)
    principal = authenticate(database, key.text, PEPPER)
    assert principal.tenant_id == tenant_id
    assert principal.key_id == key.id
    assert principal.scopes == {Scope.JOBS_READ, Scope.EXPORTS}


def test_secret_stands_nowhere_in_the_row(database: Database, tenant_id: str) -> None:
    key = new_key(database, tenant_id)
    assert re.fullmatch(r"dk_[0-9a-z]{26}_[a-z2-7]{52}_[0-9a-f]{8}", key.text)
    with database.system() as session:
        row = session.scalar(text("SELECT k::text FROM api_keys k WHERE id = :id"), {"id": key.id})
    assert key.text.split("_")[2] not in row


def test_wrong_checksum_is_refused_before_any_sql(database: Database, tenant_id: str) -> None:
    key = new_key(database, tenant_id)
    no_database = cast(Database, None)
    wrong = key.text[:-1] + ("0" if key.text[-1] != "0" else "1")
    for broken in (wrong, key.text[:-1], key.text + "0", key.text.upper(), "", "dk_", "\x00é"):
        assert refusal(no_database, broken) == "key_malformed"


def test_well_formed_key_with_another_secret_is_unknown(database: Database, tenant_id: str) -> None:
    prefix, id_part, secret, _ = new_key(database, tenant_id).text.split("_")
    other = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    assert refusal(database, with_checksum(f"{prefix}_{id_part}_{other}")) == "key_unknown"


def test_unknown_id_is_refused_like_a_wrong_secret(database: Database, tenant_id: str) -> None:
    prefix, _, secret, _ = new_key(database, tenant_id).text.split("_")
    nobody = new_id(KEY).removeprefix("key_")
    assert refusal(database, with_checksum(f"{prefix}_{nobody}_{secret}")) == "key_unknown"


def test_key_is_void_under_another_pepper(database: Database, tenant_id: str) -> None:
    assert refusal(database, new_key(database, tenant_id).text, "y" * 40) == "key_unknown"


def test_short_pepper_is_a_wrong_setting(database: Database, tenant_id: str) -> None:
    with pytest.raises(SettingsError, match="DARKROOM_KEY_PEPPER"):
        new_key(database, tenant_id, pepper="short")


def test_revoked_key_is_refused_and_stays_in_the_list(database: Database, tenant_id: str) -> None:
    key = new_key(database, tenant_id)
    with database.tenant(tenant_id) as session:
        first = revoke_key(session, tenant_id, key.id).revoked_at
    with database.tenant(tenant_id) as session:
        assert revoke_key(session, tenant_id, key.id).revoked_at == first
        assert [row.id for row in list_keys(session, tenant_id)[0]] == [key.id]
    assert refusal(database, key.text) == "key_revoked"


def test_key_ends_at_its_expiry(database: Database, tenant_id: str) -> None:
    key = new_key(database, tenant_id, expires_at=utc_now() + timedelta(hours=1))
    assert authenticate(database, key.text, PEPPER).key_id == key.id
    set_time(database, key.id, "expires_at", timedelta(0))
    assert refusal(database, key.text) == "key_expired"


def test_why_a_dead_key_is_dead_is_told_only_to_its_holder(
    database: Database, tenant_id: str
) -> None:
    key = new_key(database, tenant_id)
    with database.tenant(tenant_id) as session:
        revoke_key(session, tenant_id, key.id)
    body = "_".join(key.text.split("_")[:2]) + "_" + "a" * 52
    assert refusal(database, with_checksum(body)) == "key_unknown"


def test_last_use_is_written_at_most_once_a_minute(database: Database, tenant_id: str) -> None:
    key = new_key(database, tenant_id)
    assert last_use(database, key.id) is None
    authenticate(database, key.text, PEPPER)
    assert last_use(database, key.id) is not None

    recent = set_time(database, key.id, "last_used_at", timedelta(seconds=50))
    authenticate(database, key.text, PEPPER)
    assert last_use(database, key.id) == recent

    old = set_time(database, key.id, "last_used_at", timedelta(seconds=70))
    authenticate(database, key.text, PEPPER)
    moved = last_use(database, key.id)
    assert old is not None
    assert moved is not None
    assert moved > old + timedelta(seconds=60)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"name": "two words"}, "key_name_invalid"),
        ({"scopes": ["jobs:delete"]}, "scope_unknown"),
        ({"scopes": []}, "scopes_missing"),
        ({"expires_at": datetime(2020, 1, 1)}, "expiry_invalid"),
        ({"expires_at": utc_now() - timedelta(seconds=1)}, "expiry_invalid"),
        (
            {"expires_at": datetime.max.replace(tzinfo=timezone(-timedelta(hours=12)))},
            "expiry_invalid",
        ),
    ],
)
def test_key_that_could_not_work_is_not_made(
    database: Database, tenant_id: str, options: dict[str, Any], code: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        new_key(database, tenant_id, **options)
    assert caught.value.code == code


def test_keys_are_listed_page_by_page_newest_first(database: Database, tenant_id: str) -> None:
    made = {new_key(database, tenant_id).id for _ in range(3)}
    with database.tenant(tenant_id) as session:
        first, more = list_keys(session, tenant_id, limit=2)
        rest, end = list_keys(session, tenant_id, after=first[-1].id, limit=2)
    assert [row.id for row in [*first, *rest]] == sorted(made, reverse=True)
    assert (more, end) == (True, False)


def test_revoking_an_unknown_key_says_so(database: Database, tenant_id: str) -> None:
    with pytest.raises(NotFoundError), database.tenant(tenant_id) as session:
        revoke_key(session, tenant_id, new_id(KEY))


def test_two_tenants_of_one_name_are_refused(database: Database) -> None:
    name = f"acme-{new_id(KEY)[-8:]}"
    with database.system() as session:
        create_tenant(session, name)
    with pytest.raises(ConflictError), database.system() as session:
        create_tenant(session, name)


def test_only_one_of_many_starting_nodes_makes_the_first_key(empty_database: Database) -> None:
    with ThreadPoolExecutor(4) as nodes:
        texts = list(nodes.map(lambda _: ensure_first_key(empty_database, PEPPER), range(4)))
    made = [key_text for key_text in texts if key_text is not None]
    assert len(made) == 1
    principal = authenticate(empty_database, made[0], PEPPER)
    assert principal.may(Scope.MODELS_WRITE)
    with empty_database.system() as session:
        assert session.scalar(select(func.count()).select_from(ApiKey)) == 1
        owner = session.scalar(select(Tenant.name).where(Tenant.id == principal.tenant_id))
    assert owner == FIRST_TENANT
