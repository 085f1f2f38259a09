import math

import pytest

from app.db.session import Database
from app.errors import InvalidInputError, NotFoundError
from app.training.metrics import MetricPoint, log_metrics, read_metrics
from tests.factories import add_job, make_tenant


@pytest.fixture
def job_id(database: Database, tenant_id: str) -> str:
    with database.tenant(tenant_id) as session:
        return add_job(session, tenant_id).id


def log(database: Database, tenant_id: str, job_id: str, step: int, **values: float) -> None:
    with database.tenant(tenant_id) as session:
        log_metrics(session, tenant_id, job_id, step, values)


def read(database: Database, tenant_id: str, job_id: str) -> list[tuple[int, str, float | None]]:
    with database.tenant(tenant_id) as session:
        points, _ = read_metrics(session, tenant_id, job_id)
    return [(point.step, point.name, point.value) for point in points]


def test_metrics_are_read_by_step_then_name(
    database: Database, tenant_id: str, job_id: str
) -> None:
    log(database, tenant_id, job_id, 10, loss=0.1)
    log(database, tenant_id, job_id, 2, loss=0.5, accuracy=0.75)
    assert read(database, tenant_id, job_id) == [
        (2, "accuracy", 0.75),
        (2, "loss", 0.5),
        (10, "loss", 0.1),
    ]


def test_step_logged_again_replaces_its_numbers(
    database: Database, tenant_id: str, job_id: str
) -> None:
    log(database, tenant_id, job_id, 1, loss=0.5)
    log(database, tenant_id, job_id, 1, loss=0.25)
    assert read(database, tenant_id, job_id) == [(1, "loss", 0.25)]


def test_number_that_is_not_finite_reads_as_a_gap(
    database: Database, tenant_id: str, job_id: str
) -> None:
    log(database, tenant_id, job_id, 1, loss=math.nan, norm=math.inf)
    assert read(database, tenant_id, job_id) == [(1, "loss", None), (1, "norm", None)]


def test_one_curve_is_read_page_by_page(database: Database, tenant_id: str, job_id: str) -> None:
    for step in range(12):
        log(database, tenant_id, job_id, step, loss=step, accuracy=-step)
    seen: list[MetricPoint] = []
    more = True
    with database.tenant(tenant_id) as session:
        while more:
            after = seen[-1].id if seen else None
            points, more = read_metrics(session, tenant_id, job_id, "loss", after=after, limit=5)
            seen += points
    assert [(point.step, point.value) for point in seen] == [(n, float(n)) for n in range(12)]


def test_page_may_end_between_two_names_of_a_step(
    database: Database, tenant_id: str, job_id: str
) -> None:
    log(database, tenant_id, job_id, 1, **{"test/f1": 1, "train/loss": 2})
    with database.tenant(tenant_id) as session:
        (first,), more = read_metrics(session, tenant_id, job_id, limit=1)
        (second,), end = read_metrics(session, tenant_id, job_id, after=first.id, limit=1)
    assert [first.name, second.name] == ["test/f1", "train/loss"]
    assert (more, end) == (True, False)


@pytest.mark.parametrize("after", ["", "loss", "1", "x:loss", "-1:loss"])
def test_cursor_that_was_not_given_out_is_refused(
    database: Database, tenant_id: str, job_id: str, after: str
) -> None:
    with pytest.raises(InvalidInputError) as caught, database.tenant(tenant_id) as session:
        read_metrics(session, tenant_id, job_id, after=after)
    assert caught.value.code == "cursor_invalid"


@pytest.mark.parametrize(("step", "name"), [(1, ""), (1, "a b"), (-1, "loss"), (10**9, "loss")])
def test_metric_without_proper_name_or_step_is_refused(
    database: Database, tenant_id: str, job_id: str, step: int, name: str
) -> None:
    with pytest.raises(InvalidInputError) as caught, database.tenant(tenant_id) as session:
        log_metrics(session, tenant_id, job_id, step, {name: 1.0})
    assert caught.value.code == "metric_invalid"


def test_metrics_of_another_tenants_job_are_neither_written_nor_read(
    database: Database, tenant_id: str, job_id: str
) -> None:
    log(database, tenant_id, job_id, 1, loss=0.5)
    stranger = make_tenant(database)
    for door in (database.tenant(stranger), database.system()):
        with pytest.raises(NotFoundError), door as session:
            log_metrics(session, stranger, job_id, 2, {"loss": 1})
    for door in (database.tenant(stranger), database.system()):
        with door as session:
            assert read_metrics(session, stranger, job_id) == ([], False)
