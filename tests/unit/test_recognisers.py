"""Architectures by name, their preprocessing, and networks kept warm."""

from __future__ import annotations

import threading
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision import models

from app.errors import DarkroomError, InvalidInputError
from app.models.spec import ModelSpec, PreprocessSpec
from tests.unit.pictures import picture, small_recogniser, small_spec
from worker.recognisers.cache import RecogniserCache
from worker.recognisers.cnn import SmallCnn
from worker.recognisers.load import Recogniser, device_lock, load_recogniser
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import (
    build_empty_module,
    build_module,
    default_preprocess,
    imagenet_classes,
)
from worker.recognisers.weights import save_weights
from worker.recognisers.zoo import fetch_torchvision_weights, torchvision_spec, zoo_names


def zoo_spec(arch: str, classes: int = 2, **changes: Any) -> ModelSpec:
    names = tuple(f"c{index}" for index in range(classes))
    return ModelSpec(arch, names, **{"preprocess": default_preprocess(arch)} | changes)


def test_small_cnn_has_the_layers_it_is_named_for() -> None:
    shapes = [tuple(p.shape) for name, p in SmallCnn(10).named_parameters() if "weight" in name]
    assert shapes == [(6, 3, 5, 5), (16, 6, 5, 5), (120, 400), (84, 120), (10, 84)]
    assert SmallCnn(10)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_zoo_holds_torchvisions_classifiers_and_nothing_else() -> None:
    names = zoo_names()
    assert {"squeezenet1_0", "resnet50", "vit_b_16", "swin_t"} <= set(names)
    assert not [name for name in names if "quantized" in name or "rcnn" in name]


@pytest.mark.parametrize(
    "arch", ["squeezenet1_0", "resnet18", "regnet_x_400mf", "swin_t", "googlenet"]
)
def test_empty_module_has_the_shapes_of_the_real_one_and_no_memory(arch: str) -> None:
    empty = build_empty_module(zoo_spec(arch))
    assert all(parameter.is_meta for parameter in empty.parameters())
    real = build_module(zoo_spec(arch)).state_dict()
    assert {name: value.shape for name, value in empty.state_dict().items()} == {
        name: value.shape for name, value in real.items()
    }


def test_vision_transformer_follows_the_size_of_its_images() -> None:
    spec = zoo_spec("vit_b_32", preprocess=PreprocessSpec(96, 64))
    assert build_empty_module(spec).state_dict()["encoder.pos_embedding"].shape == (1, 5, 768)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (ModelSpec("lenet99", ("a",), PreprocessSpec(32, 32)), "arch_unknown"),
        (ModelSpec("fasterrcnn_resnet50_fpn", ("a",), PreprocessSpec(32, 32)), "arch_unknown"),
        (ModelSpec("small_cnn", ("a",), PreprocessSpec(8, 8)), "preprocess_invalid"),
        (ModelSpec("maxvit_t", ("a",), PreprocessSpec(64, 64)), "preprocess_invalid"),
        (
            ModelSpec("resnet18", ("a",), PreprocessSpec(64, 64), {"weights": "DEFAULT"}),
            "arch_options_invalid",
        ),
        (
            ModelSpec("small_cnn", ("a",), default_preprocess("small_cnn"), {"depth": 3}),
            "arch_options_invalid",
        ),
    ],
)
def test_spec_that_cannot_be_built_is_refused(spec: ModelSpec, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        build_module(spec)
    assert caught.value.code == code


def test_default_preprocess_is_that_of_the_default_weights() -> None:
    assert default_preprocess("squeezenet1_0") == PreprocessSpec(256, 224)
    assert default_preprocess("resnet50") == PreprocessSpec(232, 224)
    assert default_preprocess("swin_t").interpolation == "bicubic"
    halves = (0.5, 0.5, 0.5)
    assert default_preprocess("small_cnn") == PreprocessSpec(
        32, 32, "stretch", mean=halves, std=halves
    )


def test_imagenet_has_a_thousand_classes_in_torchvisions_order() -> None:
    classes = imagenet_classes()
    assert len(classes) == 1000
    assert classes[2] == "great white shark"


def test_normalised_pixels_are_torchvisions_numbers_to_the_bit() -> None:
    image = picture(1, (224, 224))
    expected = models.SqueezeNet1_0_Weights.DEFAULT.transforms()(image.resize((256, 256)))
    spec = default_preprocess("squeezenet1_0")
    cropped = image.resize((256, 256)).crop((16, 16, 240, 240))
    pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
    assert torch.equal(Normalise(spec)(pixels.view(1, 224, 224, 3))[0], expected)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_loaded_recogniser_answers_as_the_network_that_was_saved(
    tmp_path: Path, stored: torch.dtype
) -> None:
    module = SmallCnn(3).to(stored)
    save_weights(module, tmp_path / "w.safetensors")
    recogniser = load_recogniser(small_spec(), tmp_path / "w.safetensors", "cpu")
    pixels = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    expected = module.float().eval()(Normalise(small_spec().preprocess)(pixels))
    found = recogniser.forward(pixels)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "resnet18", "googlenet"])
def test_loaded_zoo_network_answers_as_a_plain_torchvision_one(tmp_path: Path, arch: str) -> None:
    spec = zoo_spec(arch, preprocess=PreprocessSpec(64, 64))
    module = build_module(spec).eval()
    save_weights(module, tmp_path / "w.safetensors")
    recogniser = load_recogniser(spec, tmp_path / "w.safetensors", "cpu")
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = module(Normalise(spec.preprocess)(pixels).contiguous())
    assert torch.allclose(recogniser.forward(pixels), expected, atol=1e-4)


def test_weights_that_changed_since_they_were_registered_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(SmallCnn(3), path)
    with pytest.raises(InvalidInputError) as caught:
        load_recogniser(small_spec(), path, "cpu", sha256="0" * 64)
    assert caught.value.code == "weights_changed"


def test_recognisers_of_one_device_share_its_lock() -> None:
    assert small_recogniser().lock is small_recogniser().lock
    assert device_lock("cuda") is device_lock("cuda:0")
    assert device_lock("cpu") is not device_lock("cuda:0")


def test_published_weights_out_of_reach_are_told_plainly(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("worker.recognisers.zoo.urlopen", offline)
    with pytest.raises(DarkroomError) as caught:
        fetch_torchvision_weights("squeezenet1_1")
    assert (caught.value.code, caught.value.retryable) == ("weights_unreachable", False)
    assert "no route to host" in caught.value.detail
    assert models.SqueezeNet1_1_Weights.DEFAULT.url in caught.value.detail
    assert str(tmp_path) in caught.value.detail


def test_published_weights_come_through_torchvisions_own_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    spec = torchvision_spec("densenet121")
    state = build_module(spec).state_dict()
    # As it was published: with the old names of a dense block's layers.
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in state.items()
    }
    assert old.keys() != state.keys()
    file = Path(models.DenseNet121_Weights.DEFAULT.url).name
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(old, tmp_path / "hub" / "checkpoints" / file)
    fetched = fetch_torchvision_weights("densenet121")
    save_weights(fetched, tmp_path / "w.safetensors")
    assert load_recogniser(spec, tmp_path / "w.safetensors", "cpu").spec == spec


@pytest.mark.parametrize(
    ("arch", "which", "code"),
    [("nothing", "DEFAULT", "arch_unknown"), ("resnet18", "V9", "weights_unknown")],
)
def test_published_weights_that_do_not_exist_are_named(arch: str, which: str, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        torchvision_spec(arch, which)
    assert caught.value.code == code


def test_cache_loads_a_version_once_even_when_two_threads_ask() -> None:
    cache = RecogniserCache(10**9)
    recogniser = small_recogniser()
    both_asked = threading.Event()
    loads: list[int] = []

    def load() -> Recogniser:
        loads.append(1)
        assert both_asked.wait(20)
        return recogniser

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(cache.get, "v1", load)
        second = threads.submit(cache.get, "v1", load)
        both_asked.set()
        assert first.result() is second.result() is recogniser
    assert loads == [1]
    assert cache.version_ids() == ["v1"]


def test_cache_lets_the_least_recently_used_go() -> None:
    size = small_recogniser().bytes
    cache = RecogniserCache(2 * size)
    for version in ("v1", "v2", "v1", "v3"):
        cache.get(version, small_recogniser)
    assert cache.version_ids() == ["v3", "v1"]


def test_cache_keeps_the_newest_even_over_its_bound() -> None:
    cache = RecogniserCache(1)
    for version in ("v1", "v2"):
        cache.get(version, small_recogniser)
    assert cache.version_ids() == ["v2"]


def test_failed_load_is_raised_and_tried_again() -> None:
    cache = RecogniserCache(10**9)

    def broken() -> Recogniser:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get("v1", broken)
    assert cache.version_ids() == []
    assert cache.get("v1", small_recogniser).bytes > 0
