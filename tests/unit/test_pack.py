from __future__ import annotations

import hashlib
import io
import json
import tarfile

from hypothesis import given
from hypothesis import strategies as st

from app.errors import ItemError
from app.uploads.judge import ImageFacts
from app.uploads.pack import PackedShard, ShardEntry, ShardWriter

FACTS = ImageFacts("png", 4, 3)


def pack(
    contents: list[bytes | None], *, max_bytes: int = 1 << 20, max_items: int = 100, first: int = 0
) -> list[PackedShard]:
    """Shards of these contents; None is a member that failed."""
    writer = ShardWriter(
        max_bytes=max_bytes,
        max_items=max_items,
        key_of=lambda number: f"shards/{number}",
        first_ordinal=first,
    )
    shards = []
    for content in contents:
        if content is None:
            shards.append(writer.fail("bad", ItemError("no image")))
        else:
            shards.append(writer.add("a/x.png", content, FACTS, "cat", "train"))
    shards.append(writer.finish())
    return [shard for shard in shards if shard is not None]


def test_a_shard_is_a_tar_that_any_tool_reads() -> None:
    contents = [b"one", b"", b"x" * 512, b"y" * 1000]
    (shard,) = pack(list(contents))
    with tarfile.open(fileobj=io.BytesIO(shard.body)) as archive:
        members = archive.getmembers()
        assert [m.name for m in members] == [f"{n:09d}.png" for n in range(4)]
        read = [archive.extractfile(m) for m in members]
        assert [file.read() for file in read if file] == contents
        assert [m.offset_data for m in members] == [entry.offset for entry in shard.entries]


def test_an_entry_says_where_and_what_its_image_is() -> None:
    (shard,) = pack([b"one", b"two!"])
    entry = shard.entries[1]
    assert shard.body[entry.offset : entry.offset + entry.length] == b"two!"
    assert entry.sha256 == hashlib.sha256(b"two!").hexdigest()
    assert (entry.name, entry.label, entry.split) == ("a/x.png", "cat", "train")
    assert (entry.format, entry.width, entry.height) == FACTS
    assert shard.sha256 == hashlib.sha256(shard.body).hexdigest()
    assert ShardEntry.from_row(json.loads(json.dumps(entry.as_row()))) == entry


def test_equal_members_make_equal_bytes() -> None:
    assert pack([b"one", b"two"]) == pack([b"one", b"two"])


def test_a_shard_holds_at_most_so_many_items_failed_ones_too() -> None:
    shards = pack([b"a", None, b"b", None, None, None, b"c"], max_items=3)
    assert [(s.number, s.key, s.lo, s.hi) for s in shards] == [
        (0, "shards/0", 0, 3),
        (1, "shards/1", 3, 6),
        (2, "shards/2", 6, 7),
    ]
    assert [[e.ordinal for e in s.entries] for s in shards] == [[0, 2], [], [6]]
    assert [[f.ordinal for f in s.failures] for s in shards] == [[1], [3, 4, 5], []]
    assert shards[1].body == b""


def test_an_image_larger_than_a_shard_gets_one_of_its_own() -> None:
    shards = pack([b"a", b"b" * 5000, b"c"], max_bytes=4096)
    assert [s.hi - s.lo for s in shards] == [1, 1, 1]


def test_packing_goes_on_from_any_ordinal() -> None:
    (shard,) = pack([b"a"], first=41)
    assert (shard.lo, shard.hi, shard.entries[0].ordinal) == (41, 42, 41)


@given(
    st.lists(st.one_of(st.none(), st.integers(0, 3000)), max_size=40),
    st.integers(2048, 9000),
    st.integers(1, 9),
)
def test_shards_cover_every_item_once_within_their_bounds(
    sizes: list[int | None], max_bytes: int, max_items: int
) -> None:
    contents = [None if size is None else bytes(size) for size in sizes]
    shards = pack(contents, max_bytes=max_bytes, max_items=max_items)
    seen = [
        ordinal
        for s in shards
        for ordinal in sorted([e.ordinal for e in s.entries] + [f.ordinal for f in s.failures])
    ]
    assert seen == list(range(len(sizes)))
    bounds = [(s.lo, s.hi) for s in shards]
    assert [lo for lo, _ in bounds[1:]] == [hi for _, hi in bounds[:-1]]
    for shard in shards:
        assert shard.hi - shard.lo <= max_items
        assert len(shard.body) <= max_bytes or len(shard.entries) == 1
