"""The table of architectures: what exists, and which options each takes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.errors import InvalidInputError
from app.models.architectures import (
    Family,
    architecture_names,
    check_arch_options,
    find_architecture,
    typed_options,
)
from worker.recognisers.registry import default_preprocess
from worker.recognisers.zoo import zoo_names

ALL = [find_architecture(name) for name in architecture_names()]
OWN = [arch.name for arch in ALL if not arch.is_zoo]


def test_zoo_in_the_table_is_torchvisions_own() -> None:
    assert sorted(arch.name for arch in ALL if arch.is_zoo) == sorted(zoo_names())
    assert not set(OWN) & set(zoo_names())


def test_architectures_are_made_for_the_images_that_their_preprocessing_yields() -> None:
    assert {arch.name: arch.input_px for arch in ALL} == {
        arch.name: default_preprocess(arch.name).crop_px for arch in ALL
    }
    assert find_architecture("inception_v3").input_px == 299


def test_every_family_has_an_architecture_of_our_own() -> None:
    assert {find_architecture(name).family for name in OWN} == set(Family)
    assert find_architecture("swin_t").family == Family.TRANSFORMER
    assert find_architecture("densenet121").family == Family.CNN


def test_another_size_of_images_keeps_the_share_that_is_cropped_off() -> None:
    small = default_preprocess("resnet18", 128)
    assert (small.resize_px, small.crop_px) == (146, 128)
    assert default_preprocess("row_rnn", 64).output_shape == (64, 64, 3)


@pytest.mark.parametrize("name", architecture_names())
def test_options_are_complete_plain_and_stay_the_same_when_checked_again(name: str) -> None:
    options = check_arch_options(name, {})
    assert json.loads(json.dumps(options)) == options
    assert check_arch_options(name, options) == options
    assert typed_options(name, options) == find_architecture(name).options()


def test_single_options_replace_defaults() -> None:
    assert check_arch_options("small_cnn", {"channels": [8, 8, 8], "padded": True}) == {
        "channels": [8, 8, 8],
        "hidden": [120, 84],
        "kernel_px": 5,
        "padded": True,
        "batch_norm": False,
        "dropout": 0.0,
    }


def test_preset_stands_for_a_set_of_options_and_those_beside_it_win() -> None:
    options = check_arch_options("patch_transformer", {"preset": "small", "layers": 2})
    assert (options["d_model"], options["layers"]) == (64, 2)
    assert "preset" not in options
    defaults = check_arch_options("patch_transformer", {})
    assert [defaults[name] for name in ("d_model", "heads", "layers", "feed_forward")] == [
        256,
        8,
        6,
        2048,
    ]


@pytest.mark.parametrize("name", [arch.name for arch in ALL if arch.presets])
def test_presets_are_options_of_their_architecture(name: str) -> None:
    arch = find_architecture(name)
    for preset, options in arch.presets.items():
        assert isinstance(options, arch.options)
        assert typed_options(name, {"preset": preset}) == options


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("small_cnn", {"depth": 3}, "'depth' is no option"),
        ("small_cnn", {"channels": []}, "channels must be a list of 1 to 6"),
        ("small_cnn", {"channels": 8}, "channels must be a list"),
        ("small_cnn", {"channels": [8, 1e9]}, "channels must be a whole number from 1 to 1024"),
        ("small_cnn", {"hidden": ["8"]}, "hidden must be a whole number"),
        ("small_cnn", {"kernel_px": 3.5}, "kernel_px must be a whole number"),
        ("small_cnn", {"kernel_px": True}, "kernel_px must be a whole number"),
        ("small_cnn", {"padded": 1}, "padded must be true or false"),
        ("small_cnn", {"padded": True, "kernel_px": 4}, "kernel_px must be odd"),
        ("small_cnn", {"dropout": float("nan")}, "dropout must be a number from 0.0 to 0.9"),
        ("small_cnn", {"preset": "huge"}, "preset 'huge' is none; there are wide"),
        ("resnet20", {"width": 0}, "width must be a whole number from 4 to 256"),
        ("resnet18", {"preset": ["small"]}, "there are none"),
        ("resnet18", {"weights": "DEFAULT"}, "there are none"),
        ("row_rnn", {"cell": "rnn"}, "cell must be one of lstm, gru"),
        ("row_rnn", {"cell": ["lstm"]}, "cell must be one of lstm, gru"),
        ("patch_transformer", {"d_model": 100}, "d_model must be a multiple of heads"),
        ("decision_tree", {"penalty": 1.0}, "'penalty' is no option"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    name: str, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_arch_options(name, options)
    assert caught.value.code == "arch_options_invalid"
    assert says in caught.value.detail


def test_unknown_architecture_is_refused_with_names_near_it() -> None:
    with pytest.raises(InvalidInputError) as caught:
        find_architecture("resnet181")
    assert caught.value.code == "arch_unknown"
    assert "resnet18" in caught.value.detail
    with pytest.raises(InvalidInputError) as caught:
        check_arch_options("?", {})
    assert "small_cnn" in caught.value.detail
