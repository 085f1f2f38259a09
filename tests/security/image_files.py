"""Image files written by hand, where an encoder would not write what is wanted."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image

#: Four colours that lossy formats and palettes keep apart, clockwise from the upper left.
RED, GREEN, BLUE, YELLOW = (200, 40, 40), (40, 180, 60), (40, 60, 200), (220, 210, 60)
SIDE = 16


def quadrants() -> Image.Image:
    """The picture most cases hold: no two of its eight orientations look alike."""
    image = Image.new("RGB", (SIDE, SIDE), RED)
    image.paste(GREEN, (8, 0, 16, 8))
    image.paste(BLUE, (8, 8, 16, 16))
    image.paste(YELLOW, (0, 8, 8, 16))
    return image


def encode(image: Image.Image, name: str, **options: Any) -> bytes:
    """The image as a file of the named format."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def jpeg(image: Image.Image | None = None, **options: Any) -> bytes:
    """A JPEG that is close to its picture."""
    return encode(image or quadrants(), "JPEG", **{"quality": 95, "subsampling": 0} | options)


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    colour: int = 2,
    rows: bytes = b"",
    before: Sequence[bytes] = (),
) -> bytes:
    """A PNG with the given header, chunks and unpacked rows, whether they fit or not."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *before,
            chunk(b"IDAT", zlib.compress(rows, 1)),
            chunk(b"IEND", b""),
        ]
    )


def png_with(*chunks: bytes) -> bytes:
    """The picture as a PNG with further chunks after its header."""
    whole = encode(quadrants(), "PNG")
    return whole[:33] + b"".join(chunks) + whole[33:]


def empty_png(side: int) -> bytes:
    """A 1-bit PNG of so many black pixels on a side; small, and whole."""
    row = 1 + (side + 7) // 8
    packer = zlib.compressobj(9)
    body = b"".join(packer.compress(bytes(row)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"IDAT", body), chunk(b"IEND", b"")]
    )


def gif(
    frames: int, *, place: tuple[int, int] = (0, 0), screen: tuple[int, int] = (SIDE, SIDE)
) -> bytes:
    """A GIF of so many frames: the picture, placed on the screen, then single pixels."""
    first = encode(quadrants().quantize(4), "GIF")
    colours = 3 << (first[10] & 7) + 1
    head = first[:6] + struct.pack("<HH", *screen) + first[10 : 13 + colours]
    at = first.index(b"\x2c", 13 + colours)
    picture = b"\x2c" + struct.pack("<HH", *place) + first[at + 5 : -1]
    # 1×1, code size 2: clear, colour 0, end.
    dot = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + picture + dot * (frames - 1) + b";"


def tiff(
    tags: Sequence[tuple[int, int, int, int]],
    *,
    data: bytes = b"",
    following: int = 0,
    pages: int = 1,
) -> bytes:
    """A little-endian TIFF: data from byte 8, then pages that all have the same tags.

    Tags are (tag, type, count, value or offset). ``following`` is where the last page leads.
    """
    start = 8 + len(data) + len(data) % 2
    size = 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    out = [b"II*\x00", struct.pack("<I", start), data, b"\x00" * (len(data) % 2)]
    for page in range(pages):
        after = start + (page + 1) * size if page + 1 < pages else following
        out.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", after))
    return b"".join(out)


def rgb_tags(width: int = SIDE, height: int = SIDE) -> list[tuple[int, int, int, int]]:
    """Tags of an uncompressed 8-bit RGB page whose one strip begins at byte 14."""
    return [
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, 3, 8),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, 14),
        (277, 3, 1, 3),
        (278, 4, 1, height),
        (279, 4, 1, width * height * 3),
    ]


def rgb_data() -> bytes:
    """What :func:`rgb_tags` points at: the bits of three samples, then the picture."""
    return struct.pack("<HHH", 8, 8, 8) + quadrants().tobytes()


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    whole = jpeg(Image.new("L", (64, 64), 90), progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * count + whole[-2:]


def arithmetic_jpeg() -> bytes:
    """A grey JPEG in arithmetic coding: one scan of DC terms, all of which are zero.

    Its coded data is a run of the likelier symbol, whose zero bytes an encoder leaves out.
    """
    table = b"\xff\xdb" + struct.pack(">HB", 67, 0) + bytes([1] * 64)
    frame = b"\xff\xca" + struct.pack(">HBHHB", 11, 8, SIDE, SIDE, 1) + bytes([1, 0x11, 0])
    scan = b"\xff\xda" + struct.pack(">HB", 8, 1) + bytes([1, 0, 0, 0, 0])
    return b"\xff\xd8" + table + frame + scan + b"\x00\x00\xff\xd9"


def ycck_jpeg() -> bytes:
    """The picture as Adobe writes it for print: YCCK, inverted."""
    ink = quadrants().convert("CMYK")
    cyan, magenta, yellow, black = ink.split()
    stored = Image.merge("RGB", (cyan, magenta, yellow)).convert("YCbCr")
    # Pillow inverts what it writes of CMYK, which of these three is not wanted.
    inverted = [band.point(lambda value: 255 - value) for band in stored.split()]
    data = bytearray(jpeg(Image.merge("CMYK", (*inverted, black))))
    at = data.index(b"Adobe")
    data[at + 11] = 2  # the transform: YCCK
    return bytes(data)


def apng() -> bytes:
    """Two frames, the second all green."""
    second = Image.new("RGB", (SIDE, SIDE), GREEN)
    return encode(quadrants(), "PNG", save_all=True, append_images=[second])


def claims_frames(count: int) -> bytes:
    """The picture as a PNG that says to be an animation of so many frames."""
    return png_with(chunk(b"acTL", struct.pack(">II", count, 0)))


def with_exif(orientation: int, padding: int = 0) -> bytes:
    """The picture stored turned, with the EXIF tag that says how; JPEG."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if padding:
        exif[0x010E] = "x" * padding
    stored = quadrants() if turn is None else quadrants().transpose(turn)
    return jpeg(stored, exif=exif)
