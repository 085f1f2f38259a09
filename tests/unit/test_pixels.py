"""Decoding is right on every kind of image file, and names what is wrong with the others."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps, features
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from tests.unit.pictures import AS_IS, LIMITS, MAX_PIXELS, encode, picture
from worker.pipeline.pixels import decode_image, load_rgb

LOSSLESS = {"WEBP": {"lossless": True}}


def rgb(data: bytes) -> np.ndarray:
    return np.asarray(load_rgb(data, LIMITS))


def refusal(data: bytes, max_pixels: int = MAX_PIXELS) -> ItemError:
    with pytest.raises(ItemError) as caught:
        decode_image(data, AS_IS, replace(LIMITS, max_pixels=max_pixels))
    return caught.value


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: Pillow writes neither 16-bit colour nor false headers."""

    def part(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(
    "size", [(31, 47), (47, 31), (500, 333), (333, 500), (64, 64), (17, 301), (256, 99)]
)
def test_pixels_equal_torchvisions_transforms_to_the_bit(
    size: tuple[int, int], interpolation: str
) -> None:
    data = encode(picture(1, size), "JPEG")
    expected = transforms.Compose(
        [transforms.Resize(37, InterpolationMode(interpolation)), transforms.CenterCrop(32)]
    )(Image.open(io.BytesIO(data)).convert("RGB"))
    spec = PreprocessSpec(37, 32, "shorter_side", interpolation)  # type: ignore[arg-type]
    assert decode_image(data, spec, LIMITS) == expected.tobytes()


def test_stretch_equals_torchvisions_resize_to_a_square() -> None:
    data = encode(picture(2, (61, 23)))
    expected = transforms.Resize((40, 40))(Image.open(io.BytesIO(data)))
    spec = PreprocessSpec(40, 40, "stretch")
    assert decode_image(data, spec, LIMITS) == expected.tobytes()


@pytest.mark.parametrize("name", ["PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_allowed_lossless_format_gives_its_pixels(name: str) -> None:
    image = picture(3).quantize(16).convert("RGB")
    assert (rgb(encode(image, name, **LOSSLESS.get(name, {}))) == np.asarray(image)).all()


@pytest.mark.parametrize("name", ["JPEG", "MPO", "AVIF"])
def test_every_allowed_lossy_format_gives_nearly_its_pixels(name: str) -> None:
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = picture(3)
    found = rgb(encode(image, name, quality=95)).astype(int)
    assert np.abs(found - np.asarray(image)).mean() < 6


@pytest.mark.parametrize("mode", ["L", "CMYK", "1", "YCbCr", "LAB"])
def test_opaque_modes_equal_a_plain_conversion(mode: str) -> None:
    image = picture(4).convert("L").convert("1") if mode == "1" else None
    image = image or (picture(4, mode=mode) if mode in ("LAB",) else picture(4).convert(mode))
    data = encode(image, "TIFF")
    assert (rgb(data) == np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))).all()


def test_grey_jpeg_has_three_equal_channels() -> None:
    found = rgb(encode(picture(5).convert("L"), "JPEG"))
    assert found.shape == (16, 16, 3)
    assert (found == found[:, :, :1]).all()


def test_inverted_cmyk_of_adobe_is_not_shown_as_a_negative() -> None:
    light = Image.new("RGB", (16, 16), (250, 240, 230)).convert("CMYK")
    data = encode(light, "JPEG", quality=95)
    # Pillow writes CMYK as Adobe does: inverted, with an Adobe marker that says so.
    assert b"Adobe" in data
    assert rgb(data).mean() > 220


def test_palette_is_looked_up() -> None:
    image = picture(6).quantize(8)
    assert (rgb(encode(image)) == np.asarray(image.convert("RGB"))).all()


def test_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (16, 16), 1)
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((3, 4), 0)
    found = rgb(encode(image, transparency=0))
    assert found[4, 3].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [200, 100, 50]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("LA", (0, 128), [127, 127, 127]),
        ("LA", (40, 255), [40, 40, 40]),
        ("RGBA", (0, 100, 200, 0), [255, 255, 255]),
        ("RGBA", (1, 2, 3, 255), [1, 2, 3]),
    ],
)
def test_transparency_is_composited_on_white(
    mode: str, value: tuple[int, ...], expected: list[int]
) -> None:
    assert rgb(encode(Image.new(mode, (16, 16), value)))[0, 0].tolist() == expected


def test_transparent_colour_of_an_rgb_png_becomes_white() -> None:
    image = Image.new("RGB", (16, 16), (1, 2, 3))
    image.putpixel((0, 0), (9, 9, 9))
    found = rgb(encode(image, transparency=(9, 9, 9)))
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found[1, 1].tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled_and_not_clipped(name: str) -> None:
    values = np.array([[0, 255, 256], [32_768, 65_279, 65_535]], np.uint16)
    found = rgb(encode(Image.fromarray(values), name))
    assert found[:, :, 0].tolist() == [[0, 0, 1], [128, 254, 255]]


def test_16_bit_big_endian_grey_is_scaled() -> None:
    image = Image.frombytes("I;16B", (2, 1), struct.pack(">HH", 65_535, 32_768))
    assert rgb(encode(image, "TIFF"))[0, :, 0].tolist() == [255, 128]


def test_16_bit_colour_is_scaled() -> None:
    row = b"\x00" + struct.pack(">6H", 65_535, 32_768, 256, 0, 255, 65_280)
    assert rgb(png(2, 1, 16, 2, row)).tolist() == [[[255, 128, 1], [0, 0, 255]]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),
        ([0, 32_768, 65_535], [0, 128, 255]),
        ([-100, 0, 100], [0, 127, 255]),
        ([0, 500_000, 1_000_000], [0, 127, 255]),
    ],
)
def test_32_bit_integers_are_scaled(values: list[int], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([values], np.int32)), "TIFF")
    assert rgb(data)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.5, 1], [0, 127, 255]), ([0, 128, 255], [0, 128, 255]), ([-1, 0, 1], [0, 127, 255])],
)
def test_floats_are_scaled(values: list[float], expected: list[int]) -> None:
    data = encode(Image.fromarray(np.array([values], np.float32)), "TIFF")
    assert rgb(data)[0, :, 0].tolist() == expected


def test_one_bit_images_are_black_and_white() -> None:
    image = Image.new("1", (16, 16), 1)
    image.putpixel((2, 1), 0)
    found = rgb(encode(image))
    assert found[1, 2].tolist() == [0, 0, 0]
    assert found[0, 0].tolist() == [255, 255, 255]


# Where EXIF 2.3 puts the stored top left corner, as (row, column), and whether sides swap.
UPRIGHT = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1)}
UPRIGHT[8] = (-1, 0)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_turns_the_image_upright(orientation: int, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.new("RGB", (48, 32), (255, 255, 255))
    stored.paste((0, 0, 0), (0, 0, 8, 8))
    data = encode(stored, name, exif=exif, **LOSSLESS.get(name, {}))
    found = rgb(data)
    assert found.shape == ((32, 48, 3) if orientation < 5 else (48, 32, 3))
    corners = {(row, column): found[row, column].mean() for row in (0, -1) for column in (0, -1)}
    assert [corner for corner, mean in corners.items() if mean < 128] == [UPRIGHT[orientation]]
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (found == np.asarray(expected)).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_spoil_the_image() -> None:
    data = encode(picture(8), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert rgb(data).shape == (16, 16, 3)


@pytest.mark.parametrize("name", ["GIF", "WEBP", "PNG"])
def test_animations_show_their_first_frame(name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((250, 0, 0), (0, 250, 0))]
    options = {"save_all": True, "append_images": frames[1:], "duration": 50}
    data = encode(frames[0], name, **options, **LOSSLESS.get(name, {}))
    assert rgb(data)[0, 0].tolist() == [250, 0, 0]


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_files_are_truncated(name: str, share: float) -> None:
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encode(Image.fromarray(noise), name)
    assert refusal(data[: int(len(data) * share)]).code == "truncated"


def test_cut_progressive_jpeg_is_truncated() -> None:
    data = encode(picture(9, (200, 200)), "JPEG", progressive=True)
    assert refusal(data[: len(data) // 2]).code == "truncated"


def test_file_without_bytes_is_empty() -> None:
    assert refusal(b"").code == "empty"


@pytest.mark.parametrize("data", [b"hello, this is a text", b"\x00" * 500, b"PK\x03\x04zip"])
def test_what_is_no_image_is_unsupported(data: bytes) -> None:
    assert refusal(data).code == "unsupported_format"


def test_damaged_image_is_undecodable() -> None:
    data = bytearray(encode(picture(10)))
    at = data.index(b"IHDR") + 20
    data[at : at + 12] = b"\xff" * 12
    assert refusal(bytes(data)).code == "undecodable"


@pytest.mark.parametrize("name", ["PPM", "ICO", "JPEG2000"])
def test_formats_that_are_not_allowed_are_named(name: str) -> None:
    error = refusal(encode(picture(11), name))
    assert error.code == "unsupported_format"
    assert "JPEG, PNG" in error.detail


def test_svg_is_not_allowed() -> None:
    assert refusal(b"<?xml version='1.0'?><svg/>").code == "unsupported_format"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_more_pixels_than_the_limit_are_too_large(name: str) -> None:
    data = encode(picture(12, (100, 100)), name)
    assert refusal(data, max_pixels=9_999).code == "too_large"
    assert rgb(data).shape == (100, 100, 3)


def test_pixels_are_judged_by_the_header_before_anything_is_loaded() -> None:
    # Claims 60,000 × 60,000 pixels and holds none: loading it could only end as truncated.
    assert refusal(png(60_000, 60_000, 8, 2, b"")).code == "too_large"


def test_canvas_of_a_webp_is_judged_before_pillow_makes_it() -> None:
    body = b"VP8X" + struct.pack("<I", 10) + b"\x00" * 4 + b"\xfe\x3f\x00" * 2
    data = b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
    assert refusal(data).detail.startswith("16383×16383")


def test_image_too_elongated_to_resize_is_too_large() -> None:
    data = encode(Image.new("L", (1, 50_000)))
    with pytest.raises(ItemError) as caught:
        decode_image(data, PreprocessSpec(256, 224), LIMITS)
    assert caught.value.code == "too_large"
