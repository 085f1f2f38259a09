"""Typed options of our own architectures: sizes and choices, each with its bounds.

Stdlib only, as :mod:`app.models.spec`. A value out of bounds is a ValueError that names the field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

Cell = Literal["lstm", "gru"]


def _between(default: Any, low: float, high: float, *, most: int = 0, least: int = 0) -> Any:
    """A number, or ``least`` to ``most`` numbers, each from ``low`` to ``high``."""
    return field(default=default, metadata={"low": low, "high": high, "least": least, "most": most})


class ArchOptions:
    """The base of all options: what is common to reading, checking and writing them."""

    __slots__ = ()

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for one in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = _checked(one.name, getattr(self, one.name), hints[one.name], one.metadata)
            object.__setattr__(self, one.name, value)
        self._check_together()

    def _check_together(self) -> None:
        """Raise ValueError for values that are right each for itself only."""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values of all fields, those at their defaults too."""
        values = ((one.name, getattr(self, one.name)) for one in fields(self))  # type: ignore[arg-type]
        return {name: list(v) if isinstance(v, tuple) else v for name, v in values}


@dataclass(frozen=True, slots=True)
class NoOptions(ArchOptions):
    """An architecture of one fixed form."""


@dataclass(frozen=True, slots=True)
class AuxiliaryOptions(ArchOptions):
    """GoogLeNet and Inception v3: heads used while training only, and one more normalisation."""

    aux_logits: bool = True
    transform_input: bool = True


@dataclass(frozen=True, slots=True)
class SmallCnnOptions(ArchOptions):
    """Convolutions that are pooled by two each, then linear layers; the defaults are LeNet-5's."""

    channels: tuple[int, ...] = _between((6, 16), 1, 1024, least=1, most=6)
    #: Widths of the linear layers before the last.
    hidden: tuple[int, ...] = _between((120, 84), 1, 4096, most=4)
    kernel_px: int = _between(5, 1, 11)
    #: Zeros around each image keep a convolution's output as large as its input.
    padded: bool = False
    batch_norm: bool = False
    dropout: float = _between(0.0, 0.0, 0.9)

    def _check_together(self) -> None:
        if self.padded and self.kernel_px % 2 == 0:
            raise ValueError("kernel_px must be odd where padded is true")


@dataclass(frozen=True, slots=True)
class ResNet32Options(ArchOptions):
    """ResNets for small images; ``width`` is the channels of the first stage."""

    width: int = _between(16, 4, 256)


@dataclass(frozen=True, slots=True)
class ResNet18Options(ArchOptions):
    """ResNet-18 for small images; ``width`` is the channels of the first stage."""

    width: int = _between(64, 4, 512)


@dataclass(frozen=True, slots=True)
class RowRnnOptions(ArchOptions):
    """An image read as a sequence by a recurrent network."""

    cell: Cell = "lstm"
    #: ``rows`` from top to bottom, ``columns`` from left to right, ``patches`` as text is read.
    sequence: Literal["rows", "columns", "patches"] = "rows"
    #: Rows or columns a step, or the side of a patch.
    step_px: int = _between(1, 1, 64)
    hidden: int = _between(128, 1, 2048)
    layers: int = _between(2, 1, 8)
    bidirectional: bool = True
    #: How the states become one: a learned weighting, their mean, or the last of each direction.
    pooling: Literal["attention", "mean", "last"] = "attention"
    dropout: float = _between(0.1, 0.0, 0.9)


@dataclass(frozen=True, slots=True)
class ReNetOptions(ArchOptions):
    """Layers that sweep an image in four directions; see :mod:`worker.recognisers.renet`."""

    cell: Cell = "gru"
    #: Side of the patch that one step reads, for each layer.
    patches_px: tuple[int, ...] = _between((2, 2), 1, 32, least=1, most=6)
    #: Units of each of the four sweeps.
    hidden: int = _between(64, 1, 1024)
    #: Widths of the linear layers before the last.
    classifier: tuple[int, ...] = _between((256,), 1, 8192, most=4)
    dropout: float = _between(0.2, 0.0, 0.9)


@dataclass(frozen=True, slots=True)
class PatchTransformerOptions(ArchOptions):
    """Patches of an image as tokens of a Transformer's encoder."""

    patch_px: int = _between(4, 1, 64)
    d_model: int = _between(256, 4, 2048)
    heads: int = _between(8, 1, 32)
    layers: int = _between(6, 1, 48)
    feed_forward: int = _between(2048, 4, 8192)
    #: What the head reads: a token of its own, or the mean of all.
    pooling: Literal["class_token", "mean"] = "class_token"
    dropout: float = _between(0.1, 0.0, 0.9)

    def _check_together(self) -> None:
        if self.d_model % self.heads:
            raise ValueError("d_model must be a multiple of heads")


@dataclass(frozen=True, slots=True)
class FeatureOptions(ArchOptions):
    """What a baseline sees of an image.

    ``pixels`` is its colours, averaged to a grid of ``grid`` by ``grid``; ``hog`` is histograms of
    oriented gradients in as many cells, normalised in blocks of two by two (Dalal and Triggs,
    2005).
    """

    features: Literal["pixels", "hog"] = "hog"
    grid: int = _between(8, 2, 32)
    #: Directions that a histogram tells apart; unused by ``pixels``.
    orientations: int = _between(9, 2, 36)


@dataclass(frozen=True, slots=True)
class LinearSvmOptions(FeatureOptions):
    """One hyperplane a class; ``penalty`` is liblinear's C, the weight of the hinge loss."""

    #: Coarse cells: finer ones take ten times as long to fit and tell small images no better.
    grid: int = _between(4, 2, 32)
    penalty: float = _between(0.01, 1e-6, 1e6)


@dataclass(frozen=True, slots=True)
class DecisionTreeOptions(FeatureOptions):
    """Questions of single features, one after another."""

    features: Literal["pixels", "hog"] = "pixels"
    max_depth: int = _between(16, 1, 64)
    max_leaves: int = _between(256, 2, 65_536)
    #: Images that a leaf holds at least.
    leaf_images: int = _between(2, 1, 1_000_000)


def read_options(options_type: type[ArchOptions], body: Mapping[str, Any]) -> ArchOptions:
    """Options of a type from plain JSON values, defaults where a field is missing.

    Raises:
        ValueError: a field that there is not, or a value it cannot have; the text begins with
            the field's name.
    """
    known = [one.name for one in fields(options_type)]  # type: ignore[arg-type]
    for name in body:
        if name not in known:
            raise ValueError(f"{str(name)[:80]!r} is no option; there are {_listed(known)}")
    return options_type(**body)


def _checked(name: str, value: Any, hint: Any, bounds: Mapping[str, Any]) -> Any:
    """The value as it is kept."""
    if hint is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false")
        return value
    if get_origin(hint) is Literal:
        if not isinstance(value, str) or value not in get_args(hint):
            raise ValueError(f"{name} must be one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        least, most = bounds["least"], bounds["most"]
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            raise ValueError(f"{name} must be a list of {least} to {most} whole numbers")
        return tuple(_number(name, one, int, bounds) for one in value)
    return _number(name, value, hint, bounds)


def _number(name: str, value: Any, kind: type, bounds: Mapping[str, Any]) -> int | float:
    low, high = bounds["low"], bounds["high"]
    allowed = (int,) if kind is int else (int, float)
    # NaN is not between.
    if isinstance(value, bool) or not isinstance(value, allowed) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} must be {what} from {low} to {high}")
    return int(value) if kind is int else float(value)


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
