"""The bad images of the list, and the odd good ones, each with the outcome it must have."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.security.image_files import (
    SIDE,
    apng,
    arithmetic_jpeg,
    chunk,
    claims_frames,
    empty_png,
    encode,
    gif,
    jpeg,
    many_scans,
    png,
    png_with,
    quadrants,
    rgb_data,
    rgb_tags,
    tiff,
    with_exif,
    ycck_jpeg,
)

MIB = 1024 * 1024
Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Case:
    """One file. ``outcome`` is the code of its error, or the picture that must be seen in it.

    ``off`` is how far a pixel may be off on average, in levels of 255.
    """

    name: str
    make: Callable[[], bytes]
    outcome: str | Pixels
    off: float = 0.0

    def judge(self, code: str | None, pixels: Pixels) -> str | None:
        """What is wrong with an answer, if anything."""
        if isinstance(self.outcome, str):
            return None if code == self.outcome else f"{code} instead of {self.outcome}"
        if code is not None:
            return f"{code} instead of pixels"
        off = float(np.abs(pixels.astype(int) - self.outcome).mean())
        return None if off <= self.off else f"pixels are off by {off:.1f}"


def cases() -> list[Case]:
    """All cases; the bytes of each are made when asked for."""
    return [*_broken(), *_bombs(), *_not_images(), *_animations(), *_odd_but_good(), *_metadata()]


def picture() -> Pixels:
    """The pixels of the picture that most cases hold."""
    return np.asarray(quadrants())


def good(number: int) -> tuple[bytes, Pixels]:
    """A small good image that is like no other, and its pixels."""
    noise = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    return encode(Image.fromarray(noise), "PNG"), noise


def _cut_jpeg(share: float) -> bytes:
    data = _noisy_jpeg()
    return data[: int(len(data) * share)]


def _damage(data: bytes, before: bytes, offset: int) -> bytes:
    at = data.index(before) + offset
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def _noisy_jpeg() -> bytes:
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    return jpeg(Image.fromarray(noise))


def _broken() -> Iterator[Case]:
    whole = encode(quadrants(), "PNG")
    yield Case("empty", lambda: b"", "empty")
    yield Case("one byte", lambda: b"\xff", "unsupported_format")
    yield Case("JPEG, header only", lambda: jpeg()[:20], "truncated")
    yield Case("PNG, header only", lambda: whole[:33], "truncated")
    for share in (0.1, 0.5, 0.99):
        yield Case(f"JPEG cut at {share:.0%}", partial(_cut_jpeg, share), "truncated")
    yield Case("PNG, bad CRC of its header", lambda: _damage(whole, b"IHDR", 18), "undecodable")
    yield Case("PNG, bad CRC of its data", lambda: _damage(whole, b"IEND", -5), "undecodable")
    yield Case("PNG without data", lambda: whole[:33] + chunk(b"IEND", b""), "undecodable")
    yield Case("2³¹−1 wide", lambda: png(2**31 - 1, 1), "too_large")
    yield Case("zero width", lambda: png(0, 16), "undecodable")
    yield Case("JPEG of no height", _no_height, "undecodable")
    yield Case("1×65535", lambda: encode(Image.new("L", (1, 65_535)), "PNG"), "too_large")
    yield Case("65535×1", lambda: encode(Image.new("L", (65_535, 1)), "PNG"), "too_large")


def _no_height() -> bytes:
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 7] = b"\x00\x00"
    return bytes(data)


def _bombs() -> Iterator[Case]:
    yield Case("13000², 1 bit", lambda: empty_png(13_000), "too_large")
    yield Case("20000², 1 bit", lambda: empty_png(20_000), "too_large")
    yield Case("10,000-scan JPEG", lambda: many_scans(10_000), "too_large")
    yield Case("zTXt bomb", lambda: png_with(_text_bomb()), "too_large")
    yield Case("100 MB trailing", lambda: jpeg() + bytes(100_000_000), "too_large")
    yield Case("8 MB trailing", lambda: jpeg() + bytes(8_000_000), picture(), off=6)
    yield Case("huge strip", _huge_strip, "truncated")
    yield Case("huge tile", _huge_tile, "too_large")
    yield Case("tags that are the whole file, each", _greedy_tags, picture())
    yield Case("WebP of a huge canvas", _huge_webp, "too_large")
    yield Case("GIF of a huge screen", lambda: gif(1, screen=(65_535, 65_535)), "too_large")
    yield Case("GIF, frame far outside", lambda: gif(1, place=(60_000, 60_000)), "too_large")
    yield Case("TIFF of 2³¹ rows", _tall_tiff, "too_large")


def _tall_tiff() -> bytes:
    tags = [tag for tag in rgb_tags() if tag[0] != 257]
    return tiff([*tags, (257, 4, 1, 2**31)], data=rgb_data())


def _text_bomb() -> bytes:
    return chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(100 * MIB), 1))


def _huge_strip() -> bytes:
    tags = [tag for tag in rgb_tags() if tag[0] not in {278, 279}]
    return tiff([*tags, (278, 4, 1, 2**32 - 1), (279, 4, 1, 2**31 - 1)], data=rgb_data()[:300])


def _huge_tile() -> bytes:
    tags = [tag for tag in rgb_tags() if tag[0] not in {259, 273, 278, 279}]
    tile = [(322, 4, 1, 2**30), (323, 4, 1, 2**30), (324, 4, 1, 14), (325, 4, 1, 300)]
    return tiff([*tags, (259, 3, 1, 5), *tile], data=rgb_data())


def _greedy_tags() -> bytes:
    """Sixty tags that all are the same 30 MB."""
    many = [(40_000 + number, 1, 30 * MIB, 8) for number in range(60)]
    return tiff([*rgb_tags(), *many], data=rgb_data() + bytes(30 * MIB))


def _huge_webp() -> bytes:
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\x00" * 2
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


_XXE = b"""<?xml version="1.0"?><!DOCTYPE svg [<!ENTITY x SYSTEM "file:///etc/passwd">]>
<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script><text>&x;</text></svg>"""
_FITS_HEADER = (
    *(b"SIMPLE  =  T", b"BITPIX  =  8", b"NAXIS   =  2"),
    *(b"NAXIS1  =  99999", b"NAXIS2  =  99999", b"END"),
)
_HTML = b"<!doctype html><script>alert(1)</script>"


def _not_images() -> Iterator[Case]:
    unsupported = {
        "text": b"This is a text, and no image.\n" * 40,
        "HTML": _HTML,
        "SVG with script and XXE": _XXE,
        "SVG": b"<svg onload='alert(1)'/>",
        "PDF": b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>",
        "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9999 9999\n{} loop",
        "FITS bomb": b"".join(line.ljust(80) for line in _FITS_HEADER),
        "PSD": b"8BPS\x00\x01" + bytes(6) + struct.pack(">HIIHH", 3, 30_000, 30_000, 8, 3),
        "HEIC": struct.pack(">I", 24) + b"ftypheic\x00\x00\x00\x00heicmif1" + bytes(64),
        "zip": b"PK\x03\x04" + bytes(60),
        "executable": b"\x7fELF" + bytes(60),
    }
    for name, data in unsupported.items():
        yield Case(name, partial(bytes, data), "unsupported_format")
    yield Case("JPEG 2000 tiles", _jpeg_2000_tiles, "unsupported_format")


def _jpeg_2000_tiles() -> bytes:
    return encode(Image.new("RGB", (256, 256)), "JPEG2000", tile_size=(1, 256))


def _animations() -> Iterator[Case]:
    seen, second = picture(), Image.new("RGB", (SIDE, SIDE), (0, 200, 0))
    yield Case("10,000-frame GIF", lambda: gif(10_000), "too_large")
    yield Case("GIF of as many frames as are allowed", lambda: gif(1000), seen)
    yield Case("APNG", apng, seen)
    yield Case("APNG that claims 2³¹−1 frames", lambda: claims_frames(2**31 - 1), "too_large")
    options = {"save_all": True, "append_images": [second], "lossless": True}
    yield Case("animated WebP", lambda: encode(quadrants(), "WEBP", **options), seen)
    yield Case("GIF, frame beyond its screen", lambda: gif(1, screen=(8, 8)), seen)
    pages = tiff(rgb_tags(), data=rgb_data(), pages=1000)
    yield Case("1,000-page TIFF", lambda: pages, seen)
    yield Case("10,000-page TIFF", lambda: _pages(10_000), "too_large")
    loop = tiff(rgb_tags(), data=rgb_data(), following=8 + len(rgb_data()))
    yield Case("TIFF whose directories loop", lambda: loop, seen)
    yield Case("MPO", lambda: _mpo(second), seen, off=6)


def _pages(count: int) -> bytes:
    return tiff(rgb_tags(), data=rgb_data(), pages=count)


def _mpo(second: Image.Image) -> bytes:
    options = {"save_all": True, "append_images": [second], "quality": 95, "subsampling": 0}
    return encode(quadrants(), "MPO", **options)


def _odd_but_good() -> Iterator[Case]:
    seen = picture()
    grey = np.asarray(quadrants().convert("L"))
    as_rgb = np.repeat(grey[:, :, None], 3, axis=2)
    wide = grey.astype(np.uint16) * 257
    yield Case("JPEG named .png", jpeg, seen, off=6)
    yield Case("16-bit grey", lambda: encode(Image.fromarray(wide), "PNG"), as_rgb)
    yield Case("16-bit RGB", _deep_png, seen)
    yield Case("float TIFF with NaN", lambda: _float_tiff(float("nan")), "undecodable")
    yield Case("float TIFF with infinity", lambda: _float_tiff(float("inf")), "undecodable")
    ink = quadrants().convert("CMYK")
    yield Case("CMYK", lambda: jpeg(ink), seen, off=6)
    yield Case("YCCK", ycck_jpeg, seen, off=6)
    blank = Image.new("LAB", (SIDE, SIDE), (128, 0, 0))
    lab = np.asarray(blank.convert("RGB"))
    yield Case("LAB", lambda: encode(blank, "TIFF"), lab)
    yield Case("palette and tRNS", _palette_png, _where_red_is_white(seen), off=0)
    opaque = quadrants().convert("LA")
    yield Case("LA", lambda: encode(opaque, "PNG"), as_rgb)
    bits = quadrants().convert("1")
    yield Case("1 bit", lambda: encode(bits, "PNG"), np.asarray(bits.convert("RGB")))
    yield Case("arithmetic JPEG", arithmetic_jpeg, np.full((SIDE, SIDE, 3), 128, np.uint8), off=1)
    yield Case("AVIF", _avif, seen, off=6)
    for orientation in range(1, 9):
        name = f"EXIF orientation {orientation}"
        yield Case(name, partial(with_exif, orientation), seen, off=6)


def _avif() -> bytes:
    return encode(quadrants(), "AVIF", quality=95, subsampling="4:4:4")


def _deep_png() -> bytes:
    rows = b"".join(
        b"\x00" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in picture()
    )
    return png(SIDE, SIDE, depth=16, rows=rows)


def _float_tiff(value: float) -> bytes:
    values = np.asarray(quadrants().convert("L"), np.float32) / 255
    values[9, 9] = value
    return encode(Image.fromarray(values), "TIFF")


def _palette_png() -> bytes:
    indices = quadrants().quantize(4)
    red = indices.getpixel((0, 0))
    assert isinstance(red, int)
    return encode(indices, "PNG", transparency=red)


def _where_red_is_white(pixels: Pixels) -> Pixels:
    seen = pixels.copy()
    seen[:8, :8] = 255
    return seen


def _metadata() -> Iterator[Case]:
    seen = picture()
    yield Case("64 KB EXIF", lambda: with_exif(6, padding=65_000), seen, off=6)
    damaged = b"Exif\x00\x00II*\x00\xff\xff\xff\xff"
    yield Case("corrupt EXIF", lambda: jpeg(exif=damaged), seen, off=6)
    yield Case("50 MB ICC, packed", _icc_bomb, "too_large")
    yield Case("50 MB ICC", _icc_tiff, seen)
    yield Case("corrupt ICC", lambda: jpeg(icc_profile=b"no profile" * 40), seen, off=6)
    yield Case("JPEG and zip", lambda: jpeg() + b"PK\x03\x04" + bytes(99) + _ZIP_END, seen, off=6)
    yield Case("JPEG and HTML", lambda: jpeg(comment=_HTML) + _HTML, seen, off=6)
    yield Case("GIF and HTML", lambda: gif(1) + _HTML, seen)
    noise = random.Random(1).randbytes(200)
    yield Case("JPEG, its comment full of markers", lambda: jpeg(comment=noise * 9), seen, off=6)


_ZIP_END = b"PK\x05\x06" + bytes(18)


def _icc_bomb() -> bytes:
    return png_with(chunk(b"iCCP", b"p\x00\x00" + zlib.compress(bytes(50 * MIB), 1)))


def _icc_tiff() -> bytes:
    data = rgb_data()
    return tiff([*rgb_tags(), (34_675, 7, 50 * MIB, 8)], data=data + bytes(50 * MIB))
