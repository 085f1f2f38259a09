"""Two tenants never see one another's rows: by row level security, and by WHERE without it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from app.datasets.freeze import freeze_dataset
from app.datasets.resolve import (
    iter_samples,
    list_dataset_versions,
    list_datasets,
    names_of_dataset_versions,
    resolve_dataset,
)
from app.db.session import Database
from app.errors import NotFoundError
from app.ids import MODEL, new_id
from app.jobs.cancel import cancel_job
from app.models.grants import give_grant
from app.models.promote import move_alias
from app.models.register import announce_version, complete_version, fail_version
from app.models.resolve import get_version, list_models, list_versions, names_of_versions
from app.models.states import VersionState
from app.tenants.budgets import budget_of, set_budget
from app.tenants.keys import create_key, list_keys, revoke_key
from app.tenants.scopes import Scope
from app.training.metrics import log_metrics, read_metrics
from app.webhooks.deliveries import send_test
from app.webhooks.register import create_webhook
from tests.factories import (
    PEPPER,
    SPEC,
    add_job,
    add_upload,
    add_version,
    entry,
    make_tenant,
    name_of_tenant,
)
from tests.webhooks import KEYRING, unchecked

TABLES = [
    "tenants",
    "api_keys",
    "datasets",
    "dataset_versions",
    "samples",
    "models",
    "model_versions",
    "aliases",
    "grants",
    "key_budgets",
    "jobs",
    "events",
    "metrics",
    "uploads",
    "shards",
    "webhooks",
    "webhook_deliveries",
]


@dataclass(frozen=True)
class Owned:
    """Ids of what one tenant has."""

    tenant_id: str
    key_id: str
    job_id: str
    upload_id: str
    dataset_version_id: str
    model_version_id: str


def furnish(database: Database) -> Owned:
    """A tenant that has a row in every table above."""
    tenant_id = make_tenant(database)
    grantee = name_of_tenant(database, make_tenant(database))
    with database.tenant(tenant_id) as session:
        key = create_key(session, tenant_id, name="k", scopes=[Scope.ADMIN], pepper=PEPPER)
        job = add_job(session, tenant_id)
        cancel_job(session, tenant_id, job.id)
        log_metrics(session, tenant_id, job.id, 1, {"loss": 0.5})
        webhook, _ = create_webhook(
            session,
            KEYRING,
            tenant_id,
            target=unchecked("https://example.com/"),
            events=["job.failed"],
        )
        send_test(session, tenant_id, webhook.id)
        upload = add_upload(session, tenant_id, [entry(0), entry(1, "dog")])
        data = freeze_dataset(session, tenant_id, name="pets", upload_id=upload.id)
        version = add_version(session, tenant_id)
        move_alias(session, tenant_id, "pets", "production", version.id)
        give_grant(session, tenant_id, "pets", grantee, rights=["run"])
        set_budget(session, tenant_id, key.id, 5)
    return Owned(tenant_id, key.id, job.id, upload.id, data.id, version.id)


@pytest.fixture(scope="module")
def mine(database: Database) -> Owned:
    return furnish(database)


@pytest.fixture(scope="module")
def theirs(database: Database) -> Owned:
    return furnish(database)


@pytest.mark.parametrize("table", TABLES)
def test_query_without_where_shows_only_own_rows(
    database: Database, mine: Owned, theirs: Owned, table: str
) -> None:
    owner = "id" if table == "tenants" else "tenant_id"
    everyone = text(f"SELECT DISTINCT {owner} FROM {table}")
    with database.tenant(mine.tenant_id) as session:
        assert session.scalars(everyone).all() == [mine.tenant_id]
    with database.anonymous() as session:
        assert session.scalars(everyone).all() == []
    with database.system() as session:
        assert {mine.tenant_id, theirs.tenant_id} <= set(session.scalars(everyone))


@pytest.mark.parametrize("table", [table for table in TABLES if table != "tenants"])
def test_rows_of_others_are_out_of_reach_of_update_and_delete(
    database: Database, mine: Owned, theirs: Owned, table: str
) -> None:
    of_others = {"theirs": theirs.tenant_id}
    with database.tenant(mine.tenant_id) as session:
        for statement in (
            f"UPDATE {table} SET tenant_id = tenant_id WHERE tenant_id = :theirs",
            f"DELETE FROM {table} WHERE tenant_id = :theirs",
        ):
            reached = session.scalars(text(f"{statement} RETURNING 1"), of_others).all()
            assert reached == []


def test_row_for_another_tenant_cannot_be_written(
    database: Database, mine: Owned, theirs: Owned
) -> None:
    planted = text("INSERT INTO models (id, tenant_id, name) VALUES (:id, :theirs, 'planted')")
    with (
        pytest.raises(ProgrammingError, match="row-level security"),
        database.tenant(mine.tenant_id) as session,
    ):
        session.execute(planted, {"id": new_id(MODEL), "theirs": theirs.tenant_id})


def test_question_without_transaction_shows_only_own_rows(
    database: Database, mine: Owned, theirs: Owned
) -> None:
    question = "SELECT id FROM jobs WHERE bound.tenant_id IS NOT NULL"
    for owner in (mine, theirs):
        rows = database.ask_as(owner.tenant_id, question, {})
        assert [row.id for row in rows] == [owner.job_id]
    # And nothing of the tenant stays behind on the connection.
    assert database.ask("SELECT id FROM jobs", {}) == []
    assert database.ask_as("", question, {}) == []


UseCase = Callable[[Session, str, Owned], Any]
REFUSED: dict[str, UseCase] = {
    "get_version": lambda s, me, their: get_version(s, me, their.model_version_id),
    "list_versions": lambda s, me, their: list_versions(
        s, me, "pets", after=their.model_version_id
    ),
    "move_alias": lambda s, me, their: move_alias(s, me, "pets", "mine", their.model_version_id),
    "complete_version": lambda s, me, their: complete_version(
        s,
        me,
        their.model_version_id,
        spec=SPEC,
        weights_key="k",
        weights_sha256="0",
        weights_bytes=1,
        parameter_count=1,
    ),
    "resolve_dataset": lambda s, me, their: resolve_dataset(s, me, their.dataset_version_id),
    "list_dataset_versions": lambda s, me, their: list_dataset_versions(
        s, me, "pets", after=their.dataset_version_id
    ),
    "freeze_dataset": lambda s, me, their: freeze_dataset(
        s, me, name="stolen", upload_id=their.upload_id
    ),
    "revoke_key": lambda s, me, their: revoke_key(s, me, their.key_id),
    "budget_of": lambda s, me, their: budget_of(s, me, their.key_id),
    "set_budget": lambda s, me, their: set_budget(s, me, their.key_id, 9),
    "log_metrics": lambda s, me, their: log_metrics(s, me, their.job_id, 2, {"loss": 1}),
}


@pytest.mark.parametrize("door", ["tenant", "system"])
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_things_of_another_tenant_do_not_exist(
    database: Database, mine: Owned, theirs: Owned, name: str, door: str
) -> None:
    opened = database.tenant(mine.tenant_id) if door == "tenant" else database.system()
    with pytest.raises(NotFoundError), opened as session:
        REFUSED[name](session, mine.tenant_id, theirs)


@pytest.mark.parametrize("door", ["tenant", "system"])
def test_lists_show_only_own_things(
    database: Database, mine: Owned, theirs: Owned, door: str
) -> None:
    me = mine.tenant_id
    opened = database.tenant(me) if door == "tenant" else database.system()
    with opened as session:
        assert [key.id for key in list_keys(session, me)[0]] == [mine.key_id]
        assert [row.latest_number for row in list_models(session, me)[0]] == [1]
        assert len(list_datasets(session, me)[0]) == 1
        assert get_version(session, me, "pets").id == mine.model_version_id
        assert resolve_dataset(session, me, "pets").id == mine.dataset_version_id
        assert list(iter_samples(session, me, theirs.dataset_version_id)) == []
        assert read_metrics(session, me, theirs.job_id) == ([], False)
        assert names_of_versions(session, me, [theirs.model_version_id]) == {}
        assert names_of_dataset_versions(session, me, [theirs.dataset_version_id]) == {}


def test_failing_the_job_of_another_tenant_changes_nothing(
    database: Database, mine: Owned, theirs: Owned
) -> None:
    with database.system() as session:
        pending = announce_version(
            session,
            theirs.tenant_id,
            model="pets",
            arch=SPEC.arch,
            arch_options={},
            lineage={},
            job_id=theirs.job_id,
        )
        fail_version(session, mine.tenant_id, theirs.job_id)
        found = get_version(session, theirs.tenant_id, pending.id)
        assert found.state == VersionState.PENDING
        fail_version(session, theirs.tenant_id, theirs.job_id)
        found = get_version(session, theirs.tenant_id, pending.id)
        assert found.state == VersionState.FAILED
