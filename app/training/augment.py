"""How training images are changed before the network sees them, typed and part of the recipe.

Stdlib only: the training loop imports this on machines that have no service.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Policy = Literal["none", "randaugment", "trivialaugment"]


@dataclass(frozen=True, slots=True)
class AugmentSpec:
    """Random changes of training images, drawn for each image anew; the default changes nothing.

    They come in the order of the fields. Images that are evaluated or recognised are never
    changed.
    """

    #: Cut a random part and stretch it over the image; the part holds at least this share of
    #: the image's area and is at most a third wider or higher (torchvision's RandomResizedCrop).
    crop_min_area: float = 1.0
    #: Move the image by up to so many pixels along each axis; what comes in is black.
    crop_padding_px: int = 0
    #: Mirror every other image, left to right.
    flip: bool = False
    #: ``randaugment`` makes two random changes of strength ``magnitude`` (arXiv 1909.13719),
    #: ``trivialaugment`` one of random strength (arXiv 2103.10158).
    policy: Policy = "none"
    magnitude: int = 9
    #: Scale brightness, contrast and saturation each by a random factor 1 ± this.
    colour_jitter: float = 0.0
    #: Share of the images that get a random rectangle of the mean colour (arXiv 1708.04896).
    erase_probability: float = 0.0
    #: Blend each image with another one by Beta(α, α) (arXiv 1710.09412); 0 never does.
    mixup_alpha: float = 0.0
    #: Put a rectangle of another image into each by Beta(α, α) (arXiv 1905.04899); 0 never
    #: does. Where both are above 0, each image gets one of the two at random.
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        if not 0.01 <= self.crop_min_area <= 1:
            raise ValueError("crop_min_area must be 0.01…1")
        if not 0 <= self.crop_padding_px <= 256:
            raise ValueError("crop_padding_px must be 0…256")
        if self.crop_padding_px and self.crop_min_area < 1:
            raise ValueError("crop_min_area and crop_padding_px exclude each other")
        if self.policy not in get_args(Policy):
            raise ValueError(f"policy must be one of {', '.join(get_args(Policy))}")
        if not 0 <= self.magnitude <= 30:
            raise ValueError("magnitude must be 0…30")
        if not 0 <= self.colour_jitter <= 1:
            raise ValueError("colour_jitter must be 0…1")
        if not 0 <= self.erase_probability <= 1:
            raise ValueError("erase_probability must be 0…1")
        for name in ("mixup_alpha", "cutmix_alpha"):
            alpha = getattr(self, name)
            if alpha != 0 and not 0.01 <= alpha <= 100:
                raise ValueError(f"{name} must be 0, or 0.01…100")

    @property
    def mixes(self) -> bool:
        """Whether an image may show two classes."""
        return self.mixup_alpha > 0 or self.cutmix_alpha > 0

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; :meth:`from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> AugmentSpec:
        """The spec that :meth:`as_dict` wrote. Raises TypeError or ValueError on other input."""
        return cls(**body)
