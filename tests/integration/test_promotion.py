"""Gates before aliases, promotion, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from time import time_ns
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import text, update
from sqlalchemy.exc import DBAPIError

from app.datasets.freeze import freeze_dataset
from app.datasets.tables import Split
from app.db.session import Database
from app.errors import ConflictError, DarkroomError, InvalidInputError, NotFoundError
from app.jobs.states import JobKind
from app.models.evaluations import list_evaluations, record_evaluation
from app.models.gate import GateRule, find_gate, remove_gate, set_gate
from app.models.promote import (
    list_moves,
    move_alias,
    promote_version,
    roll_back,
    settle_alias,
)
from app.models.register import announce_version, complete_version
from app.models.resolve import get_model, resolve_version
from app.models.retire import archive_version
from app.models.tables import Alias
from tests.factories import SPEC, add_job, add_upload, add_version, entry, make_tenant

ACCURACY = GateRule("accuracy")


class Pets:
    """A tenant's model ``pets`` with three ready versions, and the dataset ``zoo`` at 1 and 2."""

    def __init__(self, db: Database, tenant_id: str) -> None:
        self.db, self.tenant_id = db, tenant_id
        with db.tenant(tenant_id) as session:
            self.versions = [add_version(session, tenant_id).id for _ in range(3)]
            self.job_id = add_job(session, tenant_id, JobKind.FINETUNE).id
            self.datasets = {
                f"{name}@{number}": self._freeze(session, name, number)
                for name, number in (("zoo", 1), ("zoo", 2), ("farm", 1))
            }

    def _freeze(self, session: Any, name: str, number: int) -> str:
        entries = [entry(each, content=f"{name} {number} {each}") for each in range(number + 1)]
        upload = add_upload(session, self.tenant_id, entries)
        frozen = freeze_dataset(session, self.tenant_id, name=name, upload_id=upload.id)
        assert frozen.number == number
        return frozen.id

    def evaluated(
        self,
        number: int,
        accuracy: float,
        on: str = "zoo@1",
        split: Split | None = Split.TEST,
        *,
        items: int = 100,
    ) -> None:
        with self.db.tenant(self.tenant_id) as session:
            record_evaluation(
                session,
                self.tenant_id,
                version_id=self.versions[number - 1],
                dataset_version_id=self.datasets[on],
                split=split,
                job_id=self.job_id,
                items=items,
                scores={"accuracy": accuracy, "f1": 1 - accuracy, "per_class": []},
            )

    def point(self, number: int) -> None:
        with self.db.tenant(self.tenant_id) as session:
            move_alias(session, self.tenant_id, "pets", "production", self.versions[number - 1])

    def promote(self, number: int, rule: GateRule | None = None) -> Any:
        with self.db.tenant(self.tenant_id) as session:
            return promote_version(
                session, self.tenant_id, "pets", "production", number=number, rule=rule
            )

    def gate(self, rule: GateRule) -> None:
        with self.db.tenant(self.tenant_id) as session:
            set_gate(session, self.tenant_id, "pets", "production", rule)

    def back(self) -> int:
        with self.db.tenant(self.tenant_id) as session:
            return roll_back(session, self.tenant_id, "pets", "production").to_number

    @property
    def production(self) -> int:
        with self.db.tenant(self.tenant_id) as session:
            return resolve_version(session, self.tenant_id, "pets").number

    @property
    def moves(self) -> list[tuple[str, int | None, int]]:
        with self.db.tenant(self.tenant_id) as session:
            rows, _ = list_moves(session, self.tenant_id, "pets", "production")
        return [(row.kind, row.from_number, row.to_number) for row in reversed(rows)]


@pytest.fixture
def pets(database: Database, tenant_id: str) -> Pets:
    return Pets(database, tenant_id)


def refused(call: Callable[[], Any]) -> DarkroomError:
    with pytest.raises(DarkroomError) as caught:
        call()
    return caught.value


def test_better_version_takes_the_place_of_the_one_before(pets: Pets) -> None:
    pets.point(1)
    pets.evaluated(1, 0.90)
    pets.evaluated(2, 0.92)
    verdict = pets.promote(2, GateRule("accuracy", margin=0.01))
    assert (verdict.passed, verdict.candidate, verdict.incumbent) == (True, 0.92, 0.90)
    assert verdict.measured_on == "zoo@1 test"
    assert pets.production == 2
    assert pets.moves == [("moved", None, 1), ("promoted", 1, 2)]


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        (GateRule("accuracy", margin=0.03), "0.9200 on zoo@1 test"),
        (GateRule("accuracy", minimum=0.95), "asks for 0.9500"),
        (GateRule("f1"), "the version in place has 0.1000"),
    ],
    ids=["margin", "minimum", "other metric"],
)
def test_version_that_is_not_good_enough_stays_out(pets: Pets, rule: GateRule, told: str) -> None:
    pets.point(1)
    pets.evaluated(1, 0.90)
    pets.evaluated(2, 0.92)
    error = refused(lambda: pets.promote(2, rule))
    assert (error.code, error.status) == ("gate_not_passed", 409)
    assert told in error.detail
    assert pets.production == 1


def test_equal_version_passes_without_margin_and_a_worse_one_within_it(pets: Pets) -> None:
    pets.point(1)
    pets.evaluated(1, 0.90)
    pets.evaluated(2, 0.90)
    pets.evaluated(3, 0.895)
    assert pets.promote(2, ACCURACY).passed
    assert refused(lambda: pets.promote(3, ACCURACY)).code == "gate_not_passed"
    assert pets.promote(3, GateRule("accuracy", margin=-0.01)).passed


@pytest.mark.parametrize(
    ("on", "split"),
    [("zoo@2", Split.TEST), ("zoo@1", Split.TRAIN), ("zoo@1", None), ("farm@1", Split.TEST)],
)
def test_scores_on_other_images_are_not_compared(pets: Pets, on: str, split: Split | None) -> None:
    pets.point(1)
    pets.evaluated(1, 0.10)
    pets.evaluated(2, 0.99, on, split)
    error = refused(lambda: pets.promote(2, ACCURACY))
    assert error.code == "evaluation_missing"
    assert "same images" in error.detail
    assert pets.production == 1


def test_scores_on_fewer_of_the_images_are_not_compared(pets: Pets) -> None:
    # One that does not know a class is not measured on its images, which the other gets wrong.
    pets.point(1)
    pets.evaluated(1, 0.90)
    pets.evaluated(2, 0.99, items=60)
    error = refused(lambda: pets.promote(2, ACCURACY))
    assert error.code == "evaluation_missing"
    assert "on zoo@1 test it answered 60 images and the version in place 100" in error.detail
    assert pets.production == 1
    # Answers that were missing come with another evaluation.
    pets.evaluated(2, 0.91)
    pets.evaluated(1, 0.95, items=99)
    assert pets.promote(2, ACCURACY).incumbent == 0.90


def test_version_that_answers_more_of_the_images_may_come(pets: Pets) -> None:
    # A class was added: the one in place answers none of its images, and never will.
    pets.point(1)
    pets.evaluated(1, 0.90, items=60)
    pets.evaluated(2, 0.89)
    assert refused(lambda: pets.promote(2, ACCURACY)).code == "gate_not_passed"
    pets.evaluated(3, 0.91)
    assert pets.promote(3, ACCURACY).incumbent == 0.90


def test_newest_images_that_both_answered_decide(pets: Pets) -> None:
    pets.point(1)
    for number, on, accuracy in ((1, "zoo@1", 0.9), (2, "zoo@1", 0.8)):
        pets.evaluated(number, accuracy, on)
    assert refused(lambda: pets.promote(2, ACCURACY)).code == "gate_not_passed"
    for number, on, accuracy in ((1, "zoo@2", 0.7), (2, "zoo@2", 0.75), (1, "farm@1", 0.9)):
        pets.evaluated(number, accuracy, on)
    assert pets.promote(2, ACCURACY).measured_on == "zoo@2 test"


def test_gate_of_one_dataset_looks_at_no_other(pets: Pets) -> None:
    pets.point(1)
    for number, on, accuracy in ((1, "zoo@1", 0.9), (2, "zoo@1", 0.95), (1, "farm@1", 0.9)):
        pets.evaluated(number, accuracy, on)
    rule = GateRule("accuracy", dataset="farm")
    assert refused(lambda: pets.promote(2, rule)).code == "evaluation_missing"
    pets.evaluated(2, 0.91, "farm@1")
    assert pets.promote(2, rule).measured_on == "farm@1 test"
    unknown = GateRule("accuracy", dataset="sea")
    assert refused(lambda: pets.promote(3, unknown)).code == "dataset_not_found"


def test_first_version_needs_only_the_minimum(pets: Pets) -> None:
    pets.evaluated(1, 0.6)
    assert refused(lambda: pets.promote(1, GateRule("accuracy", minimum=0.7))).code == (
        "gate_not_passed"
    )
    assert refused(lambda: pets.promote(2, ACCURACY)).code == "evaluation_missing"
    verdict = pets.promote(1, GateRule("accuracy", margin=0.2, minimum=0.5))
    assert (verdict.incumbent, pets.production) == (None, 1)


def test_promotion_without_any_gate_is_refused(pets: Pets) -> None:
    assert refused(lambda: pets.promote(1)).code == "gate_missing"


def test_alias_with_a_gate_is_only_promoted(pets: Pets) -> None:
    pets.point(1)
    pets.gate(GateRule("accuracy", minimum=0.5))
    error = refused(lambda: pets.point(2))
    assert (error.code, error.status) == ("alias_gated", 409)
    # The gate of the alias counts, whatever the request would compare.
    pets.evaluated(1, 0.4)
    pets.evaluated(2, 0.45)
    lenient = GateRule("accuracy", margin=-1)
    assert refused(lambda: pets.promote(2, lenient)).code == "gate_not_passed"
    with pets.db.tenant(pets.tenant_id) as session:
        # An alias without a gate moves as before.
        move_alias(session, pets.tenant_id, "pets", "next", pets.versions[1])
        remove_gate(session, pets.tenant_id, "pets", "production")
    pets.point(2)
    assert pets.production == 2
    with pytest.raises(NotFoundError), pets.db.tenant(pets.tenant_id) as session:
        remove_gate(session, pets.tenant_id, "pets", "production")


def test_gate_is_replaced_whole(pets: Pets) -> None:
    pets.gate(GateRule("accuracy", 0.1, 0.5, "zoo"))
    pets.gate(GateRule("f1"))
    with pets.db.tenant(pets.tenant_id) as session:
        model = get_model(session, pets.tenant_id, "pets")
        assert find_gate(session, pets.tenant_id, model.id, "production") == GateRule("f1")


@pytest.mark.parametrize(
    "words",
    [
        {"metric": "loss"},
        {"metric": "f1", "margin": 1.5},
        {"metric": "f1", "margin": float("nan")},
        {"metric": "f1", "minimum": -0.1},
    ],
    ids=["metric", "margin", "nan", "minimum"],
)
def test_gate_that_means_nothing_is_refused(words: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        GateRule(**words)
    assert caught.value.code == "gate_invalid"


def test_job_moves_an_alias_only_through_its_gate(pets: Pets) -> None:
    with pets.db.tenant(pets.tenant_id) as session:
        assert settle_alias(session, pets.tenant_id, "pets", "production", pets.versions[0]) is None
    pets.gate(ACCURACY)
    pets.evaluated(1, 0.9)
    pets.evaluated(2, 0.8)
    pets.evaluated(3, 0.91)
    with pets.db.tenant(pets.tenant_id) as session:
        worse = settle_alias(session, pets.tenant_id, "pets", "production", pets.versions[1])
        better = settle_alias(session, pets.tenant_id, "pets", "production", pets.versions[2])
    assert worse is not None
    assert (worse.passed, worse.code) == (False, "gate_not_passed")
    assert better is not None
    assert better.passed
    assert pets.moves == [("moved", None, 1), ("promoted", 1, 3)]


def test_roll_back_goes_back_step_by_step_and_no_gate_is_asked(pets: Pets) -> None:
    for number in (1, 2, 3):
        pets.point(number)
    pets.gate(GateRule("accuracy", minimum=1.0))
    assert [pets.back(), pets.back()] == [2, 1]
    assert refused(pets.back).code == "nothing_to_roll_back"
    assert pets.production == 1
    assert pets.moves[-2:] == [("rolled_back", 3, 2), ("rolled_back", 2, 1)]


def test_roll_back_after_a_roll_back_and_a_move_undoes_the_move(pets: Pets) -> None:
    for number in (1, 2):
        pets.point(number)
    assert pets.back() == 1
    pets.point(3)
    assert pets.back() == 1


def test_roll_back_ends_at_the_first_version_also_where_one_came_twice(pets: Pets) -> None:
    for number in (1, 2, 1, 3):
        pets.point(number)
    assert [pets.back(), pets.back(), pets.back()] == [1, 2, 1]
    assert refused(pets.back).code == "nothing_to_roll_back"
    pets.point(2)
    assert pets.back() == 1
    assert refused(pets.back).code == "nothing_to_roll_back"


def test_move_by_a_machine_whose_clock_is_ahead_is_taken_back_as_any_other(
    pets: Pets, monkeypatch: pytest.MonkeyPatch
) -> None:
    pets.point(1)
    pets.point(2)
    with monkeypatch.context() as ahead:
        ahead.setattr("app.ids.time", SimpleNamespace(time_ns=lambda: time_ns() + 300 * 10**9))
        pets.point(3)
    assert [pets.back(), pets.back()] == [2, 1]
    assert pets.moves[-3:] == [("moved", 2, 3), ("rolled_back", 3, 2), ("rolled_back", 2, 1)]


def test_roll_back_of_a_move_that_nobody_noted_is_refused(pets: Pets) -> None:
    pets.point(1)
    pets.point(2)
    # As the release before did, while it served beside this one.
    with pets.db.tenant(pets.tenant_id) as session:
        session.execute(update(Alias).values(version_id=pets.versions[2]))
    assert refused(pets.back).code == "nothing_to_roll_back"
    assert pets.production == 3


def test_roll_back_to_an_archived_version_is_refused(pets: Pets) -> None:
    pets.point(1)
    pets.point(2)
    with pets.db.tenant(pets.tenant_id) as session:
        archive_version(session, pets.tenant_id, "pets", 1)
    assert refused(pets.back).code == "model_not_ready"
    assert pets.production == 2


def test_alias_moved_to_a_version_as_it_becomes_ready_does_not_hold_up_its_job(pets: Pets) -> None:
    with pets.db.tenant(pets.tenant_id) as session:
        fresh = announce_version(
            session, pets.tenant_id, model="pets", arch=SPEC.arch, arch_options={}, lineage={}
        )
    pets.versions.append(fresh.id)
    with pets.db.tenant(pets.tenant_id) as job:
        complete_version(
            job,
            pets.tenant_id,
            fresh.id,
            spec=SPEC,
            weights_key="weights/4",
            weights_sha256="4" * 64,
            weights_bytes=4,
            parameter_count=1,
        )
        # Neither waits for the job, which waits for the model that they lock.
        assert refused(lambda: pets.point(4)).code == "model_not_ready"
        assert refused(lambda: pets.promote(4, ACCURACY)).code == "model_not_ready"
        settle_alias(job, pets.tenant_id, "pets", "production", fresh.id)
    assert pets.production == 4


def test_two_promotions_at_once_leave_one_whole_history(pets: Pets) -> None:
    pets.point(1)
    for number, accuracy in ((1, 0.5), (2, 0.6), (3, 0.7)):
        pets.evaluated(number, accuracy)
    barrier = Barrier(2)

    def promote(number: int) -> bool:
        barrier.wait()
        try:
            return bool(pets.promote(number, ACCURACY).passed)
        except ConflictError:
            return False

    with ThreadPoolExecutor(2) as pool:
        passed = dict(zip((2, 3), pool.map(promote, (2, 3)), strict=True))
    assert passed[3]
    # Whoever came second saw the first: a move never starts where the alias was not.
    places = [(before, after) for _, before, after in pets.moves]
    assert all(places[i][1] == places[i + 1][0] for i in range(len(places) - 1))
    assert pets.production == 3


def test_moves_and_evaluations_are_added_and_never_changed(pets: Pets) -> None:
    pets.point(1)
    pets.evaluated(1, 0.9)
    for statement in (
        "UPDATE alias_moves SET kind = 'promoted'",
        "DELETE FROM alias_moves",
        "UPDATE evaluations SET items = 1",
        "DELETE FROM evaluations",
    ):
        with (
            pytest.raises((DarkroomError, DBAPIError), match="permission denied"),
            pets.db.tenant(pets.tenant_id) as session,
        ):
            session.execute(text(statement))


def test_evaluations_are_listed_newest_first_with_numbers_alone(pets: Pets) -> None:
    pets.evaluated(1, 0.9)
    pets.evaluated(1, 0.8, "zoo@2", None)
    with pets.db.tenant(pets.tenant_id) as session:
        first, more = list_evaluations(session, pets.tenant_id, pets.versions[0], limit=1)
        rest, end = list_evaluations(
            session, pets.tenant_id, pets.versions[0], after=first[0].id, limit=1
        )
    assert (first[0].dataset, first[0].split, more) == ("zoo@2", None, True)
    assert (rest[0].dataset, rest[0].split, end) == ("zoo@1", "test", False)
    assert set(rest[0].metrics) == {"accuracy", "f1"}


def test_another_tenants_scores_and_moves_are_out_of_sight(pets: Pets, database: Database) -> None:
    pets.point(1)
    pets.evaluated(1, 0.9)
    other = make_tenant(database)
    with database.tenant(other) as session:
        for table in ("alias_moves", "evaluations", "gates"):
            assert session.scalar(text(f"SELECT count(*) FROM {table}")) == 0
