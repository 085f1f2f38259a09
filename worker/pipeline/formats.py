"""Which image format some bytes are, judged by content and never by name."""

from __future__ import annotations

import zlib

#: Pillow's names of the formats that are decoded.
ALLOWED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

_PNG = b"\x89PNG\r\n\x1a\n"
_SIGNATURES = (
    ("JPEG", b"\xff\xd8\xff"),
    ("PNG", _PNG),
    ("GIF", b"GIF87a"),
    ("GIF", b"GIF89a"),
    ("BMP", b"BM"),
    ("TIFF", b"II*\x00"),
    ("TIFF", b"MM\x00*"),
    ("TIFF", b"II+\x00"),
    ("TIFF", b"MM\x00+"),
)
_UNSUPPORTED = (
    ("Photoshop", b"8BPS"),
    ("icon", b"\x00\x00\x01\x00"),
    ("Apple icon", b"icns"),
    ("JPEG 2000", b"\x00\x00\x00\x0cjP  "),
    ("JPEG 2000", b"\xff\x4f\xff\x51"),
    ("JPEG XL", b"\xff\x0a"),
    ("JPEG XL", b"\x00\x00\x00\x0cJXL "),
    ("OpenEXR", b"\x76\x2f\x31\x01"),
    ("Radiance", b"#?RADIANCE"),
    ("DirectDraw", b"DDS "),
    ("FITS", b"SIMPLE  ="),
    ("Netpbm", b"P1\n"),
    ("Netpbm", b"P2\n"),
    ("Netpbm", b"P3\n"),
    ("Netpbm", b"P4\n"),
    ("Netpbm", b"P5\n"),
    ("Netpbm", b"P6\n"),
    ("PostScript", b"%!PS"),
    ("PDF", b"%PDF-"),
    ("SVG", b"<svg"),
    ("QOI", b"qoif"),
)
#: What ends a whole file, and how near its end: some writers append a little more.
_END_MARKERS = {"JPEG": (b"\xff\xd9", 1024), "PNG": (b"IEND", 1024), "GIF": (b";", 16)}
_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def sniff_format(data: bytes | bytearray) -> str | None:
    """The allowed format that these bytes begin as, by its signature, or None."""
    for name, signature in _SIGNATURES:
        if data.startswith(signature):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp" and _has_brand(data, _AVIF_BRANDS):
        return "AVIF"
    return None


def name_unsupported(data: bytes | bytearray) -> str | None:
    """The name of a well-known image format that is not decoded here, or None."""
    for name, signature in _UNSUPPORTED:
        if data.startswith(signature):
            return name
    if data[4:8] == b"ftyp" and _has_brand(data, _HEIC_BRANDS):
        return "HEIC"
    if data[:5] == b"<?xml" and b"<svg" in data[:1024]:
        return "SVG"
    return None


def is_cut_short(data: bytes | bytearray, name: str) -> bool:
    """Whether the container says that bytes are missing at the end.

    Asked only of files that failed to decode, to tell cut files from damaged ones.
    """
    marker, within = _END_MARKERS.get(name, (b"", 0))
    if marker:
        return marker not in data[-within:]
    return _stated_end(data, name) > len(data)


def has_damaged_data(data: bytes | bytearray) -> bool:
    """Whether a chunk of a PNG's pixels differs from its checksum.

    Pillow checks those of all other chunks that matter.
    """
    view, at = memoryview(data), len(_PNG)
    while at + 12 <= len(view):
        length, kind = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if kind == b"IEND" or end + 4 > len(view):
            break
        if kind == b"IDAT" and zlib.crc32(view[at + 4 : end]) != int.from_bytes(
            view[end : end + 4], "big"
        ):
            return True
        at = end + 4
    return False


def webp_size(data: bytes | bytearray) -> tuple[int, int] | None:
    """Width and height that a WebP file's first chunk states (RFC 9649), or None.

    Pillow's WebP opener makes its canvas at once, so this is the only look before memory.
    """
    kind, body = data[12:16], data[20:30]
    if len(body) < 10:
        return None
    if kind == b"VP8X":
        return (
            int.from_bytes(body[4:7], "little") + 1,
            int.from_bytes(body[7:10], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        return (
            int.from_bytes(body[6:8], "little") & 0x3FFF,
            int.from_bytes(body[8:10], "little") & 0x3FFF,
        )
    return None


def _has_brand(data: bytes | bytearray, brands: tuple[bytes, ...]) -> bool:
    """Whether an ISO base media file names one of ``brands``, major or compatible."""
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    listed = [bytes(data[8:12]), *(bytes(data[at : at + 4]) for at in range(16, end, 4))]
    return any(brand in brands for brand in listed)


def _stated_end(data: bytes | bytearray, name: str) -> int:
    """The least size of the file by what its own header says."""
    match name:
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8
        case "BMP":
            return int.from_bytes(data[2:6], "little")
        case "TIFF":
            # Where the first directory begins, which many writers put last.
            first = data[4:8]
            little = data[:2] == b"II"
            return (int.from_bytes(first, "little") if little else int.from_bytes(first, "big")) + 2
        case _:
            return _boxes_end(data)


def _boxes_end(data: bytes | bytearray) -> int:
    """Where the last top-level box of an ISO base media file ends by its own length."""
    at = 0
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if length == 1:
            length = int.from_bytes(data[at + 8 : at + 16], "big")
        if length == 0:
            return len(data)
        at += max(length, 8)
    return at
