from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import select, text, update

from app.db.session import Database
from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.jobs.states import JobKind
from app.models.promote import move_alias
from app.models.register import announce_version, complete_version, fail_version
from app.models.resolve import (
    get_version,
    list_models,
    list_versions,
    names_of_versions,
    resolve_version,
    spec_of,
)
from app.models.states import VersionState
from app.models.tables import ModelVersion
from tests.factories import SPEC, add_job, add_version, make_tenant


def announce(database: Database, tenant_id: str, model: str = "pets") -> ModelVersion:
    with database.tenant(tenant_id) as session:
        return announce_version(
            session, tenant_id, model=model, arch="small_cnn", arch_options={}, lineage={"a": 1}
        )


def complete(database: Database, tenant_id: str, version_id: str) -> None:
    with database.tenant(tenant_id) as session:
        complete_version(
            session,
            tenant_id,
            version_id,
            spec=SPEC,
            weights_key="weights/1",
            weights_sha256="0" * 64,
            weights_bytes=4,
            parameter_count=1,
            lineage={"b": 2},
        )


def test_versions_are_numbered_from_one_for_each_model(database: Database, tenant_id: str) -> None:
    numbers = [
        announce(database, tenant_id, model).number for model in ("cats", "cats", "dogs", "cats")
    ]
    assert numbers == [1, 2, 1, 3]


def test_versions_announced_at_once_get_different_numbers(
    database: Database, tenant_id: str
) -> None:
    clients, rounds = 4, 5

    def take(barrier: Barrier, model: str) -> int:
        with database.tenant(tenant_id) as session:
            # All transactions are open before the first one looks for the last number.
            session.execute(text("SELECT 1"))
            barrier.wait(timeout=10)
            return announce_version(
                session, tenant_id, model=model, arch="small_cnn", arch_options={}, lineage={}
            ).number

    for round_number in range(rounds):
        model = f"raced-{round_number // 2}"
        barrier = Barrier(clients)
        with ThreadPoolExecutor(clients) as pool:
            taken = [pool.submit(take, barrier, model) for _ in range(clients)]
        first = 1 + clients * (round_number % 2)
        assert sorted(each.result() for each in taken) == list(range(first, first + clients))


def test_completed_version_is_ready_and_whole(database: Database, tenant_id: str) -> None:
    version = announce(database, tenant_id)
    complete(database, tenant_id, version.id)
    with database.tenant(tenant_id) as session:
        found = resolve_version(session, tenant_id, "pets@1")
    assert found.state == VersionState.READY
    assert found.ready_at is not None
    assert found.lineage == {"a": 1, "b": 2}
    assert found.preprocess_sha256 == SPEC.preprocess.digest
    assert spec_of(found) == SPEC


def test_version_whose_preprocessing_was_edited_is_not_served(
    database: Database, tenant_id: str
) -> None:
    version = announce(database, tenant_id)
    complete(database, tenant_id, version.id)
    edited = SPEC.preprocess.as_dict() | {"interpolation": "nearest"}
    with database.tenant(tenant_id) as session:
        session.execute(
            update(ModelVersion).where(ModelVersion.id == version.id).values(preprocess=edited)
        )
        with pytest.raises(ConflictError) as caught:
            spec_of(resolve_version(session, tenant_id, "pets@1"))
    assert caught.value.code == "preprocess_changed"


def test_unknown_scores_are_null_in_sql_too(database: Database, tenant_id: str) -> None:
    version = announce(database, tenant_id)
    complete(database, tenant_id, version.id)
    with database.tenant(tenant_id) as session:
        assert session.scalars(select(ModelVersion.id).where(ModelVersion.scores.is_(None))).all()


def test_version_is_completed_only_once(database: Database, tenant_id: str) -> None:
    version = announce(database, tenant_id)
    complete(database, tenant_id, version.id)
    with pytest.raises(ConflictError) as caught:
        complete(database, tenant_id, version.id)
    assert caught.value.code == "model_not_pending"


def test_version_completed_in_this_transaction_resolves_as_ready(
    database: Database, tenant_id: str
) -> None:
    with database.tenant(tenant_id) as session:
        version = announce_version(
            session, tenant_id, model="pets", arch="small_cnn", arch_options={}, lineage={}
        )
        complete_version(
            session,
            tenant_id,
            version.id,
            spec=SPEC,
            weights_key="weights/1",
            weights_sha256="0" * 64,
            weights_bytes=4,
            parameter_count=1,
        )
        assert resolve_version(session, tenant_id, version.id).state == VersionState.READY


def test_failed_job_fails_only_what_it_left_pending(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        job = add_job(session, tenant_id, JobKind.FINETUNE)
        pending, done = (
            announce_version(
                session,
                tenant_id,
                model=model,
                arch="small_cnn",
                arch_options={},
                lineage={},
                job_id=job.id,
            )
            for model in ("left", "done")
        )
        other = announce_version(
            session, tenant_id, model="other", arch="small_cnn", arch_options={}, lineage={}
        )
    complete(database, tenant_id, done.id)
    with database.tenant(tenant_id) as session:
        fail_version(session, tenant_id, job.id)
    with database.tenant(tenant_id) as session:
        states = [get_version(session, tenant_id, v.id).state for v in (pending, done, other)]
    assert states == [VersionState.FAILED, VersionState.READY, VersionState.PENDING]


def test_number_of_a_failed_version_is_not_given_again(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        job = add_job(session, tenant_id, JobKind.IMPORT)
        announce_version(
            session,
            tenant_id,
            model="pets",
            arch="small_cnn",
            arch_options={},
            lineage={},
            job_id=job.id,
        )
        fail_version(session, tenant_id, job.id)
    assert announce(database, tenant_id).number == 2


def test_reference_finds_by_name_alias_number_and_id(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        first, second = add_version(session, tenant_id), add_version(session, tenant_id)
        move_alias(session, tenant_id, "pets", "production", first.id)
        move_alias(session, tenant_id, "pets", "next", second.id)
    found = {
        "pets": first,
        "pets@": first,
        "pets@production": first,
        "pets@next": second,
        "pets@2": second,
        second.id: second,
    }
    with database.tenant(tenant_id) as session:
        for reference, version in found.items():
            assert resolve_version(session, tenant_id, reference).id == version.id
        assert names_of_versions(session, tenant_id, [second.id, "mdv_nothing"]) == {
            second.id: "pets@2"
        }


@pytest.mark.parametrize(
    ("reference", "told"),
    [
        ("birds", "models here: pets"),
        ("pets@9", "its latest version is 1"),
        ("pets@99999999999", "its latest version is 1"),
        ("pets@next", r"@production \(version 1\)"),
        ("mdv_00000000000000000000000000", "models here: pets"),
        ("", "models here: pets"),
    ],
)
def test_unknown_reference_is_told_what_exists(
    database: Database, tenant_id: str, reference: str, told: str
) -> None:
    with database.tenant(tenant_id) as session:
        version = add_version(session, tenant_id)
        move_alias(session, tenant_id, "pets", "production", version.id)
    with (
        pytest.raises(NotFoundError, match=told) as caught,
        database.tenant(tenant_id) as session,
    ):
        resolve_version(session, tenant_id, reference)
    assert caught.value.code == "model_not_found"


def test_pending_version_takes_no_jobs(database: Database, tenant_id: str) -> None:
    announce(database, tenant_id)
    with (
        pytest.raises(ConflictError, match="not done yet") as caught,
        database.tenant(tenant_id) as session,
    ):
        resolve_version(session, tenant_id, "pets@1")
    assert caught.value.code == "model_not_ready"
    with pytest.raises(ConflictError), database.tenant(tenant_id) as session:
        spec_of(get_version(session, tenant_id, "pets@1"))


def test_alias_moves_and_moves_back(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        versions = [add_version(session, tenant_id) for _ in range(2)]
    for version in (*versions, versions[0]):
        with database.tenant(tenant_id) as session:
            move_alias(session, tenant_id, "pets", "live", version.id)
            assert resolve_version(session, tenant_id, "pets@live").id == version.id


def _pending(database: Database, tenant_id: str) -> str:
    return announce(database, tenant_id).id


def _of_another_model(database: Database, tenant_id: str) -> str:
    announce(database, tenant_id)
    with database.tenant(tenant_id) as session:
        return add_version(session, tenant_id, "birds").id


def _of_another_tenant(database: Database, tenant_id: str) -> str:
    announce(database, tenant_id)
    stranger = make_tenant(database)
    with database.tenant(stranger) as session:
        return add_version(session, stranger).id


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (_pending, ConflictError),
        (_of_another_model, NotFoundError),
        (_of_another_tenant, NotFoundError),
    ],
)
def test_alias_points_only_at_ready_versions_of_its_own_model(
    database: Database,
    tenant_id: str,
    make: Callable[[Database, str], str],
    error: type[Exception],
) -> None:
    version_id = make(database, tenant_id)
    with pytest.raises(error), database.tenant(tenant_id) as session:
        move_alias(session, tenant_id, "pets", "production", version_id)
    # The same where row level security does not help.
    with pytest.raises(error), database.system() as session:
        move_alias(session, tenant_id, "pets", "production", version_id)


@pytest.mark.parametrize("alias", ["3", "a@b", ""])
def test_alias_that_could_not_be_written_is_refused(
    database: Database, tenant_id: str, alias: str
) -> None:
    with pytest.raises(InvalidInputError) as caught, database.tenant(tenant_id) as session:
        move_alias(session, tenant_id, "pets", alias, "mdv_1")
    assert caught.value.code == "alias_name_invalid"


def test_models_are_listed_with_aliases_and_counts(database: Database, tenant_id: str) -> None:
    with database.tenant(tenant_id) as session:
        for model in ("cats", "dogs", "dogs"):
            version = add_version(session, tenant_id, model)
        move_alias(session, tenant_id, "dogs", "production", version.id)
    with database.tenant(tenant_id) as session:
        (dogs,), more = list_models(session, tenant_id, limit=1)
        (cats,), end = list_models(session, tenant_id, after=dogs.id, limit=1)
    assert (dogs.name, dogs.aliases, dogs.version_count) == ("dogs", {"production": 2}, 2)
    assert (cats.name, cats.aliases, cats.latest_number) == ("cats", {}, 1)
    assert (more, end) == (True, False)


def test_versions_are_listed_page_by_page_highest_first(database: Database, tenant_id: str) -> None:
    for _ in range(3):
        announce(database, tenant_id)
    with database.tenant(tenant_id) as session:
        first, more = list_versions(session, tenant_id, "pets", limit=2)
        rest, end = list_versions(session, tenant_id, "pets", after=first[-1].id, limit=2)
    assert [version.number for version in [*first, *rest]] == [3, 2, 1]
    assert (more, end) == (True, False)
