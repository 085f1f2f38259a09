"""Weights files are compared with their architecture before they cost memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.errors import InvalidInputError
from app.models.spec import ModelSpec, PreprocessSpec
from tests.unit.pictures import small_spec
from worker.recognisers.cnn import SmallCnn
from worker.recognisers.load import load_recogniser
from worker.recognisers.registry import build_module
from worker.recognisers.weights import check_weights, save_weights


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def refusal(path: Path, spec: ModelSpec) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        check_weights(path, spec)
    return caught.value


def change(path: Path, **tensors: Any) -> None:
    save_file(load_file(path) | tensors, path)


def test_weights_that_fit_are_reported(path: Path) -> None:
    module = SmallCnn(3)
    save_weights(module, path)
    report = check_weights(path, small_spec())
    assert report.parameters == sum(p.numel() for p in module.parameters())
    assert report.bytes == 4 * report.parameters
    assert report.dtypes == ("F32",)


def test_saved_weights_read_back_to_the_bit(path: Path) -> None:
    module = SmallCnn(3)
    save_weights(module, path)
    assert all(torch.equal(load_file(path)[k], v) for k, v in module.state_dict().items())
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_half_precision_is_accepted_and_counted_as_float32(path: Path) -> None:
    save_weights(SmallCnn(3).half(), path)
    change(path, **{"features.0.bias": torch.zeros(6, dtype=torch.bfloat16)})
    report = check_weights(path, small_spec())
    assert report.dtypes == ("BF16", "F16")
    assert report.bytes == 4 * report.parameters


def test_every_mismatch_is_named(path: Path) -> None:
    state = SmallCnn(3).state_dict()
    del state["features.0.weight"]
    state["features.0.bias"] = torch.zeros(7)
    state["classifier.1.bias"] = torch.zeros(120, dtype=torch.float64)
    state["extra"] = torch.zeros(1)
    save_weights(state, path)
    error = refusal(path, small_spec())
    assert error.code == "weights_mismatch"
    assert error.total == 4
    assert {fault["pointer"]: fault["detail"] for fault in error.errors} == {
        "features.0.weight": "is missing; 6×3×5×5 is expected",
        "features.0.bias": "has shape 7; 6 is expected",
        "classifier.1.bias": "is F64; F32 or F16 or BF16 is expected",
        "extra": "is not a part of this architecture",
    }


def test_other_number_of_classes_is_a_mismatch(path: Path) -> None:
    save_weights(SmallCnn(10), path)
    error = refusal(path, small_spec(classes=3))
    assert [fault["pointer"] for fault in error.errors] == [
        "classifier.5.weight",
        "classifier.5.bias",
    ]


def test_long_lists_of_mismatches_are_cut_at_a_hundred(path: Path) -> None:
    save_weights(SmallCnn(3), path)
    spec = ModelSpec("resnet50", ("a", "b"), PreprocessSpec(64, 64))
    error = refusal(path, spec)
    assert len(error.errors) == 100
    assert error.total is not None
    assert error.total > 200
    with pytest.raises(InvalidInputError):
        load_recogniser(spec, path, "cpu")


def test_mismatch_is_found_before_any_tensor_is_loaded(path: Path, tmp_path: Path) -> None:
    # A header that promises four gigabytes, followed by a hole in the file.
    size = 2**32
    header = f'{{"w":{{"dtype":"F32","shape":[{size // 4}],"data_offsets":[0,{size}]}}}}'.encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    assert refusal(path, small_spec()).code == "weights_mismatch"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_found(path: Path, bad: float) -> None:
    save_weights(SmallCnn(3), path)
    change(path, **{"classifier.3.bias": torch.full((84,), bad)})
    error = refusal(path, small_spec())
    assert error.code == "weights_not_finite"
    assert [fault["pointer"] for fault in error.errors] == ["classifier.3.bias"]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_cut_files_are_damaged(path: Path, share: float) -> None:
    save_weights(SmallCnn(3), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    assert refusal(path, small_spec()).code == "weights_damaged"


def test_pickled_checkpoint_is_not_taken_and_never_unpickled(path: Path) -> None:
    torch.save(SmallCnn(3).state_dict(), path)
    assert refusal(path, small_spec()).code == "weights_unsupported"


def test_missing_step_counters_of_batch_norm_are_no_mismatch(path: Path) -> None:
    spec = ModelSpec("resnet18", ("a", "b"), PreprocessSpec(64, 64))
    state = build_module(spec).state_dict()
    save_weights({k: v for k, v in state.items() if "num_batches" not in k}, path)
    assert check_weights(path, spec).parameters > 11_000_000
    pixels = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    assert load_recogniser(spec, path, "cpu").forward(pixels).shape == (1, 2)


def test_images_too_small_for_the_architecture_are_refused(path: Path) -> None:
    save_weights(SmallCnn(3), path)
    error = refusal(path, ModelSpec("alexnet", ("a",), PreprocessSpec(16, 16)))
    assert error.code == "preprocess_invalid"
