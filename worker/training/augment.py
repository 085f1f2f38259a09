"""Training images as the network sees them: changed at random, each image by draws of its own.

What is drawn is drawn on the CPU from one generator, so that equal generators give equal
batches on any device; the pixels are changed where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta
from torch.nn.functional import grid_sample, pad

from app.models.spec import PreprocessSpec
from app.training.augment import AugmentSpec

#: Width over height of a random crop and of an erased rectangle, and the share of the image
#: that one covers: torchvision's.
_CROP_ASPECT = (3 / 4, 4 / 3)
_ERASED_ASPECT = (1 / 3.3, 3.3)
_ERASED_AREA = (0.02, 0.33)
#: What red, green and blue weigh in the grey of a colour, ITU-R BT.601.
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """One ImageBatch for one step of training.

    Where images are mixed, ``mix`` is the share of each image that shows ``targets``; the
    rest shows ``other_targets``. The loss is the mean of the two losses by these shares.
    """

    #: uint8 [n, height, width, 3]
    pixels: Tensor
    #: int64 [n], indices of classes
    targets: Tensor
    #: int64 [n]
    other_targets: Tensor | None = None
    #: float32 [n], 0…1
    mix: Tensor | None = None


class Augmenter:
    """Changes ImageBatches as an :class:`AugmentSpec` says."""

    def __init__(self, spec: AugmentSpec, preprocess: PreprocessSpec) -> None:
        """``preprocess`` knows the mean colour, which fills what is erased or moved away."""
        self._spec = spec
        self._mean_colour = [round(255 * min(max(mean, 0.0), 1.0)) for mean in preprocess.mean]
        self._policy = _build_policy(spec, self._mean_colour)

    def __call__(
        self, pixels: Tensor, targets: Tensor, generator: torch.Generator
    ) -> TrainingBatch:
        """The images changed, each at random, as new tensors on the same device.

        Args:
            pixels: uint8 [n, height, width, 3].
            targets: int64 [n], on the same device.
            generator: of the CPU; all randomness comes from it. With nothing to change it
                is not drawn from.
        """
        spec = self._spec
        if spec.crop_min_area < 1:
            pixels = self._crop(pixels, generator)
        if spec.crop_padding_px:
            most = spec.crop_padding_px
            moves = torch.randint(-most, most + 1, (2, len(pixels)), generator=generator)
            pixels = move_images(pixels, moves.to(pixels.device), most)
        if spec.flip:
            flipped = torch.rand(len(pixels), generator=generator) < 0.5
            pixels = torch.where(_per_image(flipped, pixels), pixels.flip(2), pixels)
        if self._policy is not None:
            pixels = _apply_policy(self._policy, pixels, generator)
        if spec.colour_jitter:
            draws = torch.rand(3, len(pixels), generator=generator) * 2 - 1
            pixels = scale_colours(pixels, (1 + spec.colour_jitter * draws).to(pixels.device))
        if spec.erase_probability:
            pixels = self._erase(pixels, generator)
        if spec.mixes:
            return _mix_images(spec, pixels, targets, generator)
        return TrainingBatch(pixels, targets)

    def _crop(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        area = (self._spec.crop_min_area, 1.0)
        boxes = _draw_boxes(pixels, area, _CROP_ASPECT, generator)
        return crop_and_stretch(pixels, boxes.to(pixels.device))

    def _erase(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        count = len(pixels)
        erased = torch.rand(count, generator=generator) < self._spec.erase_probability
        boxes = _draw_boxes(pixels, _ERASED_AREA, _ERASED_ASPECT, generator)
        colour = torch.tensor(self._mean_colour, dtype=torch.uint8, device=pixels.device)
        return torch.where(_inside(boxes, pixels) & _per_image(erased, pixels), colour, pixels)


def crop_and_stretch(pixels: Tensor, boxes: Tensor) -> Tensor:
    """A rectangle of each image, stretched over the whole by bilinear interpolation.

    Args:
        pixels: uint8 [n, h, w, 3].
        boxes: float32 [4, n], top, left, bottom and right edge in px, whole numbers.
    """
    height, width = pixels.shape[1:3]
    top, left, bottom, right = boxes
    rows = _stretched(top, bottom, height)
    columns = _stretched(left, right, width)
    # grid_sample wants x before y.
    grid = torch.stack(
        [
            columns[:, None, :].expand(-1, height, -1),
            rows[:, :, None].expand(-1, -1, width),
        ],
        dim=-1,
    )
    images = pixels.permute(0, 3, 1, 2).float()
    stretched = grid_sample(images, grid, mode="bilinear", align_corners=True)
    return _to_bytes(stretched.permute(0, 2, 3, 1))


def move_images(pixels: Tensor, moves: Tensor, most: int) -> Tensor:
    """Each image moved up and left by whole pixels; what comes in is black.

    Args:
        pixels: uint8 [n, h, w, 3].
        moves: int64 [2, n], px up and px to the left; below 0 is down and to the right.
        most: the largest number of px that a move may have.
    """
    count, height, width = pixels.shape[:3]
    padded = pad(pixels, (0, 0, most, most, most, most))
    rows = moves[0, :, None] + torch.arange(most, most + height, device=moves.device)
    columns = moves[1, :, None] + torch.arange(most, most + width, device=moves.device)
    places = rows[:, :, None] * padded.shape[2] + columns[:, None, :]
    # gather, as indexing by rows and columns is several times slower on a CPU.
    indices = places.view(count, -1, 1).expand(-1, -1, 3)
    return padded.flatten(1, 2).gather(1, indices).view_as(pixels)


def scale_colours(pixels: Tensor, factors: Tensor) -> Tensor:
    """Brightness, then contrast, then saturation of each image scaled by its own factors.

    Args:
        pixels: uint8 [n, h, w, 3].
        factors: float32 [3, n], at least 0; 1 leaves as it is.
    """
    brightness, contrast, saturation = (_per_image(row, pixels) for row in factors)
    weights = torch.tensor(_GREY_WEIGHTS, device=pixels.device)
    images = (pixels * brightness).clamp_(0, 255)
    mean_grey = (images @ weights).mean(dim=(1, 2))[:, None, None, None]
    images = images.sub_(mean_grey).mul_(contrast).add_(mean_grey).clamp_(0, 255)
    grey = (images @ weights)[..., None]
    return _to_bytes(images.sub_(grey).mul_(saturation).add_(grey))


def _mix_images(
    spec: AugmentSpec, pixels: Tensor, targets: Tensor, generator: torch.Generator
) -> TrainingBatch:
    """Each image with another one of the same ImageBatch blended or cut in."""
    count, height, width = pixels.shape[:3]
    device = pixels.device
    partners = torch.randperm(count, generator=generator).to(device)
    cut = torch.full((count,), spec.cutmix_alpha > 0)
    if spec.mixup_alpha and spec.cutmix_alpha:
        cut = torch.rand(count, generator=generator) < 0.5
    alpha = torch.where(cut, spec.cutmix_alpha, spec.mixup_alpha)
    with _drawing_from(generator):
        kept = Beta(alpha, alpha).sample()
    # A rectangle whose middle lies anywhere; what hangs over the edge is not cut.
    size = torch.tensor([[height], [width]])
    cut_px = (size * (1 - kept).sqrt()).round()
    edges = (torch.rand(2, count, generator=generator) * size - cut_px / 2).round()
    limits = torch.cat([size, size]).expand(4, count)
    box = torch.cat([edges, edges + cut_px]).clamp(0).minimum(limits)
    weights = torch.where(
        _per_image(cut, pixels), (~_inside(box, pixels)).float(), _per_image(kept, pixels)
    )
    others = pixels[partners]
    mixed = _to_bytes(others.float().lerp_(pixels.float(), weights))
    return TrainingBatch(mixed, targets, targets[partners], weights.mean(dim=(1, 2, 3)))


def _build_policy(spec: AugmentSpec, fill: list[int]) -> Callable[[Tensor], Tensor] | None:
    """The change of one image, uint8 [3, h, w], which draws from torch's own generator."""
    from torchvision.transforms import v2

    if spec.policy == "randaugment":
        return v2.RandAugment(magnitude=spec.magnitude, fill=fill)  # type: ignore[no-any-return]
    if spec.policy == "trivialaugment":
        return v2.TrivialAugmentWide(fill=fill)  # type: ignore[no-any-return]
    return None


def _apply_policy(
    policy: Callable[[Tensor], Tensor], pixels: Tensor, generator: torch.Generator
) -> Tensor:
    images = pixels.permute(0, 3, 1, 2)
    with _drawing_from(generator):
        return torch.stack([policy(image) for image in images]).permute(0, 2, 3, 1)


@contextmanager
def _drawing_from(generator: torch.Generator) -> Iterator[None]:
    """Let torch's own generator of the CPU follow from ``generator``, and put it back after."""
    seed = int(torch.randint(0, 2**63 - 1, (), generator=generator))
    before = torch.get_rng_state()
    # Not torch.manual_seed, which seeds the generators of every GPU too.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def _draw_boxes(
    pixels: Tensor,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Top, left, bottom and right edge in px of a random part of each image, float32 [4, n].

    The part holds a share ``area`` of the image and is ``aspect`` as wide as it is high, both
    as far as the image reaches.
    """
    count, height, width = pixels.shape[:3]
    share = _uniform(area, count, generator)
    ratio = _uniform((math.log(aspect[0]), math.log(aspect[1])), count, generator).exp()
    tall = (height * (share / ratio).sqrt()).round().clamp(1, height)
    wide = (width * (share * ratio).sqrt()).round().clamp(1, width)
    top = (torch.rand(count, generator=generator) * (height - tall + 1)).floor()
    left = (torch.rand(count, generator=generator) * (width - wide + 1)).floor()
    return torch.stack([top, left, top + tall, left + wide])


def _stretched(start: Tensor, end: Tensor, count: int) -> Tensor:
    """Where each of ``count`` pixels comes from in each image, −1…1 from first to last pixel.

    Clamped to the middles of the outermost pixels between ``start`` and ``end``, so that nothing
    from beyond the edge is blended in.
    """
    start, end = start[:, None], end[:, None]
    steps = torch.arange(count, dtype=torch.float32, device=start.device) + 0.5
    places = (start + steps * (end - start) / count - 0.5).maximum(start).minimum(end - 1)
    return places * 2 / max(count - 1, 1) - 1


def _inside(box: Tensor, pixels: Tensor) -> Tensor:
    """Which pixels lie inside each image's box (top, left, bottom, right), bool [n, h, w, 1]."""
    top, left, bottom, right = box.to(pixels.device)[:, :, None]
    rows = torch.arange(pixels.shape[1], device=pixels.device)
    columns = torch.arange(pixels.shape[2], device=pixels.device)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    inside: Tensor = in_rows[:, :, None] & in_columns[:, None, :]
    return inside[..., None]


def _per_image(values: Tensor, pixels: Tensor) -> Tensor:
    """One value for each image, where the pixels lie and of a shape that goes with them."""
    return values.to(pixels.device)[:, None, None, None]


def _to_bytes(images: Tensor) -> Tensor:
    """Rounded and clamped in place, then converted."""
    return images.round_().clamp_(0, 255).to(torch.uint8)


def _uniform(between: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    low, high = between
    return low + (high - low) * torch.rand(count, generator=generator)
