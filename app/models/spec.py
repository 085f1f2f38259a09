"""What a model version is, apart from its weights: architecture, preprocessing, classes.

Stdlib only: the worker's torch half imports this on machines that have no service.
Weights, preprocessing and classes travel as one value, as in torchvision's weights API.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

Interpolation = Literal["nearest", "bilinear", "bicubic"]
ResizeMode = Literal["shorter_side", "stretch", "letterbox"]
Colour = Literal["rgb", "grey"]
#: Fields that versions of before do not have: at these values they are written nowhere, so that
#: what acts alike has one digest.
_LATER_FIELDS: Mapping[str, Any] = {"antialias": True, "colour": "rgb"}


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """How an image file becomes the network's input, from decoded pixels to numbers.

    The image is turned by its EXIF orientation, converted to RGB, resized (``shorter_side``
    keeps the aspect and makes the shorter side ``resize_px``; ``stretch`` makes it
    ``resize_px`` square; ``letterbox`` keeps the aspect, makes the longer side ``resize_px`` and
    fills up with black on both sides), centre-cropped to ``crop_px`` square, made three equal
    channels where ``colour`` is ``grey``, scaled to 0…1 and normalised per channel.

    ``antialias`` is how torchvision resizes images, and its tensors unless told otherwise:
    shrinking takes the mean of all pixels. Without it, single ones are read.
    """

    resize_px: int
    crop_px: int
    resize_mode: ResizeMode = "shorter_side"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    antialias: bool = True
    colour: Colour = "rgb"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if not 1 <= self.crop_px <= 2048 or not 1 <= self.resize_px <= 4096:
            raise ValueError("crop_px must be 1…2048 and resize_px 1…4096")
        if self.crop_px > self.resize_px:
            raise ValueError(f"crop_px {self.crop_px} exceeds resize_px {self.resize_px}")
        if self.resize_mode not in ("shorter_side", "stretch", "letterbox"):
            raise ValueError(f"unknown resize_mode {self.resize_mode!r}")
        if self.interpolation not in ("nearest", "bilinear", "bicubic"):
            raise ValueError(f"unknown interpolation {self.interpolation!r}")
        if not isinstance(self.antialias, bool):
            raise ValueError("antialias must be true or false")
        if not self.antialias and self.interpolation == "bicubic":
            raise ValueError("bicubic interpolation is with antialias only")
        if self.colour not in ("rgb", "grey"):
            raise ValueError(f"unknown colour {self.colour!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std need three numbers each, std above 0")

    @property
    def output_shape(self) -> tuple[int, int, int]:
        """Height, width, channels of the pixels that decoding yields (uint8)."""
        return (self.crop_px, self.crop_px, 3)

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON; two specs with one digest act alike."""
        return _digest(self.as_dict())

    def at_size(self, input_px: int) -> PreprocessSpec:
        """The same for a network of another input size, with the same share cropped away."""
        resize_px = round(self.resize_px * input_px / self.crop_px)
        return replace(self, resize_px=resize_px, crop_px=input_px)

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back."""
        body = asdict(self)
        body["mean"], body["std"] = list(self.mean), list(self.std)
        for name, usual in _LATER_FIELDS.items():
            if body[name] == usual:
                del body[name]
        return body

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> PreprocessSpec:
        """The spec that :meth:`as_dict` wrote. Raises TypeError or ValueError on other input."""
        return cls(**body)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One immutable recogniser apart from its weights.

    ``arch`` is a name of :mod:`app.models.architectures` (one of ours, such as ``small_cnn``, or
    a torchvision classification builder such as ``squeezenet1_0``), ``arch_options`` are its
    options; ``classes`` are in the order of the network's outputs.
    """

    arch: str
    classes: tuple[str, ...]
    preprocess: PreprocessSpec
    arch_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        if not self.classes:
            raise ValueError("a model needs at least one class")

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back."""
        return {
            "arch": self.arch,
            "arch_options": dict(self.arch_options),
            "classes": list(self.classes),
            "preprocess": self.preprocess.as_dict(),
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> ModelSpec:
        """The spec that :meth:`as_dict` wrote. Raises TypeError or ValueError on other input."""
        return cls(
            arch=body["arch"],
            arch_options=body.get("arch_options", {}),
            classes=tuple(body["classes"]),
            preprocess=PreprocessSpec.from_dict(body["preprocess"]),
        )


def _digest(body: Mapping[str, Any]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
