"""Baselines answer as scikit-learn's own, and are recognisers as all others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor

from app.errors import DarkroomError, InvalidInputError, TooLargeError
from app.models.arch_options import FeatureOptions
from app.models.architectures import check_arch_options
from app.models.spec import ModelSpec
from tests.unit.pictures import assert_same, stripes
from worker.recognisers.baselines import DecisionTree, ImageFeatures, LinearSvm
from worker.recognisers.load import load_recogniser
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import default_preprocess
from worker.recognisers.weights import save_weights
from worker.training.baselines import _as_float32, fit_baseline

BASELINES = ("linear_svm", "decision_tree")


def spec_of(name: str, classes: int = 3, **options: Any) -> ModelSpec:
    names = tuple(f"c{index}" for index in range(classes))
    options = {"features": "pixels", "grid": 8} | options
    return ModelSpec(name, names, default_preprocess(name), check_arch_options(name, options))


def batches(count: int = 60, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    images = stripes(count, seed)
    return list(zip(images.pixels.split(16), images.targets.split(16), strict=True))


def features(spec: ModelSpec, pixels: Tensor) -> np.ndarray:
    found: Tensor = ImageFeatures(FeatureOptions("pixels", 8))(Normalise(spec.preprocess)(pixels))
    return found.numpy()


def answers(module: torch.nn.Module, spec: ModelSpec, pixels: Tensor) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = module(Normalise(spec.preprocess)(pixels))
    return logits


@pytest.mark.parametrize(
    ("name", "kind", "least"),
    [
        ("linear_svm", "pixels", 0.95),
        ("linear_svm", "hog", 0.95),
        ("decision_tree", "pixels", 0.95),
        # Few single gradients tell the stripes apart; guessing gives a third.
        ("decision_tree", "hog", 0.6),
    ],
)
def test_baselines_tell_unseen_images_apart(name: str, kind: str, least: float) -> None:
    spec, unseen = spec_of(name, features=kind), stripes(30, seed=9)
    module = fit_baseline(spec, batches(), seed=0)
    found = answers(module, spec, unseen.pixels).argmax(dim=1)
    assert float((found == unseen.targets).float().mean()) > least


@pytest.mark.parametrize("name", BASELINES)
def test_fitted_baselines_are_served_from_a_file(name: str, tmp_path: Path) -> None:
    spec, unseen = spec_of(name), stripes(9, seed=9)
    module = fit_baseline(spec, batches(), seed=0)
    save_weights(module, tmp_path / "w.safetensors")
    recogniser = load_recogniser(spec, tmp_path / "w.safetensors", "cpu")
    expected = answers(module, spec, unseen.pixels)
    assert torch.allclose(recogniser.forward(unseen.pixels), expected, atol=1e-4)


@pytest.mark.parametrize("name", BASELINES)
def test_same_seed_fits_the_same_numbers(name: str) -> None:
    first, again = (fit_baseline(spec_of(name), batches(), seed=2**40 + 1) for _ in range(2))
    assert_same(first.state_dict(), again.state_dict())


def test_svm_answers_as_liblinear_does() -> None:
    spec, images, unseen = spec_of("linear_svm"), stripes(60), stripes(30, seed=9)
    known, asked = features(spec, images.pixels), features(spec, unseen.pixels)
    mean, deviation = known.mean(axis=0), known.std(axis=0)
    oracle = LinearSVC(loss="hinge", C=0.01, dual=True, random_state=0, max_iter=2000).fit(
        (known - mean) / deviation, images.targets.numpy()
    )
    found = answers(fit_baseline(spec, batches(), seed=0), spec, unseen.pixels).numpy()
    assert np.allclose(found, oracle.decision_function((asked - mean) / deviation), atol=1e-3)


def test_tree_answers_as_scikit_learns_does() -> None:
    spec = spec_of("decision_tree", max_depth=4, max_leaves=6)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (200, 32, 32, 3), generator=generator, dtype=torch.uint8)
    targets = torch.randint(0, 3, (200,), generator=generator)
    oracle = DecisionTreeClassifier(
        max_depth=4, max_leaf_nodes=6, min_samples_leaf=2, random_state=0
    ).fit(features(spec, pixels), targets.numpy())
    module = fit_baseline(spec, [(pixels, targets)], seed=0)
    assert isinstance(module, DecisionTree)
    shares = answers(module, spec, pixels).softmax(dim=1).numpy()
    expected = oracle.predict_proba(features(spec, pixels))
    sizes = oracle.tree_.n_node_samples[oracle.apply(features(spec, pixels))][:, None]
    # Ours count one image more of each class.
    assert np.allclose(shares, (expected * sizes + 1) / (sizes + 3), atol=1e-6)


def test_thresholds_keep_every_number_on_its_side() -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal(1000).astype(np.float32)
    neighbours = np.nextafter(values, np.float32(np.inf))
    between = (values.astype(np.float64) + neighbours) / 2
    rounded = _as_float32(between)
    assert (values <= rounded).all()
    assert (neighbours > rounded).all()


def test_class_that_no_image_shows_is_never_answered() -> None:
    shown = [(pixels, targets * 2) for pixels, targets in batches()]
    unseen = stripes(30, seed=9)
    for name in BASELINES:
        spec = spec_of(name, classes=6)
        logits = answers(fit_baseline(spec, shown, seed=0), spec, unseen.pixels)
        assert logits.shape == (30, 6)
        assert logits.isfinite().all()
        assert (logits.argmax(dim=1) == unseen.targets * 2).float().mean() > 0.95
        assert set(logits.argmax(dim=1).tolist()) <= {0, 2, 4}


@pytest.mark.parametrize("name", BASELINES)
def test_images_of_one_class_are_refused(name: str) -> None:
    one = [(pixels, torch.zeros_like(targets)) for pixels, targets in batches()]
    for shown in (one, []):
        with pytest.raises(InvalidInputError) as caught:
            fit_baseline(spec_of(name), shown, seed=0)
        assert caught.value.code == "too_few_classes"


def test_features_over_the_bound_are_refused() -> None:
    with pytest.raises(TooLargeError, match="smaller grid"):
        fit_baseline(spec_of("linear_svm"), batches(), seed=0, max_feature_bytes=16 * 192 * 4)


def test_fitting_ends_where_its_caller_says_so() -> None:
    steps: list[int] = []

    def stop() -> None:
        steps.append(1)
        if len(steps) == 6:
            raise DarkroomError("enough")

    # Four batches, then the second of three classes.
    with pytest.raises(DarkroomError, match="enough"):
        fit_baseline(spec_of("linear_svm"), batches(), seed=0, on_step=stop)
    assert len(steps) == 6


def test_unfitted_tree_knows_nothing() -> None:
    logits = DecisionTree(4)(torch.randn(2, 3, 32, 32))
    assert torch.allclose(logits, torch.full((2, 4), -math.log(4)))


def test_pixels_of_a_grid_are_means_of_the_image() -> None:
    image = torch.randn(1, 3, 32, 32)
    found = ImageFeatures(FeatureOptions("pixels", 4))(image).view(3, 4, 4)
    assert torch.allclose(found[1, 2, 3], image[0, 1, 16:24, 24:32].mean(), atol=1e-6)


def test_gradients_of_an_edge_vote_for_its_direction() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[:, 1, :, 16:] = 1.0
    count = 9
    blocks = ImageFeatures(FeatureOptions("hog", 8, count))(image).view(7, 7, count, 2, 2)
    # The edge is between columns 15 and 16: cells 3 and 4 of the 8, in the first direction.
    assert blocks[0, 3, 0].min() > 0.4
    assert blocks[:, :, 1:].abs().max() == 0
    assert blocks[:, [0, 1, 5, 6]].abs().max() == 0
    turned = ImageFeatures(FeatureOptions("hog", 8, 8))(image.transpose(2, 3)).view(7, 7, 8, 2, 2)
    assert turned[3, 0, 4].min() > 0.4


def test_gradients_are_those_of_a_plain_reckoning() -> None:
    """Against loops over pixels and cells, as the paper describes it."""
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = ImageFeatures(FeatureOptions("hog", 2, 6))(image).view(6, 2, 2).numpy()
    cells = np.zeros((6, 2, 2))
    padded = np.pad(image[0].numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    for y in range(8):
        for x in range(8):
            across = padded[:, y + 1, x + 2] - padded[:, y + 1, x]
            down = padded[:, y + 2, x + 1] - padded[:, y, x + 1]
            best = int(np.argmax(np.hypot(across, down)))
            angle = math.atan2(down[best], across[best]) % math.pi
            low = int(angle / math.pi * 6)
            share = angle / math.pi * 6 - low
            length = math.hypot(across[best], down[best])
            cells[low % 6, y // 4, x // 4] += length * (1 - share) / 16
            cells[(low + 1) % 6, y // 4, x // 4] += length * share / 16
    clipped = np.minimum(cells / np.linalg.norm(cells), 0.2)
    assert np.allclose(found, clipped / np.linalg.norm(clipped), atol=1e-5)


def test_empty_and_full_forms_agree_on_the_number_of_features() -> None:
    for kind, grid, orientations in (("pixels", 5, 9), ("hog", 5, 4)):
        options = FeatureOptions(kind, grid, orientations)  # type: ignore[arg-type]
        extracted = ImageFeatures(options)
        assert extracted(torch.randn(2, 3, 40, 40)).shape == (2, extracted.count)
    assert LinearSvm(3).classifier.in_features == 3 * 3 * 4 * 9
