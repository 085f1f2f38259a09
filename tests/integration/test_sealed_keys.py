"""The data keys of versions: made once, bound to their version, and rotated while all goes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import select, update
from typer.testing import CliRunner

from app.audit.keys import AuditKey
from app.audit.tables import AuditEntry
from app.cli.main import app as darkroom
from app.db.session import Database
from app.errors import NotFoundError
from app.keyring import Keyring, SealError, key_id_of, new_key_text
from app.models.tables import ModelVersion
from app.models.weights import VERSION_KEYS, version_data_key
from app.rotation import rotate, sealing_status
from app.sealing import columns
from app.settings import Settings
from app.stack.postgres import LocalPostgres
from tests.factories import PEPPER, add_version, make_tenant
from tests.local_parts import Urls, build_database
from tests.races import racing

OLD, NEW, OTHER = (bytes([number]) * 32 for number in (1, 2, 3))
BEFORE = Keyring({"old": OLD})
BETWEEN = Keyring({"new": NEW, "old": OLD})
AFTER = Keyring({"new": NEW})
AUDIT = AuditKey.derive(PEPPER)


@pytest.fixture(scope="module")
def urls(postgres: LocalPostgres) -> Urls:
    """A database of this module alone: a rotation is of everything."""
    return build_database(postgres, "sealing")


@pytest.fixture
def db(urls: Urls) -> Iterator[Database]:
    """That database, without any version."""
    db = Database(*urls, pool_size=10)
    with db.system() as session:
        for version in session.scalars(select(ModelVersion)):
            session.delete(version)
    yield db
    db.close()


def make_version(db: Database, tenant_id: str) -> str:
    with db.tenant(tenant_id) as session:
        return add_version(session, tenant_id).id


def key_of(db: Database, keyring: Keyring, tenant_id: str, version_id: str) -> bytes:
    with db.tenant(tenant_id) as session:
        return version_data_key(session, keyring, tenant_id, version_id)[0]


def token_of(db: Database, version_id: str) -> Any:
    with db.system() as session:
        return session.get_one(ModelVersion, version_id).sealed_key


def make_sealed(db: Database, count: int) -> tuple[str, dict[str, bytes]]:
    """A tenant, and its versions with their data keys under the old sealing key."""
    tenant_id = make_tenant(db)
    versions = [make_version(db, tenant_id) for _ in range(count)]
    return tenant_id, {one: key_of(db, BEFORE, tenant_id, one) for one in versions}


def test_each_version_has_a_data_key_of_its_own_that_stays(db: Database) -> None:
    tenant_id, keys = make_sealed(db, 2)
    assert len(set(keys.values())) == 2
    assert {one: key_of(db, BEFORE, tenant_id, one) for one in keys} == keys
    for one, key in keys.items():
        assert key.hex() not in token_of(db, one)


def test_two_that_ask_at_once_get_one_key(db: Database) -> None:
    tenant_id = make_tenant(db)
    version_id = make_version(db, tenant_id)
    with racing(db) as race:
        with db.tenant(tenant_id) as session:
            first, _ = version_data_key(session, BEFORE, tenant_id, version_id)
            second = race(lambda: key_of(db, BEFORE, tenant_id, version_id))
            second.waits()
        assert second.answer() == first


def test_key_in_the_row_of_another_version_does_not_open(db: Database) -> None:
    tenant_id, keys = make_sealed(db, 2)
    one, other = keys
    with db.system() as session:
        session.execute(
            update(ModelVersion)
            .where(ModelVersion.id == other)
            .values(sealed_key=token_of(db, one))
        )
    with pytest.raises(SealError) as caught:
        key_of(db, BEFORE, tenant_id, other)
    assert caught.value.code == "seal_broken"


def test_version_of_another_tenant_has_no_key_to_give(db: Database) -> None:
    _, keys = make_sealed(db, 1)
    with pytest.raises(NotFoundError):
        key_of(db, BEFORE, make_tenant(db), next(iter(keys)))


def test_after_a_rotation_the_old_key_opens_nothing_and_the_new_one_all(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_BATCH", 2)
    tenant_id, keys = make_sealed(db, 5)
    make_version(db, tenant_id)
    status, *_ = sealing_status(db)
    assert (status.by_key, status.in_clear) == ({"old": 5}, 6)
    rotated, *_ = rotate(db, BETWEEN, AUDIT)
    assert (rotated.resealed, rotated.refused) == (5, {})
    assert sealing_status(db)[0].by_key == {"new": 5}
    assert {one: key_of(db, AFTER, tenant_id, one) for one in keys} == keys
    again, *_ = rotate(db, BETWEEN, AUDIT)
    assert again.resealed == 0
    with db.tenant(tenant_id) as session:
        told = session.scalars(select(AuditEntry).order_by(AuditEntry.id)).all()
    assert {(entry.action, entry.actor, entry.target) for entry in told} == {
        ("sealing.rotated", "operator", "new")
    }
    assert sum(entry.details["count"] for entry in told) == 5


def test_rotation_that_broke_off_goes_on(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_BATCH", 1)
    make_sealed(db, 3)

    class BrokenKeyring(Keyring):
        resealed = 0

        def reseal(self, token: str, about: str) -> str:
            if self.resealed == 2:
                raise KeyboardInterrupt
            self.resealed += 1
            return super().reseal(token, about)

    with pytest.raises(KeyboardInterrupt):
        rotate(db, BrokenKeyring({"new": NEW, "old": OLD}), AUDIT)
    assert sealing_status(db)[0].by_key == {"new": 2, "old": 1}
    assert rotate(db, BETWEEN, AUDIT)[0].resealed == 1


def test_two_rotations_at_once_reseal_each_token_once(db: Database) -> None:
    tenant_id, keys = make_sealed(db, 3)
    with racing(db) as race:
        with db.system() as session:
            # The first one is in the middle of its batch.
            for one in sorted(keys):
                session.execute(
                    update(ModelVersion)
                    .where(ModelVersion.id == one)
                    .values(sealed_key=BETWEEN.reseal(token_of(db, one), about(tenant_id, one)))
                )
            second = race(lambda: rotate(db, BETWEEN, AUDIT))
            second.waits()
        rotated, *_ = second.passes()
    assert rotated.resealed == 0
    assert {one: key_of(db, AFTER, tenant_id, one) for one in keys} == keys


def about(tenant_id: str, version_id: str) -> str:
    return f"model_version:{tenant_id}:{version_id}"


def test_token_whose_key_is_gone_stays_and_is_told(db: Database) -> None:
    tenant_id, keys = make_sealed(db, 1)
    (lost,) = keys
    fine = make_version(db, tenant_id)
    with db.tenant(tenant_id) as session:
        version_data_key(session, Keyring({"other": OTHER}), tenant_id, fine)
    rotated, *_ = rotate(db, Keyring({"new": NEW, "other": OTHER}), AUDIT)
    assert (rotated.resealed, rotated.refused) == (1, {"sealing_key_missing": 1})
    with pytest.raises(SealError, match="'old'") as caught:
        key_of(db, AFTER, tenant_id, lost)
    assert caught.value.code == "sealing_key_missing"
    # Once it is back, so is the version.
    assert key_of(db, BETWEEN, tenant_id, lost) == keys[lost]


def test_every_column_of_tokens_is_known_to_rotation() -> None:
    # By their names, so that a new one cannot be forgotten.
    from app.db.base import Base
    from app.rotation import SEALED_COLUMNS

    there = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if column.name.startswith("sealed_") and not column.name.endswith(("_sha256", "_at"))
    }
    assert there == {str(one.column.expression) for one in SEALED_COLUMNS}
    assert VERSION_KEYS in SEALED_COLUMNS


def test_command_line_shows_and_rotates(
    db: Database, urls: Urls, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = new_key_text("a"), new_key_text("b")
    keyring = Keyring.from_settings(with_keys(settings, old))
    tenant_id = make_tenant(db)
    version_id = make_version(db, tenant_id)
    key = key_of(db, keyring, tenant_id, version_id)
    for name, value in {
        "DATABASE_URL": urls.api,
        "SYSTEM_DATABASE_URL": urls.system,
        "DARKROOM_SEALING_KEYS": f"{new},{old}",
        "DARKROOM_KEY_PEPPER": PEPPER,
    }.items():
        monkeypatch.setenv(name, value)
    run = CliRunner().invoke(darkroom, ["sealing", "status"])
    assert run.exit_code == 0, run.output
    assert "model versions" in run.output
    assert "1 in clear" in run.output
    run = CliRunner().invoke(darkroom, ["sealing", "rotate", "--json"])
    assert run.exit_code == 0, run.output
    assert key_id_of(token_of(db, version_id)) == "b"
    assert key_of(db, Keyring.from_settings(with_keys(settings, new)), tenant_id, version_id) == key


def with_keys(settings: Settings, text: str) -> Settings:
    return settings.model_copy(update={"sealing_keys": SecretStr(text)})
