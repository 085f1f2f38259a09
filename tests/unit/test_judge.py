from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.errors import ItemError
from app.uploads.judge import ImageFacts, ImageLimits, judge_image
from tests.unit.archives import image_bytes

LIMITS = ImageLimits(max_bytes=1_000_000, max_pixels=10_000)


def code_of(content: bytes) -> str:
    with pytest.raises(ItemError) as caught:
        judge_image(content, LIMITS)
    return caught.value.code


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_allowed_format_is_known_by_its_content(kind: str) -> None:
    facts = judge_image(image_bytes(kind, (40, 30)), LIMITS)
    assert facts == ImageFacts(kind.lower(), 40, 30)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpegs_of_every_mode_are_measured(mode: str) -> None:
    assert judge_image(image_bytes("JPEG", (17, 5), mode), LIMITS) == ("jpeg", 17, 5)


def test_a_progressive_jpeg_with_exif_and_comment_is_measured() -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (33, 21)).save(
        out, "JPEG", progressive=True, exif=exif, comment=b"\xff\xc0" * 9
    )
    assert judge_image(out.getvalue(), LIMITS) == ("jpeg", 33, 21)


def test_a_jpeg_with_fill_bytes_is_measured() -> None:
    plain = image_bytes("JPEG", (33, 21))
    assert judge_image(plain[:2] + b"\xff\xff" + plain[2:], LIMITS) == ("jpeg", 33, 21)


def test_an_empty_file_is_empty() -> None:
    assert code_of(b"") == "empty"


@pytest.mark.parametrize("content", [b"hello", b"<svg/>", b"%PDF-1.7", b"PK\x03\x04" + bytes(40)])
def test_what_is_no_image_is_unsupported(content: bytes) -> None:
    assert code_of(content) == "unsupported_format"


def test_a_format_that_is_not_allowed_is_unsupported() -> None:
    assert code_of(image_bytes("PPM")) == "unsupported_format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_a_header_alone_is_undecodable(kind: str) -> None:
    assert code_of(image_bytes(kind)[:13]) == "undecodable"


def test_too_many_pixels_or_bytes_are_too_large() -> None:
    assert code_of(image_bytes("JPEG", (101, 100))) == "too_large"
    assert code_of(image_bytes("BMP", (101, 100))) == "too_large"
    assert code_of(image_bytes("PNG") + bytes(1_000_000)) == "too_large"


def test_a_png_that_claims_gigapixels_is_too_large() -> None:
    content = bytearray(image_bytes("PNG"))
    struct.pack_into(">II", content, 16, 100_000, 100_000)
    assert code_of(bytes(content)) == "too_large"


def test_a_gif_that_claims_gigapixels_is_too_large() -> None:
    content = bytearray(image_bytes("GIF"))
    struct.pack_into("<HH", content, 6, 65_535, 65_535)
    assert code_of(bytes(content)) == "too_large"


def test_an_image_without_pixels_is_undecodable() -> None:
    content = bytearray(image_bytes("PNG"))
    struct.pack_into(">II", content, 16, 0, 5)
    assert code_of(bytes(content)) == "undecodable"


def test_a_directory_beyond_all_addresses_is_undecodable() -> None:
    assert code_of(b"II+\x00\x08\x00\x00\x00" + b"\xff" * 8 + bytes(64)) == "undecodable"


_MAGICS = [image_bytes(kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")]


@given(st.sampled_from(_MAGICS), st.integers(3, 64), st.binary(max_size=200))
def test_random_content_only_raises_item_errors(magic: bytes, keep: int, content: bytes) -> None:
    try:
        facts = judge_image(magic[:keep] + content, LIMITS)
    except ItemError:
        return
    assert facts.width * facts.height <= LIMITS.max_pixels
