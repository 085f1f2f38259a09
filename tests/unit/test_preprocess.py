"""One preprocessing for training, evaluation and serving: what it computes, and its digest."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import models
from torchvision.transforms import InterpolationMode, v2

from app.errors import ConflictError, ItemError
from app.models.registered import registered_spec
from app.models.spec import ModelSpec, PreprocessSpec
from tests.unit.pictures import LIMITS, encode, picture
from worker.pipeline.pixels import decode_image
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import default_preprocess

SIZES = [(500, 375), (333, 500), (200, 200)]


def photo(size: tuple[int, int], seed: int = 1) -> bytes:
    """A JPEG of a drawn scene with fine noise over it, so that resizing has something to do."""
    smooth = np.asarray(picture(seed, size)).astype(int)
    noise = np.random.default_rng(seed).integers(-40, 41, smooth.shape)
    return encode(Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)), "JPEG")


def decoded(data: bytes, spec: PreprocessSpec) -> Tensor:
    """uint8 [1, h, w, 3]."""
    pixels = torch.frombuffer(bytearray(decode_image(data, spec, LIMITS)), dtype=torch.uint8)
    return pixels.view(1, *spec.output_shape)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "arch",
    [
        "alexnet",
        "vgg11",
        "resnet50",
        "inception_v3",
        "googlenet",
        "densenet121",
        "mobilenet_v3_large",
        "mnasnet0_5",
        "efficientnet_b0",
        "efficientnet_b3",
        "efficientnet_v2_s",
        "convnext_tiny",
        "regnet_y_400mf",
        "shufflenet_v2_x1_0",
        "squeezenet1_0",
        "vit_b_16",
        "swin_t",
        "swin_v2_t",
        "maxvit_t",
    ],
)
def test_zoo_sees_the_numbers_that_torchvisions_preset_gives(
    arch: str, size: tuple[int, int]
) -> None:
    preset = models.get_model_weights(arch)["DEFAULT"].transforms()
    data = photo(size)
    spec = default_preprocess(arch)
    # To the bit: no tolerance was needed, with bilinear as with bicubic.
    assert torch.equal(Normalise(spec)(decoded(data, spec))[0], preset(opened(data)))


@pytest.mark.parametrize("size", [*SIZES, (30, 20), (40, 400)])
def test_letterbox_equals_torchvisions_resize_and_padding(size: tuple[int, int]) -> None:
    data = encode(picture(2, size), "PNG")
    small = v2.Resize(size=None, max_size=40)(opened(data))
    left, top = (40 - small.width) // 2, (40 - small.height) // 2
    fill = [left, top, 40 - small.width - left, 40 - small.height - top]
    expected = v2.Compose([v2.Pad(fill), v2.CenterCrop(32)])(small)
    spec = PreprocessSpec(40, 32, "letterbox")
    assert decode_image(data, spec, LIMITS) == expected.tobytes()


def test_letterbox_keeps_a_line_of_the_most_elongated_image() -> None:
    white = encode(Image.new("RGB", (900, 3), (255, 255, 255)))
    found = decoded(white, PreprocessSpec(16, 16, "letterbox"))[0]
    assert found[7].min() == 255
    assert found[[0, 6, 8, 15]].max() == 0


@pytest.mark.parametrize("resize_mode", ["shorter_side", "stretch", "letterbox"])
def test_grey_is_torchvisions_grey_in_three_channels(resize_mode: Any) -> None:
    data = photo((90, 60))
    plain = decoded(data, PreprocessSpec(40, 32, resize_mode))[0]
    expected = v2.Grayscale(3)(Image.fromarray(plain.numpy()))
    found = decoded(data, PreprocessSpec(40, 32, resize_mode, colour="grey"))[0]
    assert np.array_equal(found.numpy(), np.asarray(expected))
    assert torch.equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize("size", [*SIZES, (20, 15), (900, 37)])
@pytest.mark.parametrize("noisy", [True, False])
def test_without_antialias_pixels_are_those_of_torchs_interpolation_within_one_level(
    size: tuple[int, int], noisy: bool
) -> None:
    data = photo(size) if noisy else encode(picture(3, size))
    spec = PreprocessSpec(64, 64, "stretch", antialias=False)
    image = torch.from_numpy(np.array(opened(data))).permute(2, 0, 1)
    resized = v2.functional.resize(
        image.float(), [64, 64], InterpolationMode.BILINEAR, antialias=False
    )
    expected = resized.round().permute(1, 2, 0)
    apart = (decoded(data, spec)[0].float() - expected).abs()
    assert apart.max() <= 1
    # One level where a value lies in the middle of two, which rounding decides.
    exact = resized.permute(1, 2, 0)
    middle = ((exact - exact.floor()) - 0.5).abs() < 1e-3
    assert not (apart > 0)[~middle].any()


def test_resizing_without_antialias_in_strips_changes_no_pixel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, spec = photo((500, 375)), PreprocessSpec(97, 97, "stretch", antialias=False)
    whole = decode_image(data, spec, LIMITS)
    monkeypatch.setattr("worker.pipeline.resize._STRIP_PIXELS", 5_000)
    assert decode_image(data, spec, LIMITS) == whole


def test_antialias_makes_no_difference_where_nothing_shrinks() -> None:
    data = encode(picture(3, (20, 20)))
    smooth = decoded(data, PreprocessSpec(40, 40, "stretch")).int()
    points = decoded(data, PreprocessSpec(40, 40, "stretch", antialias=False)).int()
    assert (smooth - points).abs().max() <= 1
    shrunk = [
        decode_image(photo((200, 200)), PreprocessSpec(40, 40, "stretch", antialias=on), LIMITS)
        for on in (True, False)
    ]
    assert shrunk[0] != shrunk[1]


def test_letterbox_of_too_many_pixels_is_refused() -> None:
    with pytest.raises(ItemError) as caught:
        decode_image(photo((200, 200)), PreprocessSpec(2000, 64, "letterbox"), LIMITS)
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("spec", "digest"),
    [
        (
            PreprocessSpec(256, 224),
            "8c46fd5ba2b8587b86ba1e6e05b7281c8656d899ff75671c25480decc1b2675b",
        ),
        (
            PreprocessSpec(32, 32, "stretch", "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            "ce2078c6aadd55cf72b47727f85098be3103f50b4d8f4db504ab45816351a880",
        ),
        (
            PreprocessSpec(232, 224, interpolation="bicubic"),
            "fda03a7ff978beb68eb1a1e132e1ef609db181662fbe0c7f70930a4af968b010",
        ),
    ],
)
def test_digests_of_registered_versions_stay_what_they_were(
    spec: PreprocessSpec, digest: str
) -> None:
    assert spec.digest == digest
    assert spec.as_dict().keys() == {
        "resize_px",
        "crop_px",
        "resize_mode",
        "interpolation",
        "mean",
        "std",
    }


@pytest.mark.parametrize("changes", [{"antialias": False}, {"colour": "grey"}])
def test_what_acts_otherwise_has_another_digest(changes: dict[str, Any]) -> None:
    plain, other = PreprocessSpec(40, 32), PreprocessSpec(40, 32, **changes)
    assert plain.digest != other.digest
    assert changes.items() <= other.as_dict().items()
    assert PreprocessSpec.from_dict(other.as_dict()) == other


@pytest.mark.parametrize(
    "changes",
    [
        {"antialias": "no"},
        {"antialias": False, "interpolation": "bicubic"},
        {"colour": "sepia"},
        {"resize_mode": "squash"},
    ],
)
def test_preprocessing_that_cannot_be_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"antialias|colour|resize_mode"):
        PreprocessSpec(40, 32, **changes)


def test_version_is_not_served_with_another_preprocessing_than_its_own() -> None:
    spec = ModelSpec("small_cnn", ("a", "b"), default_preprocess("small_cnn"))
    digest = spec.preprocess.digest
    assert registered_spec(spec.as_dict(), digest, "mdv_1") == spec
    edited = spec.as_dict()
    edited["preprocess"]["interpolation"] = "nearest"
    unknown = spec.as_dict()
    unknown["preprocess"]["sharpen"] = 2
    for body, says in ((edited, digest), (unknown, "sharpen")):
        with pytest.raises(ConflictError, match=says) as caught:
            registered_spec(body, digest, "mdv_1")
        assert caught.value.code == "preprocess_changed"
