"""Our own networks: sizes, shapes, storage, and that each of them learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from app.errors import InvalidInputError
from app.models.architectures import (
    Family,
    architecture_names,
    check_arch_options,
    find_architecture,
)
from app.models.spec import ModelSpec
from tests.unit.pictures import one_torch_thread, stripes
from worker.recognisers.load import load_recogniser
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_empty_module, build_module, default_preprocess
from worker.recognisers.weights import check_weights, save_weights

OWN = [name for name in architecture_names() if not find_architecture(name).is_zoo]
#: One of each form: the deeper ResNets repeat what the first has.
FORMS = [name for name in OWN if name not in ("resnet32", "resnet44", "resnet56", "resnet110")]
#: Options that make a network quick to test; the form stays that of the defaults.
QUICK: dict[str, dict[str, Any]] = {
    "resnet18_32px": {"width": 8},
    "row_rnn": {"hidden": 32, "step_px": 4},
    "renet": {"hidden": 8, "patches_px": [8, 2], "classifier": [16]},
    "patch_transformer": {
        "patch_px": 8,
        "d_model": 32,
        "heads": 4,
        "layers": 2,
        "feed_forward": 64,
        "dropout": 0.0,
    },
}


def spec_of(name: str, classes: int = 3, input_px: int = 32, **options: Any) -> ModelSpec:
    names = tuple(f"c{index}" for index in range(classes))
    chosen = check_arch_options(name, QUICK.get(name, {}) | options)
    return ModelSpec(name, names, default_preprocess(name, input_px), chosen)


def draw(spec: ModelSpec, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_module(spec)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def noise(px: int, n: int = 2) -> Tensor:
    return torch.randn(n, 3, px, px, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85), (110, 1.7)]
)
def test_resnets_have_the_parameters_that_their_paper_states(depth: int, millions: float) -> None:
    name = f"resnet{depth}"
    module = build_empty_module(ModelSpec(name, tuple("0123456789"), default_preprocess(name)))
    digits = 1 if depth == 110 else 2
    assert round(count(module) / 1e6, digits) == millions
    layers = [m for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth


def test_resnet_18_for_small_images_has_eleven_million_parameters_and_no_early_pool() -> None:
    spec = ModelSpec("resnet18_32px", tuple("0123456789"), default_preprocess("resnet18_32px"))
    assert count(build_empty_module(spec)) == 11_173_962
    module = draw(spec_of("resnet18_32px"))
    assert module.get_submodule("stem")(noise(32)).shape == (2, 8, 32, 32)
    assert module.get_submodule("stages")(torch.zeros(2, 8, 32, 32)).shape == (2, 64, 4, 4)


def test_transformer_of_the_defaults_has_six_layers_of_256() -> None:
    spec = ModelSpec("patch_transformer", ("a",), default_preprocess("patch_transformer"))
    module = build_empty_module(spec)
    layers = [m for m in module.modules() if isinstance(m, nn.TransformerEncoderLayer)]
    assert [(m.linear1.in_features, m.linear1.out_features) for m in layers] == [(256, 2048)] * 6
    assert {m.self_attn.num_heads for m in layers} == {8}
    assert module.state_dict()["positions"].shape == (1, 65, 256)


def test_layers_of_a_transformer_begin_with_numbers_of_their_own() -> None:
    state = draw(spec_of("patch_transformer")).state_dict()
    first, second = (state[f"encoder.layers.{n}.linear1.weight"] for n in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("input_px", [32, 48])
def test_networks_answer_each_image_with_a_number_a_class(name: str, input_px: int) -> None:
    module = draw(spec_of(name, classes=5, input_px=input_px)).eval()
    with torch.inference_mode():
        logits = module(noise(input_px))
        assert logits.shape == (2, 5)
        assert logits.isfinite().all()
        # The memory order of decoded pixels gives the same numbers.
        last = module.to(memory_format=torch.channels_last)
        again = last(noise(input_px).to(memory_format=torch.channels_last))
        # Nor does an image's answer depend on its neighbours.
        alone = last(noise(input_px)[:1])
    assert torch.allclose(logits, again, atol=1e-5)
    assert torch.allclose(logits[:1], alone, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_networks_without_memory_take_the_images_they_are_made_for(name: str) -> None:
    spec = ModelSpec(name, ("a", "b", "c"), default_preprocess(name))
    module = build_empty_module(spec)
    assert all(parameter.is_meta for parameter in module.parameters())
    module.to("meta").eval()
    with torch.inference_mode():
        assert module(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("small_cnn", {"preset": "wide"}),
        ("small_cnn", {"channels": [4], "hidden": [], "dropout": 0.5}),
        ("row_rnn", {"cell": "gru", "sequence": "columns", "pooling": "last"}),
        ("row_rnn", {"sequence": "patches", "step_px": 8, "bidirectional": False}),
        ("row_rnn", {"pooling": "last", "bidirectional": False}),
        ("row_rnn", {"pooling": "mean", "layers": 3}),
        ("renet", {"cell": "lstm", "patches_px": [4, 2, 2], "classifier": []}),
        ("patch_transformer", {"pooling": "mean"}),
        ("linear_svm", {"features": "pixels", "grid": 4}),
        ("decision_tree", {"features": "hog", "orientations": 4, "max_depth": 3}),
    ],
)
def test_other_options_make_networks_too(name: str, options: dict[str, Any]) -> None:
    spec = spec_of(name, **options)
    module = draw(spec)
    assert module.train()(noise(32)).shape == (2, 3)
    empty = build_empty_module(spec)
    assert all(parameter.is_meta for parameter in empty.parameters())
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }


@pytest.mark.parametrize("name", FORMS)
def test_networks_come_back_from_a_file_as_they_were_saved(name: str, tmp_path: Path) -> None:
    spec, path = spec_of(name), tmp_path / "w.safetensors"
    module = draw(spec).eval()
    save_weights(module, path)
    assert check_weights(path, spec).parameters == count(module)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = module(Normalise(spec.preprocess)(pixels))
    found = load_recogniser(spec, path, "cpu").forward(pixels)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_same_seed_draws_the_same_network(name: str) -> None:
    first, again, other = (draw(spec_of(name), seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    if find_architecture(name).family != Family.BASELINE:
        assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("small_cnn", 3e-3),
        ("resnet20", 3e-3),
        ("resnet18_32px", 3e-3),
        ("row_rnn", 1e-2),
        ("renet", 1e-2),
        ("patch_transformer", 3e-3),
    ],
)
def test_networks_learn_a_handful_of_images_by_heart(name: str, rate: float) -> None:
    images = stripes(6)
    spec = spec_of(name)
    module = draw(spec).train()
    inputs = Normalise(spec.preprocess)(images.pixels)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(40):
            loss = cross_entropy(module(inputs), images.targets)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if float(loss.detach()) < 0.05:
                break
    assert float(loss.detach()) < 0.05


@pytest.mark.parametrize(
    ("name", "input_px", "options"),
    [
        ("small_cnn", 8, {}),
        ("row_rnn", 32, {"step_px": 5}),
        ("renet", 32, {"patches_px": [4, 3]}),
        ("patch_transformer", 36, {"patch_px": 8}),
    ],
)
def test_images_that_a_network_cannot_be_built_for_are_refused(
    name: str, input_px: int, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        build_module(spec_of(name, input_px=input_px, **options))
    assert caught.value.code == "preprocess_invalid"


def test_forget_gates_are_open_from_the_start() -> None:
    state = draw(spec_of("row_rnn")).state_dict()
    assert (state["layers.0.bias_ih_l0"][32:64] == 1).all()
    gru = draw(spec_of("row_rnn", cell="gru")).state_dict()
    assert not (gru["layers.0.bias_ih_l0"][32:64] == 1).any()


def test_sequence_of_rows_and_of_columns_see_the_image_turned() -> None:
    rows = draw(spec_of("row_rnn", sequence="rows")).eval()
    columns = draw(spec_of("row_rnn", sequence="columns")).eval()
    image = noise(32)
    assert torch.allclose(rows(image), columns(image.transpose(2, 3)), atol=1e-6)
