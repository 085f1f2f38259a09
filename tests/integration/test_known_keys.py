"""How long a key that was looked up serves without another look."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pytest
from sqlalchemy import text

from app.clock import utc_now
from app.db.session import Database
from app.errors import UnauthorizedError
from app.tenants import known_keys
from app.tenants.keys import NewKey, create_key, look_up_key, revoke_key
from app.tenants.known_keys import SERVES_SECONDS, KnownKeys
from app.tenants.scopes import Principal, Scope
from tests.clock import Clock
from tests.factories import PEPPER, make_tenant

NO_DATABASE = cast(Database, None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(known_keys, "monotonic_seconds", clock)
    return clock


def new_key(database: Database, tenant_id: str, **options: object) -> NewKey:
    with database.tenant(tenant_id) as session:
        return create_key(
            session,
            tenant_id,
            name="ci",
            scopes=[Scope.JOBS_READ],
            pepper=PEPPER,
            **options,  # type: ignore[arg-type]
        )


def refusal(keys: KnownKeys, database: Database, key_text: str) -> str:
    with pytest.raises(UnauthorizedError) as caught:
        keys.authenticate(database, key_text)
    return caught.value.code


def test_key_that_comes_again_at_once_asks_no_database(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)
    first = keys.authenticate(database, key.text)
    clock.now += SERVES_SECONDS - 0.1
    assert keys.authenticate(NO_DATABASE, key.text) == first


def test_key_revoked_elsewhere_is_refused_within_five_seconds(
    database: Database, clock: Clock
) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)
    keys.authenticate(database, key.text)
    with database.tenant(tenant_id) as session:
        revoke_key(session, tenant_id, key.id)
    assert SERVES_SECONDS < 5
    clock.now += SERVES_SECONDS
    assert refusal(keys, database, key.text) == "key_revoked"


def test_key_revoked_here_is_refused_at_once(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    keys, key, other = KnownKeys(PEPPER), *(new_key(database, tenant_id) for _ in range(2))
    for one in (key, other):
        keys.authenticate(database, one.text)
    with database.tenant(tenant_id) as session:
        revoke_key(session, tenant_id, key.id)
    keys.forget(key.id)
    assert refusal(keys, database, key.text) == "key_revoked"
    assert keys.authenticate(NO_DATABASE, other.text).key_id == other.id


def test_key_revoked_here_while_it_is_looked_up_is_not_known_afterwards(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)

    def look_up(*words: Any) -> tuple[Principal, float]:
        found = look_up_key(*words)
        with database.tenant(tenant_id) as session:
            revoke_key(session, tenant_id, key.id)
        keys.forget(key.id)
        return found

    monkeypatch.setattr(known_keys, "look_up_key", look_up)
    keys.authenticate(database, key.text)
    monkeypatch.setattr(known_keys, "look_up_key", look_up_key)
    assert refusal(keys, database, key.text) == "key_revoked"


def test_key_serves_no_longer_than_to_its_expiry(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    key = new_key(database, tenant_id, expires_at=utc_now() + timedelta(hours=1))
    with database.system() as session:
        session.execute(
            text("UPDATE api_keys SET expires_at = now() + interval '1 second' WHERE id = :id"),
            {"id": key.id},
        )
    keys = KnownKeys(PEPPER)
    keys.authenticate(database, key.text)
    with database.system() as session:
        session.execute(
            text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": key.id}
        )
    clock.now += 1
    assert refusal(keys, database, key.text) == "key_expired"


def test_key_is_found_by_its_id_while_it_lives(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)
    assert keys.find(database, make_tenant(database), key.id) is None
    found = keys.find(database, tenant_id, key.id)
    assert found == Principal(tenant_id=tenant_id, key_id=key.id, scopes=frozenset())
    # What is known of an id is no proof of the key's text, nor the other way round.
    assert keys.authenticate(database, key.text).scopes == {Scope.JOBS_READ}
    assert keys.find(NO_DATABASE, tenant_id, key.id) == found
    with database.tenant(tenant_id) as session:
        revoke_key(session, tenant_id, key.id)
    clock.now += SERVES_SECONDS - 0.1
    assert keys.find(NO_DATABASE, tenant_id, key.id) == found
    clock.now += 0.1
    assert keys.find(database, tenant_id, key.id) is None


def test_key_revoked_here_is_not_found_any_more(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)
    assert keys.find(database, tenant_id, key.id) is not None
    with database.tenant(tenant_id) as session:
        revoke_key(session, tenant_id, key.id)
    keys.forget(key.id)
    assert keys.find(database, tenant_id, key.id) is None


def test_key_that_has_expired_is_not_found(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)
    with database.system() as session:
        session.execute(
            text("UPDATE api_keys SET expires_at = now() WHERE id = :id"), {"id": key.id}
        )
    assert keys.find(database, tenant_id, key.id) is None


def test_refused_key_is_looked_up_each_time(database: Database, clock: Clock) -> None:
    tenant_id = make_tenant(database)
    keys, key = KnownKeys(PEPPER), new_key(database, tenant_id)
    with database.system() as session:
        session.execute(
            text("UPDATE api_keys SET revoked_at = now() WHERE id = :id"), {"id": key.id}
        )
    assert refusal(keys, database, key.text) == "key_revoked"
    with database.system() as session:
        session.execute(
            text("UPDATE api_keys SET revoked_at = NULL WHERE id = :id"), {"id": key.id}
        )
    assert keys.authenticate(database, key.text).key_id == key.id


def test_keys_known_are_bounded(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_keys, "_MOST", 2)
    tenant_id = make_tenant(database)
    keys, made = KnownKeys(PEPPER), [new_key(database, tenant_id) for _ in range(3)]
    for key in made:
        keys.authenticate(database, key.text)
    assert len(keys._known) <= 2
    assert keys.authenticate(NO_DATABASE, made[-1].text).key_id == made[-1].id
