"""Fitting the baselines, by scikit-learn, which is imported only where one is fitted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from app.errors import InvalidInputError, TooLargeError
from app.models.arch_options import DecisionTreeOptions, LinearSvmOptions
from app.models.architectures import typed_options
from app.models.spec import ModelSpec
from worker.recognisers.baselines import DecisionTree, LinearSvm
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module

#: Most bytes of features; fitting takes about three times as much.
MAX_FEATURE_BYTES = 2 * 1024**3
#: Passes of liblinear over the images, after which it stops wherever it is.
_MAX_PASSES = 2000
#: What a hyperplane answers for a class that no image shows: never.
_NEVER = -1e4

Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]


def fit_baseline(
    spec: ModelSpec,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    seed: int,
    on_step: Callable[[], None] = lambda: None,
    max_feature_bytes: int = MAX_FEATURE_BYTES,
) -> nn.Module:
    """Fit a linear SVM or a decision tree on the CPU; equal seeds give equal numbers.

    ``on_step`` is called after each batch and each class, and ends the fitting by raising; a
    tree is fitted in one step.

    Args:
        spec: of ``linear_svm`` or ``decision_tree``.
        batches: pixels, uint8 [n, h, w, 3], and targets, int64 [n], each image once.
        seed: of scikit-learn's generator.
        on_step: see above.
        max_feature_bytes: bound on the features of all images together.

    Raises:
        InvalidInputError: ``too_few_classes``: the images show one class or none.
        TooLargeError: the features are over the bound.
        Exception: whatever a callback or ``batches`` raises.
    """
    module = build_module(spec).eval()
    assert isinstance(module, (LinearSvm, DecisionTree))
    values, targets = _features(module, spec, batches, on_step, max_feature_bytes)
    if len(np.unique(targets)) < 2:
        raise InvalidInputError(
            f"{spec.arch} tells classes apart, and the images to learn from show "
            f"{'one class' if len(targets) else 'none'} only",
            code="too_few_classes",
        )
    options = typed_options(spec.arch, spec.arch_options)
    if isinstance(module, LinearSvm):
        assert isinstance(options, LinearSvmOptions)
        _fit_svm(module, values, targets, options, seed=seed, on_step=on_step)
    else:
        assert isinstance(options, DecisionTreeOptions)
        _fit_tree(module, values, targets, options, seed=seed)
    on_step()
    return module


@torch.inference_mode()
def _features(
    module: LinearSvm | DecisionTree,
    spec: ModelSpec,
    batches: Iterable[tuple[Tensor, Tensor]],
    on_step: Callable[[], None],
    max_bytes: int,
) -> tuple[Floats, Classes]:
    """float32 [n, features] and int64 [n]."""
    normalise = Normalise(spec.preprocess)
    values: list[Floats] = [np.empty((0, module.features.count), np.float32)]
    targets: list[Classes] = [np.empty(0, np.int64)]
    taken = 0
    for pixels, shown in batches:
        values.append(module.features(normalise(pixels)).numpy())
        # A copy: the batch's memory may be used again for the next.
        targets.append(shown.numpy().copy())
        taken += values[-1].nbytes
        if taken > max_bytes:
            raise TooLargeError(
                f"the features of the first {sum(map(len, targets))} images take {taken} bytes; "
                f"the limit is {max_bytes}. Use fewer images or a smaller grid."
            )
        on_step()
    return np.concatenate(values), np.concatenate(targets)


def _fit_svm(
    module: LinearSvm,
    values: Floats,
    targets: Classes,
    options: LinearSvmOptions,
    *,
    seed: int,
    on_step: Callable[[], None],
) -> None:
    """One class against the others, one after another, as liblinear itself does it."""
    from sklearn.svm import LinearSVC

    # Standardised, so that one penalty suits all features; folded into the weights below.
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    deviation[deviation == 0] = 1
    scaled = ((values - mean) / deviation).astype(np.float64)
    weights = np.zeros((module.classifier.out_features, values.shape[1]))
    biases = np.full(len(weights), _NEVER)
    for index in np.unique(targets):
        svm = LinearSVC(
            loss="hinge",
            C=options.penalty,
            dual=True,
            random_state=seed % 2**32,
            max_iter=_MAX_PASSES,
        )
        with warnings.catch_warnings():
            # That it stopped at _MAX_PASSES.
            warnings.simplefilter("ignore")
            svm.fit(scaled, targets == index)
        weights[index] = svm.coef_[0] / deviation
        biases[index] = svm.intercept_[0] - weights[index] @ mean
        on_step()
    with torch.no_grad():
        module.classifier.weight.copy_(torch.from_numpy(weights))
        module.classifier.bias.copy_(torch.from_numpy(biases))


def _fit_tree(
    module: DecisionTree,
    values: Floats,
    targets: Classes,
    options: DecisionTreeOptions,
    *,
    seed: int,
) -> None:
    from sklearn.tree import DecisionTreeClassifier

    fitted = DecisionTreeClassifier(
        max_depth=options.max_depth,
        max_leaf_nodes=options.max_leaves,
        min_samples_leaf=options.leaf_images,
        random_state=seed % 2**32,
    ).fit(values, targets)
    tree = cast(Any, fitted.tree_)
    nodes = int(tree.node_count)
    itself = np.arange(nodes)
    is_leaf = tree.children_left < 0
    # Images of each class at each node, one more of each, so that no share is nothing.
    counts = np.ones((nodes, module.scores.shape[1]))
    counts[:, fitted.classes_] += tree.value[:, 0, :] * tree.n_node_samples[:, None]
    scores = np.log(counts / counts.sum(axis=1, keepdims=True))
    with torch.no_grad():
        for tensor, found in (
            (module.feature, np.where(is_leaf, 0, tree.feature)),
            (module.left, np.where(is_leaf, itself, tree.children_left)),
            (module.right, np.where(is_leaf, itself, tree.children_right)),
            (module.threshold, _as_float32(np.where(is_leaf, 0.0, tree.threshold))),
            (module.scores, scores),
        ):
            tensor[:nodes] = torch.from_numpy(found)


def _as_float32(thresholds: npt.NDArray[np.float64]) -> Floats:
    """The largest float32 up to each threshold: float32 values lie on the same side of both."""
    rounded = thresholds.astype(np.float32)
    below = np.nextafter(rounded, np.float32(-np.inf))
    return np.where(rounded > thresholds, below, rounded).astype(np.float32)
