"""An epoch shows each image once, or each class equally often, by its generator alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from worker.training.order import Sampler, class_weights, epoch_order

#: 70, 25, 5 and no images of four classes, in a mixed order.
TARGETS = torch.tensor([0] * 70 + [1] * 25 + [3] * 5)[
    torch.randperm(100, generator=torch.Generator().manual_seed(3))
]


def order_of(sampler: Sampler, seed: int = 0, targets: Tensor = TARGETS) -> Tensor:
    return epoch_order(targets, sampler, torch.Generator().manual_seed(seed))


def test_shuffled_epoch_shows_each_image_once() -> None:
    assert sorted(order_of("shuffle").tolist()) == list(range(100))


@pytest.mark.parametrize("sampler", ["shuffle", "balanced"])
def test_order_follows_from_the_generator(sampler: Sampler) -> None:
    assert torch.equal(order_of(sampler, 1), order_of(sampler, 1))
    assert not torch.equal(order_of(sampler, 1), order_of(sampler, 2))


def test_balanced_epoch_shows_each_class_equally_often() -> None:
    for seed in range(5):
        shown = TARGETS[order_of("balanced", seed)].bincount(minlength=4).tolist()
        assert sorted(shown) == [0, 33, 33, 34]
        assert shown[2] == 0


def test_balanced_epoch_repeats_the_images_of_a_class_evenly() -> None:
    counts = order_of("balanced").bincount(minlength=100)
    for target, often in ((0, {0, 1}), (1, {1, 2}), (3, {6, 7})):
        assert set(counts[target == TARGETS].tolist()) == often


def test_balanced_epochs_show_all_images_of_a_large_class_in_turn() -> None:
    generator = torch.Generator().manual_seed(0)
    shown = {i for _ in range(12) for i in epoch_order(TARGETS, "balanced", generator).tolist()}
    assert shown == set(range(100))


def test_balanced_epoch_mixes_the_classes() -> None:
    first_half = TARGETS[order_of("balanced")[:50]].bincount(minlength=4)
    assert int(first_half[[0, 1, 3]].min()) >= 8


def test_single_images_of_their_classes_are_shown_once_each() -> None:
    assert sorted(order_of("balanced", targets=torch.tensor([4, 0, 2])).tolist()) == [0, 1, 2]


def test_class_weights_are_scikit_learns() -> None:
    expected = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=TARGETS.numpy())
    found = class_weights(TARGETS, 5)
    assert found[[0, 1, 3]].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert found[[2, 4]].tolist() == [0, 0]
    assert float(found[TARGETS].mean()) == pytest.approx(1, rel=1e-6)
