"""The space of a search, its sampler and its pruner, on trials that were never run."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import InvalidInputError
from app.jobs.trials import best_trial
from app.training.recipe import TrainingRecipe
from app.training.search import (
    Choices,
    Range,
    Search,
    Trial,
    TrialEpoch,
    check_search,
    check_space,
    read_space,
    searchable_fields,
    vary,
    write_space,
)
from worker.training.search import should_prune, suggest

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 1e-4, "high": 1e-1, "log": True},
    "frozen_epochs": {"low": 0, "high": 3},
    "weight_decay": {"choices": [0, 1e-4]},
    "optimizer": {"choices": ["sgd", "adamw"]},
    "augment.flip": {"choices": [True, False]},
}
RECIPE = TrainingRecipe(epochs=10)


def refused(space: dict[str, Any], recipe: TrainingRecipe = RECIPE) -> dict[str, str]:
    """Pointer → detail of each fault."""
    with pytest.raises(InvalidInputError) as error:
        check_space(read_space(space), recipe)
    assert error.value.code == "search_invalid"
    return {each["pointer"]: each["detail"] for each in error.value.errors}


def test_space_survives_json_as_it_was() -> None:
    space = read_space(SPACE)
    check_space(space, RECIPE)
    assert space["learning_rate"] == Range(1e-4, 1e-1, log=True)
    assert space["frozen_epochs"] == Range(0, 3, is_integer=True)
    assert space["weight_decay"] == Choices((0.0, 1e-4))
    assert read_space(json.loads(json.dumps(write_space(space)))) == space


@pytest.mark.parametrize(
    ("field", "values", "says"),
    [
        ("learning_rat", {"low": 0.1, "high": 1}, "no field that a search varies"),
        ("arch", {"choices": ["small_cnn"]}, "no field that a search varies"),
        ("augment", {"choices": ["flip"]}, "no field that a search varies"),
        ("learning_rate", {"low": 0.1, "high": 0.1}, "must be below high"),
        ("learning_rate", {"low": 0.1, "high": 0.1 + 2**-56}, "must be below high"),
        ("learning_rate", {"low": 0, "high": 0.1, "log": True}, "must be above 0"),
        ("learning_rate", {"low": 0, "high": 0.1}, "learning_rate must be above 0"),
        ("learning_rate", {"low": 0.1, "high": 101}, "learning_rate must be 0…100"),
        ("learning_rate", {"low": "a", "high": 1}, "'a' is no number"),
        ("epochs", {"low": 1.5, "high": 3}, "no whole number"),
        ("optimizer", {"low": 0, "high": 1}, "list its values as choices"),
        ("optimizer", {"choices": ["sgd", "adam"]}, "'adam' is none of sgd, adamw"),
        ("augment.flip", {"choices": [1]}, "neither true nor false"),
        ("label_smoothing", {"choices": [True]}, "no number"),
        ("weight_decay", {"choices": []}, "list 1 to 64 choices"),
        ("weight_decay", {"choices": [0.0, 0]}, "stands twice"),
        ("momentum", {"choices": [0.5, 1]}, "momentum must be below 1"),
        ("augment.mixup_alpha", {"low": 0, "high": 0.4}, "mixup_alpha must be 0, or 0.01"),
        ("augment.mixup_alpha", {"choices": [0, 0.001, 1]}, "mixup_alpha must be 0, or 0.01"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_field_that_cannot_be_searched_is_named_with_its_fault(
    field: str, values: dict[str, Any], says: str
) -> None:
    assert says in refused({field: values})[f"/options/space/{field}"]


def test_fields_that_do_not_go_together_are_refused_before_any_trial() -> None:
    beside = refused({"epochs": {"low": 2, "high": 9}, "frozen_epochs": {"choices": [0, 3]}})
    assert "epochs 2 and frozen_epochs 3" in beside["/options/space/frozen_epochs"]
    # Beside what the recipe says, too.
    alone = refused({"epochs": {"low": 2, "high": 9}}, TrainingRecipe(epochs=9, frozen_epochs=4))
    assert list(alone) == ["/options/space/epochs"]


def test_space_without_a_field_or_with_too_many_is_refused() -> None:
    many = {name: {"choices": [0]} for name in list(searchable_fields())[:17]}
    for space in ({}, many):
        assert "1 to 16 fields" in refused(space)["/options/space"]


def test_search_of_more_epochs_than_can_be_looked_at_is_refused() -> None:
    rates = read_space(RATES)
    check_search(Search(rates, trials=500), TrainingRecipe(epochs=200))
    longer = read_space(RATES | {"epochs": {"low": 1, "high": 201}})
    for search, recipe in (
        (Search(rates, trials=500), TrainingRecipe(epochs=201)),
        (Search(longer, trials=500), RECIPE),
    ):
        with pytest.raises(InvalidInputError) as refusal:
            check_search(search, recipe)
        assert refusal.value.errors[0]["pointer"] == "/options/trials"
        assert "500 trials of up to 201 epochs" in refusal.value.detail


def test_varied_recipe_differs_in_nothing_else() -> None:
    varied = vary(RECIPE, {"learning_rate": 0.5, "augment.flip": True}).as_dict()
    expected = RECIPE.as_dict() | {"learning_rate": 0.5}
    expected["augment"]["flip"] = True
    assert varied == expected


def complete(number: int, rate: float, *accuracies: float, loss: float = 1.0) -> Trial:
    epochs = [TrialEpoch(epoch, value, loss) for epoch, value in enumerate(accuracies, 1)]
    return Trial(
        number, "complete", {"learning_rate": rate}, epochs, accuracy=max(accuracies), loss=loss
    )


RATES = {"learning_rate": SPACE["learning_rate"]}


def test_same_trials_give_the_same_suggestion_inside_the_space() -> None:
    search = Search(read_space(SPACE), trials=20, random_trials=2, seed=7)
    trials: list[Trial] = []
    for number in range(8):
        parameters = suggest(search, trials, number)
        assert parameters == suggest(search, list(trials), number)
        assert 1e-4 <= parameters["learning_rate"] <= 1e-1
        assert parameters["frozen_epochs"] in range(4)
        assert parameters["weight_decay"] in (0.0, 1e-4)
        # As PostgreSQL gives them back.
        kept = json.loads(json.dumps(parameters))
        trials.append(Trial(number, "complete", kept, accuracy=0.5 + number / 100, loss=1.0))
    assert len({trial.parameters["learning_rate"] for trial in trials}) == len(trials)
    other = Search(read_space(SPACE), trials=20, random_trials=2, seed=8)
    assert suggest(other, [], 0) != suggest(search, [], 0)


def test_sampler_learns_and_keeps_away_from_what_others_try_now() -> None:
    search = Search(read_space(RATES), trials=40, seed=1)
    known = [complete(n, 10 ** (-4 + n / 8), 0.9 - abs(n - 16) / 20) for n in range(24)]
    near = [suggest(search, known, number)["learning_rate"] for number in range(24, 32)]
    # The best so far is 0.01.
    assert sum(0.002 < rate < 0.05 for rate in near) >= 6
    under_way = [
        Trial(30 + each, "running" if each % 2 else "waiting", {"learning_rate": 0.01})
        for each in range(12)
    ]
    pairs = [
        (suggest(search, known, number), suggest(search, [*known, *under_way], number))
        for number in range(60, 68)
    ]
    assert any(alone != beside for alone, beside in pairs)


def test_pruned_and_failed_trials_do_not_stop_the_sampler() -> None:
    search = Search(read_space(RATES), trials=9, random_trials=1, metric="loss")
    trials = [
        complete(0, 0.01, 0.5),
        Trial(1, "pruned", {"learning_rate": 0.02}, [TrialEpoch(1, 0.1, 3.0)]),
        Trial(2, "failed", {"learning_rate": 0.1}, [TrialEpoch(1, 0.1, None)]),
        Trial(3, "pruned", {"learning_rate": 0.1}),
        Trial(4, "stopped", {"learning_rate": 0.05}),
    ]
    assert 1e-4 <= suggest(search, trials, 5)["learning_rate"] <= 1e-1


@pytest.mark.parametrize(
    ("options", "accuracies", "expected"),
    [
        ({}, [0.1], True),
        ({}, [0.9], False),
        # A trial that was once good enough for its time is judged by the best it showed.
        ({}, [0.9, 0.1], False),
        ({"pruner": "none"}, [0.1], False),
        ({"pruner_warmup_epochs": 2}, [0.1], False),
        ({"pruner_warmup_epochs": 2}, [0.1, 0.1], True),
        ({"random_trials": 4}, [0.1], False),
    ],
)
def test_trial_is_pruned_where_it_does_worse_than_the_median(
    options: dict[str, Any], accuracies: list[float], expected: bool
) -> None:
    search = Search(read_space(RATES), trials=9, **{"random_trials": 3, **options})
    others = [complete(number, 0.01, 0.5, 0.6, 0.7) for number in range(3)]
    epochs = [TrialEpoch(epoch, value, 1.0) for epoch, value in enumerate(accuracies, 1)]
    trial = Trial(3, "running", {"learning_rate": 0.02}, epochs)
    assert should_prune(search, [*others, trial], 3) is expected


def test_best_trial_is_told_by_the_metric_then_by_the_other_one() -> None:
    trials = [
        complete(0, 0.1, 0.8, loss=0.7),
        complete(1, 0.1, 0.9, loss=0.9),
        complete(2, 0.1, 0.9, loss=0.8),
        complete(3, 0.1, 0.9, loss=0.8),
        Trial(4, "running", {}, accuracy=1.0, loss=0.0),
    ]

    def best(metric: Any) -> int:
        found = best_trial(trials, metric)
        assert found is not None
        return found.number

    assert best("accuracy") == 2
    assert best("loss") == 0
    assert best_trial([], "loss") is None
