"""What is refused before there is a job is what no network can be built for, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from app.errors import InvalidInputError
from app.models.input_size import check_input_px
from app.models.spec import ModelSpec
from worker.recognisers.registry import build_empty_module, default_preprocess


def refused(check: Any) -> bool:
    try:
        check()
    except InvalidInputError as error:
        return error.code == "preprocess_invalid"
    return False


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("small_cnn", {}),
        ("small_cnn", {"preset": "wide"}),
        ("resnet20", {}),
        ("row_rnn", {}),
        ("row_rnn", {"step_px": 3}),
        ("renet", {}),
        ("patch_transformer", {}),
        ("linear_svm", {}),
        ("vit_b_16", {}),
        ("maxvit_t", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_sizes_are_refused_as_the_network_refuses_them(arch: str, options: dict[str, Any]) -> None:
    sizes = (32, 48, 224) if arch in ("vit_b_16", "maxvit_t") else (8, 9, 12, 16, 30, 32, 36)
    for px in sizes:
        spec = ModelSpec(arch, ("a", "b"), default_preprocess(arch, px), options)
        asked = refused(lambda px=px: check_input_px(arch, options, px))
        assert asked == refused(lambda spec=spec: build_empty_module(spec)), px


def test_images_too_small_for_the_layers_of_a_zoo_network_are_refused() -> None:
    assert refused(lambda: check_input_px("inception_v3", {}, 74))
    assert not refused(lambda: check_input_px("inception_v3", {}, 75))
    assert refused(lambda: check_input_px("resnet18", {}, 31))
    assert not refused(lambda: check_input_px("resnet18", {}, 32))
    assert refused(lambda: check_input_px("vit_b_16", {}, 250))
