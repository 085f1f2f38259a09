"""Training images change as a plain reference changes them, and the same way for the same seed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as plain

from app.models.spec import PreprocessSpec
from app.training.augment import AugmentSpec
from worker.training.augment import (
    Augmenter,
    TrainingBatch,
    crop_and_stretch,
    move_images,
    scale_colours,
)

PREPROCESS = PreprocessSpec(16, 16)
MEAN_COLOUR = torch.tensor([124, 116, 104], dtype=torch.uint8)
EVERYTHING = AugmentSpec(
    crop_min_area=0.3,
    flip=True,
    policy="randaugment",
    colour_jitter=0.4,
    erase_probability=0.5,
    mixup_alpha=0.2,
    cutmix_alpha=1.0,
)


def noise(count: int, seed: int = 0, size: tuple[int, int] = (16, 12)) -> Tensor:
    """Images that differ in every pixel, uint8 [n, height, width, 3], none of them black."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, *size, 3), generator=generator, dtype=torch.uint8)


def augmented(spec: AugmentSpec, pixels: Tensor, seed: int = 0) -> TrainingBatch:
    targets = torch.arange(len(pixels))
    return Augmenter(spec, PREPROCESS)(pixels, targets, torch.Generator().manual_seed(seed))


def chw(image: Tensor) -> Tensor:
    return image.permute(2, 0, 1)


@pytest.mark.parametrize(
    "spec",
    [EVERYTHING, AugmentSpec(crop_padding_px=3, policy="trivialaugment", mixup_alpha=1.0)],
    ids=["everything", "trivialaugment"],
)
def test_same_generator_gives_the_same_batch_to_the_bit(spec: AugmentSpec) -> None:
    pixels = noise(32)
    first, again, other = (augmented(spec, pixels, seed) for seed in (1, 1, 2))
    for name in ("pixels", "targets", "other_targets", "mix"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name
    assert not torch.equal(first.pixels, other.pixels)


def test_batches_of_one_generator_differ() -> None:
    augment, generator = Augmenter(EVERYTHING, PREPROCESS), torch.Generator().manual_seed(0)
    pixels, targets = noise(8), torch.arange(8)
    first = augment(pixels, targets, generator)
    assert not torch.equal(first.pixels, augment(pixels, targets, generator).pixels)


def test_augmenting_leaves_its_input_and_torchs_own_generator_as_they_were() -> None:
    pixels = noise(8)
    before, state = pixels.clone(), torch.get_rng_state()
    augmented(EVERYTHING, pixels)
    assert torch.equal(pixels, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_to_change_draws_nothing() -> None:
    pixels, targets, generator = noise(4), torch.arange(4), torch.Generator().manual_seed(0)
    state = generator.get_state()
    batch = Augmenter(AugmentSpec(), PREPROCESS)(pixels, targets, generator)
    assert torch.equal(batch.pixels, pixels)
    assert batch.targets is targets
    assert batch.mix is None
    assert torch.equal(generator.get_state(), state)


@pytest.mark.parametrize(
    "changed",
    [
        {"crop_min_area": 0.2},
        {"crop_padding_px": 4},
        {"policy": "randaugment"},
        {"policy": "trivialaugment"},
        {"colour_jitter": 0.5},
        {"erase_probability": 1.0},
    ],
    ids=lambda changed: next(iter(changed)) + "-" + str(next(iter(changed.values()))),
)
def test_each_image_is_changed_by_a_draw_of_its_own(changed: dict[str, Any]) -> None:
    same = noise(1).expand(32, -1, -1, -1)
    found = augmented(AugmentSpec(**changed), same).pixels
    assert found.shape == same.shape
    assert found.dtype == torch.uint8
    # Few strong changes can fall together, as can those that change nothing.
    assert len({image.numpy().tobytes() for image in found}) > 12


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_others() -> None:
    pixels = noise(400)
    found = augmented(AugmentSpec(flip=True), pixels).pixels
    mirrored = [torch.equal(new, old.flip(1)) for new, old in zip(found, pixels, strict=True)]
    kept = [torch.equal(new, old) for new, old in zip(found, pixels, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 160 < sum(mirrored) < 240


def test_padded_crop_is_the_crop_that_torchvision_takes() -> None:
    pixels = noise(5)
    moves = torch.tensor([[0, 4, -4, 1, -2], [0, -4, 4, 3, -1]])
    found = move_images(pixels, moves, 4)
    for image, moved, (up, left) in zip(pixels, found, moves.T.tolist(), strict=True):
        assert torch.equal(plain.crop(chw(image), up, left, 16, 12), chw(moved))


def test_random_moves_reach_each_distance_and_none_further() -> None:
    found = augmented(AugmentSpec(crop_padding_px=2), noise(300)).pixels
    black = (found == 0).all(dim=3)
    # Black rows and columns of each image: as many as it was moved.
    assert set(black.all(dim=2).sum(dim=1).tolist()) == {0, 1, 2}
    assert set(black.all(dim=1).sum(dim=1).tolist()) == {0, 1, 2}


def test_stretched_crop_is_the_one_that_torchvision_takes() -> None:
    pixels = noise(4)
    boxes = torch.tensor([[0, 0, 16, 12], [3, 2, 9, 12], [15, 0, 16, 1], [4, 5, 15, 8]])
    found = crop_and_stretch(pixels, boxes.T.float())
    assert torch.equal(found[0], pixels[0])
    for image, new, (top, left, bottom, right) in zip(pixels, found, boxes.tolist(), strict=True):
        expected = plain.resized_crop(
            chw(image), top, left, bottom - top, right - left, [16, 12], antialias=True
        )
        difference = (chw(new).int() - expected.int()).abs()
        assert int(difference.max()) <= 1


def test_random_crops_hold_the_area_that_the_spec_asks_for() -> None:
    # Each pixel is its own place, so that what came in can be read from what came out.
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    image = torch.stack([rows, columns, rows], dim=-1).to(torch.uint8)
    found = augmented(AugmentSpec(crop_min_area=0.25), image.expand(200, -1, -1, -1)).pixels.int()
    tall = found[:, -1, 0, 0] - found[:, 0, 0, 0] + 1
    wide = found[:, 0, -1, 1] - found[:, 0, 0, 1] + 1
    area = tall * wide / 64**2
    assert 0.24 < float(area.min()) < 0.35
    assert float(area.max()) > 0.9
    assert len(set(found[:, 0, 0, 0].tolist())) > 10


def test_colours_scale_as_in_torchvision() -> None:
    pixels = noise(6)
    factors = torch.tensor([[1, 0.5, 1.5, 1, 1, 1.3], [1, 1, 1, 0.4, 1, 1.2], [1, 1, 1, 1, 0, 0.7]])
    found = scale_colours(pixels, factors)
    assert torch.equal(found[0], pixels[0])
    for image, new, (brightness, contrast, saturation) in zip(
        pixels, found, factors.T.tolist(), strict=True
    ):
        expected = plain.adjust_brightness(chw(image) / 255, brightness)
        expected = plain.adjust_contrast(expected, contrast)
        expected = plain.adjust_saturation(expected, saturation) * 255
        assert torch.allclose(chw(new).float(), expected, atol=0.6)


def test_erased_rectangles_have_the_mean_colour_and_the_size_of_the_paper() -> None:
    pixels = noise(400, size=(32, 32))
    found = augmented(AugmentSpec(erase_probability=0.5), pixels).pixels
    changed = (found != pixels).any(dim=3)
    assert bool((found[changed] == MEAN_COLOUR).all())
    shares = []
    for mask in changed[changed.any(dim=(1, 2))]:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        box = mask[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]
        assert bool(box.all())
        shares.append(box.numel() / 32**2)
    assert 160 < len(shares) < 240
    assert 0.01 < min(shares) < 0.04
    assert 0.28 < max(shares) < 0.36


def test_mixup_blends_pixels_and_labels_by_the_same_share() -> None:
    pixels = noise(64)
    batch = augmented(AugmentSpec(mixup_alpha=0.4), pixels)
    assert batch.other_targets is not None
    assert batch.mix is not None
    assert sorted(batch.other_targets.tolist()) == list(range(64))
    for index, (other, share) in enumerate(
        zip(batch.other_targets, batch.mix.tolist(), strict=True)
    ):
        expected = share * pixels[index] + (1 - share) * pixels[other]
        assert torch.allclose(batch.pixels[index].float(), expected, atol=0.6)
    assert len(set(batch.mix.tolist())) > 50


def test_cutmix_share_is_the_share_of_pixels_that_were_kept() -> None:
    # Each image has one colour, its own index, which is its target too.
    pixels = torch.arange(64, dtype=torch.uint8)[:, None, None, None].expand(64, 20, 20, 3)
    batch = augmented(AugmentSpec(cutmix_alpha=1.0), pixels)
    assert batch.other_targets is not None
    assert batch.mix is not None
    own = batch.targets[:, None, None, None]
    other = batch.other_targets[:, None, None, None]
    assert bool(((batch.pixels == own) | (batch.pixels == other)).all())
    differ = batch.targets != batch.other_targets
    kept = (batch.pixels == own).float().mean(dim=(1, 2, 3))
    assert torch.allclose(batch.mix[differ], kept[differ], atol=1e-6)
    # By Beta(1, 1) any share is as likely; what hangs over the edge makes them larger.
    assert 0.4 < float(batch.mix.mean()) < 0.8


def test_shares_follow_beta() -> None:
    mix = augmented(AugmentSpec(mixup_alpha=0.5), noise(4000, size=(2, 2))).mix
    assert mix is not None
    # Beta(α, α) has the mean 1/2 and the variance 1 / (4 (2α + 1)).
    assert float(mix.mean()) == pytest.approx(0.5, abs=0.03)
    assert float(mix.var()) == pytest.approx(1 / 8, abs=0.01)


def test_images_are_blended_or_cut_where_both_are_asked_for() -> None:
    pixels = torch.tensor([0, 200], dtype=torch.uint8).repeat(100)[:, None, None, None]
    batch = augmented(AugmentSpec(mixup_alpha=1.0, cutmix_alpha=1.0), pixels.expand(-1, 8, 8, 3))
    assert batch.other_targets is not None
    mixed = batch.pixels[batch.targets % 2 != batch.other_targets % 2]
    blended = ((mixed > 5) & (mixed < 195)).any(dim=(1, 2, 3))
    assert 25 < int(blended.sum()) < 75


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_policy_is_torchvisions_image_by_image(policy: str) -> None:
    pixels = noise(12)
    found = augmented(AugmentSpec(policy=policy, magnitude=12), pixels, seed=7).pixels  # type: ignore[arg-type]
    fill = MEAN_COLOUR.tolist()
    reference = (
        v2.RandAugment(magnitude=12, fill=fill)
        if policy == "randaugment"
        else v2.TrivialAugmentWide(fill=fill)
    )
    seed = torch.randint(0, 2**63 - 1, (), generator=torch.Generator().manual_seed(7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(seed))
        for image, new in zip(pixels, found, strict=True):
            assert torch.equal(reference(chw(image)), chw(new))


def test_spec_comes_back_from_its_json() -> None:
    assert AugmentSpec.from_dict(EVERYTHING.as_dict()) == EVERYTHING
    assert AugmentSpec.from_dict({}) == AugmentSpec()
    with pytest.raises(TypeError, match="crop"):
        AugmentSpec.from_dict({"crop": 3})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"crop_min_area": 0.0}, "crop_min_area"),
        ({"crop_min_area": 0.5, "crop_padding_px": 4}, "exclude"),
        ({"crop_padding_px": -1}, "crop_padding_px"),
        ({"policy": "autoaugment"}, "policy"),
        ({"magnitude": 31}, "magnitude"),
        ({"colour_jitter": 1.5}, "colour_jitter"),
        ({"erase_probability": 2}, "erase_probability"),
        ({"mixup_alpha": -1}, "mixup_alpha"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_spec_that_makes_no_sense_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        AugmentSpec(**fields)
