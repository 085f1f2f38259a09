"""Heads and depths of networks, and networks that begin with another version's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from app.errors import InvalidInputError
from app.models.architectures import Family, architecture_names, find_architecture
from app.models.spec import ModelSpec, PreprocessSpec
from app.training.start import ONE_SIZE
from tests.unit.pictures import assert_same
from worker.recognisers.layers import (
    class_parameters,
    depth_groups,
    head_parameters,
    training_logits,
)
from worker.recognisers.registry import build_empty_module, build_module, default_preprocess
from worker.recognisers.transfer import load_body
from worker.recognisers.weights import save_weights

CLASSES = ("a", "b", "c", "d", "e", "f", "g")
DEEP = [
    name
    for name in architecture_names()
    if not find_architecture(name).is_zoo and find_architecture(name).family != Family.BASELINE
]


def empty(name: str) -> nn.Module:
    return build_empty_module(ModelSpec(name, CLASSES, default_preprocess(name)))


def require_order(name: str, module: nn.Module) -> list[list[str]]:
    """Every parameter stands in just one group, and the head in the last."""
    groups = depth_groups(module, name)
    listed = [one for group in groups for one in group]
    assert sorted(listed) == sorted(one for one, _ in module.named_parameters()), name
    assert len(set(listed)) == len(listed), name
    assert all(groups), name
    head = head_parameters(module, name)
    assert head <= set(groups[-1]), name
    shapes = dict(module.named_parameters())
    assert {shapes[one].shape[0] for one in head} == {len(CLASSES)}, name
    return groups


@pytest.mark.parametrize("name", DEEP)
def test_own_networks_are_ordered_from_the_images_to_the_head(name: str) -> None:
    groups = require_order(name, empty(name))
    assert all(one.startswith("classifier.") for one in groups[-1])
    assert len(groups) >= 2


def test_all_of_torchvisions_networks_are_built_without_memory_and_ordered_to_the_head() -> None:
    for name in architecture_names():
        if not find_architecture(name).is_zoo:
            continue
        module = empty(name)
        assert all(parameter.is_meta for parameter in module.parameters()), name
        groups = require_order(name, module)
        assert len(groups) >= 8, name
        sizes = [sum(module.get_parameter(one).numel() for one in group) for group in groups]
        # Were blocks not told apart, one group would hold nearly all.
        assert max(sizes) < 0.8 * sum(sizes) or name.startswith("vgg"), name


def test_blocks_stay_whole_and_norms_stay_with_what_they_normalise() -> None:
    groups = depth_groups(empty("resnet18"), "resnet18")
    assert groups[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert {one.split(".")[1] for one in groups[1]} == {"0"}
    assert groups[-1] == ["fc.weight", "fc.bias"]
    assert len(groups) == 1 + 8 + 1
    # The norm behind the last block belongs to it.
    vit = depth_groups(empty("vit_b_32"), "vit_b_32")
    assert len(vit) == 1 + 12 + 1
    assert {"class_token", "conv_proj.weight", "encoder.pos_embedding"} < set(vit[0])
    assert "encoder.ln.weight" in vit[-2]


def test_own_transformer_has_a_group_for_each_layer() -> None:
    groups = depth_groups(empty("patch_transformer"), "patch_transformer")
    assert len(groups) == 1 + 6 + 1
    assert {"class_token", "positions", "embedding.weight", "embedding.bias"} == set(groups[0])


def test_auxiliary_heads_lie_beside_the_head_and_tell_classes_apart_too() -> None:
    module = empty("inception_v3")
    assert head_parameters(module, "inception_v3") == {"fc.weight", "fc.bias"}
    assert class_parameters(module, "inception_v3") == {
        "fc.weight",
        "fc.bias",
        "AuxLogits.fc.weight",
        "AuxLogits.fc.bias",
    }
    last = depth_groups(module, "inception_v3")[-1]
    assert {one.partition(".")[0] for one in last} == {"fc", "AuxLogits"}
    assert {"aux1.fc2.weight", "aux2.fc2.weight"} < class_parameters(
        empty("googlenet"), "googlenet"
    )


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_auxiliary_logits_come_while_training_only(name: str) -> None:
    module = empty(name)
    module.to("meta")
    px = find_architecture(name).input_px
    assert px == (299 if name == "inception_v3" else 224)
    images = torch.empty(2, 3, px, px, device="meta")
    logits, auxiliary = training_logits(module.train(), images)
    assert logits.shape == (2, len(CLASSES))
    assert auxiliary is not None
    assert auxiliary.shape == (2, len(CLASSES))
    logits, auxiliary = training_logits(module.eval(), images)
    assert logits.shape == (2, len(CLASSES))
    assert auxiliary is None


def test_several_auxiliary_heads_learn_all() -> None:
    spec = ModelSpec("googlenet", ("a", "b"), PreprocessSpec(64, 64))
    module = build_module(spec).train()
    _, auxiliary = training_logits(module, torch.randn(2, 3, 64, 64))
    assert auxiliary is not None
    torch.autograd.backward(auxiliary.square().sum())
    for name in ("aux1.fc2.weight", "aux2.fc2.weight"):
        gradient = module.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().sum() > 0


def small(classes: int, seed: int, arch: str = "small_cnn") -> nn.Module:
    names = tuple(f"c{index}" for index in range(classes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_module(ModelSpec(arch, names, default_preprocess(arch, 32)))


def saved(module: nn.Module, folder: Path) -> Path:
    path = folder / "w.safetensors"
    save_weights(module, path)
    return path


@pytest.mark.parametrize("classes", [3, 5])
def test_body_is_taken_and_the_head_stays_as_it_was_drawn(classes: int, tmp_path: Path) -> None:
    other, module = small(3, seed=1), small(classes, seed=2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    report = load_body(module, saved(other, tmp_path), "small_cnn")
    after, theirs = module.state_dict(), other.state_dict()
    assert set(report.drawn) == {"classifier.5.weight", "classifier.5.bias"}
    assert set(report.taken) | set(report.drawn) == set(after)
    assert_same({n: after[n] for n in report.taken}, {n: theirs[n] for n in report.taken})
    assert_same({n: after[n] for n in report.drawn}, {n: before[n] for n in report.drawn})
    assert report.as_dict()["tensors_taken"] == len(after) - 2


def test_head_is_taken_too_where_the_classes_are_the_same(tmp_path: Path) -> None:
    other, module = small(3, seed=1), small(3, seed=2)
    report = load_body(module, saved(other, tmp_path), "small_cnn", same_classes=True)
    assert report.drawn == ()
    assert_same(module.state_dict(), other.state_dict())


def test_half_precision_is_taken_as_float32(tmp_path: Path) -> None:
    other, module = small(3, seed=1).half(), small(3, seed=2)
    load_body(module, saved(other, tmp_path), "small_cnn")
    found = module.get_parameter("features.0.weight")
    assert found.dtype == torch.float32
    assert torch.equal(found, other.get_parameter("features.0.weight").float())
    assert found.requires_grad


def test_weights_of_another_form_change_nothing(tmp_path: Path) -> None:
    module = small(3, seed=2)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state = small(3, seed=1).state_dict()
    state["features.3.bias"] = torch.zeros(17)
    save_weights(state, tmp_path / "w.safetensors")
    with pytest.raises(InvalidInputError) as caught:
        load_body(module, tmp_path / "w.safetensors", "small_cnn")
    assert caught.value.code == "weights_mismatch"
    assert [fault["pointer"] for fault in caught.value.errors] == ["features.3.bias"]
    assert_same(module.state_dict(), before)


@pytest.mark.parametrize("stored_with", [True, False])
def test_auxiliary_heads_may_be_in_the_file_or_not(stored_with: bool, tmp_path: Path) -> None:
    def googlenet(classes: int, *, aux: bool) -> nn.Module:
        names = tuple(f"c{index}" for index in range(classes))
        return build_module(
            ModelSpec("googlenet", names, PreprocessSpec(64, 64), {"aux_logits": aux})
        )

    module = googlenet(2, aux=not stored_with)
    other = googlenet(3, aux=stored_with)
    report = load_body(module, saved(other, tmp_path), "googlenet")
    assert "conv1.conv.weight" in report.taken
    assert all(name.startswith(("fc.", "aux")) for name in report.drawn)
    assert torch.equal(
        module.state_dict()["conv1.conv.weight"], other.state_dict()["conv1.conv.weight"]
    )


def test_baselines_start_from_no_other_version(tmp_path: Path) -> None:
    svm = small(3, seed=1, arch="linear_svm")
    with pytest.raises(InvalidInputError) as caught:
        load_body(svm, saved(svm, tmp_path), "linear_svm")
    assert caught.value.code == "start_impossible"


@pytest.mark.parametrize("arch", DEEP)
def test_network_whose_layers_fit_one_size_of_images_is_known_as_such(arch: str) -> None:
    def shapes(input_px: int) -> dict[str, torch.Size]:
        usual = default_preprocess(arch).at_size(input_px)
        state = build_empty_module(ModelSpec(arch, CLASSES, usual)).state_dict()
        return {name: tensor.shape for name, tensor in state.items() if name != "positions"}

    assert (shapes(32) != shapes(64)) == (arch in ONE_SIZE)


@pytest.mark.parametrize("pooling", ["mean", "class_token"])
def test_positions_are_stretched_where_the_images_have_another_size(
    pooling: str, tmp_path: Path
) -> None:
    def transformer(input_px: int) -> nn.Module:
        options = {"preset": "small", "pooling": pooling, "patch_px": 4}
        return build_module(
            ModelSpec("patch_transformer", ("a", "b"), PreprocessSpec(input_px, input_px), options)
        )

    other, module = transformer(16), transformer(32)
    tokens = int(pooling == "class_token")
    columns = torch.arange(4.0).repeat(4)
    with torch.no_grad():
        other.get_parameter("positions")[0, tokens:] = columns[:, None]
        other.get_parameter("positions")[0, :tokens] = 7
    report = load_body(module, saved(other, tmp_path), "patch_transformer")
    assert "positions" in report.taken
    found = module.get_parameter("positions").detach()
    assert (found[0, :tokens] == 7).all()
    rows = found[0, tokens:, 0].unflatten(0, (8, 8))
    assert torch.allclose(rows, rows[:1])
    assert (rows[0].diff() > 0).all()
    assert torch.allclose(rows.mean(), columns.mean())
