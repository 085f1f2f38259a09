"""Small archives, lists and weights to damage, and damage that reaches the deeper code."""

from __future__ import annotations

import gzip
import json
import random
import struct
from collections.abc import Callable

from tests.fuzz.mutate import mutate
from tests.security.archive_cases import IMAGE
from tests.security.raw_archives import (
    ZipMember,
    pax,
    raw_tar,
    raw_zip,
    tar_header,
    tar_member,
    with_checksum,
)

LABELS = b'filename,label,split\na/1.jpg,cat,train\n"b/2.jpg","a ""dog""",val\n3.jpg,=x,\n'
EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
#: The records of a zip and how long each is without its names.
_RECORDS = {
    b"PK\x03\x04": 30,
    b"PK\x01\x02": 46,
    b"PK\x05\x06": 22,
    b"PK\x06\x06": 56,
    b"PK\x06\x07": 20,
}


def zips() -> list[bytes]:
    """Zips of each kind that is read."""
    members = [
        ZipMember(b"a/", mode=0o40755),
        ZipMember(b"a/1.jpg", IMAGE),
        ZipMember(b"b/2.jpg", IMAGE, method=0),
        ZipMember(b"labels.csv", LABELS),
        ZipMember(b"b/caf\x82.jpg", IMAGE, flags=0),
        ZipMember(b"link", b"a/1.jpg", mode=0o120777),
        ZipMember(b"squeezed", IMAGE, method=14),
        ZipMember(b"3.jpg", b""),
    ]
    wide = ZipMember(
        b"wide.jpg",
        IMAGE,
        method=0,
        size=2**32,
        packed_bytes=2**32,
        extra=struct.pack("<HHQQ", 1, 16, len(IMAGE), len(IMAGE)),
    )
    return [raw_zip(members), raw_zip(members[1:4], wide=True), raw_zip([wide, members[1]])]


def tars() -> list[bytes]:
    """Tars of each kind that is read."""
    files = tar_member(b"a/1.jpg", IMAGE) + tar_member(b"labels.csv", LABELS)
    long = tar_member(b"././@LongLink", b"n" * 300 + b"\x00", b"L")
    sparse = tar_header(b"s.jpg", 0, b"S", magic=b"ustar  \x00", sparse_more=True) + bytes(512)
    return [
        raw_tar(tar_member(b"a/", kind=b"5"), files, tar_member(b"l", kind=b"2", link=b"a/1.jpg")),
        raw_tar(pax(path=b"b/2.jpg", mtime=b"1.5"), tar_member(b"short", IMAGE), files),
        raw_tar(pax(size=b"%d" % len(IMAGE)), tar_member(b"w.jpg", IMAGE, size=0), files),
        raw_tar(long, tar_member(b"short", IMAGE), sparse, files),
        raw_tar(tar_header(b"v7.jpg", 0, magic=bytes(8)), files),
    ]


def damage_zip(random_: random.Random, seeds: list[bytes]) -> bytes:
    """A damaged zip; mostly single fields of its records, or a directory that is found again."""
    way = random_.random()
    if way < 0.25:
        return mutate(random_, seeds)
    data = bytearray(mutate(random_, seeds) if way < 0.5 else random_.choice(seeds))
    for _ in range(random_.randint(1, 3)):
        magic = random_.choice(list(_RECORDS))
        places = _all(data, magic)
        if places:
            at = random_.choice(places) + random_.randrange(4, _RECORDS[magic])
            _put(random_, data, at)
    if random_.random() < 0.7:
        _mend_end(data)
    return bytes(data)


def damage_tar(random_: random.Random, seeds: list[bytes]) -> bytes:
    """A damaged tar, its headers' checksums mostly set right again."""
    data = bytearray(mutate(random_, seeds) if random_.random() < 0.5 else random_.choice(seeds))
    if data and random_.random() < 0.8:
        blocks = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
        for at in blocks and random_.choices(blocks, k=2):
            place = random_.choice((100, 124, 156, 257, 345, 482, random_.randrange(512)))
            _put(random_, data, at + place)
            if random_.random() < 0.3:
                data[at + 156 : at + 157] = random_.choice([b"x", b"g", b"L", b"K", b"S", b"1"])
    if random_.random() < 0.85:
        for at in range(0, len(data) - 511, 512):
            if data[at + 257 : at + 262] == b"ustar":
                data[at : at + 512] = with_checksum(data[at : at + 512])
    return bytes(data)


def damage_gzip(random_: random.Random, seeds: list[bytes]) -> bytes:
    """A damaged tar well compressed, or one damaged after it was."""
    if random_.random() < 0.6:
        return gzip.compress(damage_tar(random_, seeds), 1, mtime=0)
    return mutate(random_, [gzip.compress(random_.choice(seeds), 1, mtime=0)])


MANIFESTS = [
    b'{"key": "a/1.jpg"}\n{"key": "s3://photos/2.jpg", "custom_id": "two", "label": "cat"}\n'
    b'{"key": "p.tar", "offset": 512, "length": 99, "metadata": {"a": [1, {"b": null}]}}\n',
    b"\xef\xbb\xbfkey,offset,length,custom_id,label,metadata\r\n"
    b'a.jpg,,,one,cat,"{""a"": 1}"\r\np.tar,0,9,"t\nwo",,\r\n',
]
_MANIFEST_BITS = [
    *(b"NaN", b"1e400", b"-1", b"9" * 30, b"\\ud800", b"\\u0000", b'"', b"{", b"[" * 99, b"\x00"),
    *(b"\r", b"\n", b",", b'"key":', b"s3://", b"\xff", b"null", b"true", b"key,"),
]


def damage_text(random_: random.Random, seeds: list[bytes]) -> bytes:
    """A damaged list of lines, with words that such a list fears."""
    data = bytearray(mutate(random_, seeds) if random_.random() < 0.6 else random_.choice(seeds))
    for _ in range(random_.randint(0, 4)):
        at = random_.randrange(len(data) + 1)
        data[at:at] = random_.choice(_MANIFEST_BITS)
    return bytes(data)


def damage_weights(random_: random.Random, header: dict[str, object], data: bytes) -> bytes:
    """A weights file with damage in its header's bytes, in its values, or anywhere."""
    way = random_.random()
    if way < 0.6:
        changed = json.loads(json.dumps(header))
        for _ in range(random_.choice((0, 1, 1, 2))):
            _change_value(random_, changed)
        raw = json.dumps(changed).encode()
    else:
        raw = mutate(random_, [json.dumps(header).encode()])
    length = random_.choice(EXTREMES) if random_.random() < 0.05 else len(raw)
    whole = struct.pack("<Q", length) + raw + data
    return whole[: random_.randrange(len(whole) + 1)] if way > 0.9 else whole


def _change_value(random_: random.Random, header: dict[str, object]) -> None:
    name = random_.choice(list(header))
    entry = header[name]
    wrong: Callable[[], object] = lambda: random_.choice(  # noqa: E731
        [None, True, -1, 1.5, "F32", "F16", "x", [], {}, [4], [-1, 2], *EXTREMES]
    )
    if not isinstance(entry, dict) or not entry or random_.random() < 0.1:
        header[random_.choice([name, "other", "__metadata__"])] = wrong()
        return
    key = random_.choice(list(entry))
    value = entry[key]
    if isinstance(value, list) and value and random_.random() < 0.7:
        value[random_.randrange(len(value))] = wrong()
    else:
        entry[key] = wrong()


def _all(data: bytearray, magic: bytes) -> list[int]:
    places, at = [], data.find(magic)
    while at >= 0:
        places.append(at)
        at = data.find(magic, at + 1)
    return places


def _put(random_: random.Random, data: bytearray, at: int) -> None:
    size = random_.choice((1, 2, 4, 8, 12))
    value = random_.choice([*EXTREMES, random_.getrandbits(16), random_.getrandbits(8)])
    fresh = (value & (1 << 8 * size) - 1).to_bytes(size, "big")
    if random_.random() < 0.5:
        fresh = fresh[::-1]
    if random_.random() < 0.3:
        fresh = b"%0*o\x00" % (size, value)
    data[at : at + len(fresh)] = fresh[: max(0, len(data) - at)]


def _mend_end(data: bytearray) -> None:
    """Let the end record say where the directory really lies."""
    end, start = data.rfind(b"PK\x05\x06"), data.find(b"PK\x01\x02")
    if 0 <= start < end and end + 22 <= len(data):
        struct.pack_into("<II", data, end + 12, end - start, start)
        struct.pack_into("<H", data, end + 20, len(data) - end - 22)
