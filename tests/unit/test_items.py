"""The compact form of a chunk's items: nothing is lost on the way."""

from __future__ import annotations

import json

import pytest

from app.jobs.items import JobItem, fetched_together, pack_items, slice_items, unpack_items

WHOLE = JobItem("one", "photos", "a.png", "s3://photos/a.png", label="cat", metadata={"n": None})
OTHER = JobItem("s3://photos/b.png", "photos", "b.png", "s3://photos/b.png")
RANGE = JobItem("c", "photos", "pack.tar", "c", offset=0, length=5)


@pytest.mark.parametrize("items", [[WHOLE], [WHOLE, OTHER], [RANGE], [OTHER, RANGE]])
def test_items_come_back_as_they_were_also_by_way_of_json(items: list[JobItem]) -> None:
    assert unpack_items(json.loads(json.dumps(pack_items(items)))) == items


def test_key_of_a_shard_is_written_once() -> None:
    items = [JobItem(str(n), "b", "shard-0001", str(n), n, 1) for n in range(100)]
    packed = pack_items(items)
    assert json.dumps(packed).count("shard-0001") == 1
    assert unpack_items(packed) == items


def test_items_of_two_buckets_are_refused() -> None:
    with pytest.raises(ValueError, match="one bucket"):
        pack_items([WHOLE, JobItem("x", "elsewhere", "x", "x")])


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 2), (0, 1), (1, 1)])
def test_slice_holds_the_items_of_its_range(start: int, stop: int) -> None:
    sliced = slice_items(pack_items([WHOLE, OTHER]), start, stop)
    assert unpack_items(sliced) == [WHOLE, OTHER][start:stop]


def test_items_share_a_chunk_where_one_get_or_one_bucket_serves_both() -> None:
    assert fetched_together(WHOLE, OTHER)
    assert fetched_together(RANGE, JobItem("d", "photos", "pack.tar", "d", 5, 5))
    assert not fetched_together(RANGE, JobItem("d", "photos", "other.tar", "d", 5, 5))
    assert not fetched_together(WHOLE, RANGE)
    assert not fetched_together(WHOLE, JobItem("x", "elsewhere", "a.png", "x"))
