"""Recipes are checked whole, outlive their release, and have presets for every architecture."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from app.errors import InvalidInputError
from app.models.architectures import architecture_names, find_architecture
from app.training.augment import AugmentSpec
from app.training.check import DatasetFacts, check_dataset
from app.training.presets import Preset, preset_fields
from app.training.recipe import TrainingRecipe


def test_recipe_outlives_a_round_through_json() -> None:
    recipe = TrainingRecipe(
        arch="row_rnn",
        optimizer="adamw",
        start="mdv_1",
        max_seconds=60,
        augment=AugmentSpec(flip=True, policy="randaugment"),
    )
    assert TrainingRecipe.from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe


def test_recipe_of_an_earlier_release_means_what_it_meant() -> None:
    old = {
        "arch": "small_cnn",
        "epochs": 7,
        "train_batch_size": 32,
        "learning_rate": 0.02,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "label_smoothing": 0.1,
        "schedule": "cosine",
        "seed": 3,
    }
    assert TrainingRecipe.from_dict(old) == TrainingRecipe(epochs=7, seed=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"learning_rate": 0},
        {"learning_rate": 101},
        {"learning_rate": float("nan")},
        {"momentum": 1},
        {"beta2": 1},
        {"ema_decay": 1},
        {"label_smoothing": 1},
        {"layer_decay": 0},
        {"step_factor": 0},
        {"max_seconds": 0},
        {"epochs": 0},
        {"train_batch_size": -1},
        {"accumulate_batches": 0},
        {"optimizer": "adam"},
        {"schedule": "linear"},
        {"train_layers": "none"},
        {"precision": "fp16"},
        {"sampler": "even"},
        {"class_weights": "own"},
        {"input_px": 4},
        {"seed": 2**63},
        {"warmup_epochs": 30},
        {"frozen_epochs": 30},
        {"frozen_epochs": 1, "train_layers": "head"},
        {"augment": {"magnitude": 31}},
    ],
    ids="-".join,
)
def test_field_outside_its_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    name = "magnitude" if "augment" in wrong else next(iter(wrong))
    with pytest.raises(ValueError, match=name):
        TrainingRecipe.from_dict(wrong)


def test_unknown_architecture_and_option_have_codes_of_their_own() -> None:
    for fields, code in (
        ({"arch": "small_cn"}, "arch_unknown"),
        ({"arch_options": {"depth": 3}}, "arch_options_invalid"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            TrainingRecipe.from_dict(fields)
        assert caught.value.code == code


@pytest.mark.parametrize("preset", ["quick", "standard", "best"])
def test_preset_is_a_recipe_for_every_architecture(preset: Preset) -> None:
    for name in architecture_names():
        for started in (False, True):
            fields = preset_fields(find_architecture(name), preset, started=started)
            TrainingRecipe.from_dict({"arch": name} | fields)


def test_presets_differ_by_what_they_cost_and_by_the_start() -> None:
    def epochs(preset: Preset, *, started: bool = False) -> int:
        fields = preset_fields(find_architecture("resnet20"), preset, started=started)
        return int(fields["epochs"])

    assert epochs("quick") < epochs("standard") < epochs("best")
    assert epochs("standard", started=True) < epochs("standard")


GOOD = {
    "train": {"cat": 20, "dog": 20},
    "validation": {"cat": 4, "dog": 4},
    "test": {"cat": 5, "dog": 5},
}


def facts(**splits: dict[str, int]) -> DatasetFacts:
    return DatasetFacts("pets@1", ["cat", "dog"], GOOD | splits)


def test_dataset_that_can_teach_passes() -> None:
    check_dataset(facts(), TrainingRecipe(early_stopping_epochs=3))
    check_dataset(facts(validation={}), TrainingRecipe())
    check_dataset(facts(test={"cat": 1, "dog": 1}, train={"cat": 2, "dog": 2}), TrainingRecipe())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (replace(facts(), classes=["cat"]), "too_few_classes"),
        (facts(train={}), "empty_split"),
        (facts(test={"cat": 0}), "empty_split"),
        (facts(train={"cat": 9}), "one_class_split"),
        (facts(test={"dog": 9, "cat": 0}), "one_class_split"),
        (facts(validation={"dog": 9}), "one_class_split"),
        (facts(train={"cat": 20, "dog": 1}), "too_few_images"),
        (facts(validation={}), "early_stopping_needs_validation"),
    ],
    ids=[
        "one class",
        "no train",
        "no test",
        "train of one",
        "test of one",
        "validation of one",
        "one image",
        "no validation",
    ],
)
def test_dataset_that_cannot_teach_or_judge_is_refused(data: DatasetFacts, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_dataset(data, TrainingRecipe(early_stopping_epochs=3))
    assert caught.value.code == code


def test_classes_with_too_few_images_are_named() -> None:
    train = {"cat": 20, "dog": 1, "ant": 3}
    data = replace(facts(train=train), classes=["ant", "cat", "cow", "dog"])
    with pytest.raises(InvalidInputError) as caught:
        check_dataset(data, TrainingRecipe())
    assert caught.value.errors == [
        {"pointer": "cow", "detail": "0 training images"},
        {"pointer": "dog", "detail": "1 training images"},
    ]
