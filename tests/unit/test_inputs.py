"""Which keys under a prefix are items, without a store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from app.db.session import Database
from app.jobs.claim import Lease
from app.jobs.inputs import Found, read_input
from app.jobs.states import ChunkTask, JobKind
from app.locations import ANYWHERE
from app.storage.s3 import ObjectInfo, ObjectStore


class Listing:
    """A store that can only list."""

    def __init__(self, *keys: str) -> None:
        self._keys = sorted(keys)

    def list(
        self, bucket: str, prefix: str = "", start_after: str | None = None
    ) -> Iterator[ObjectInfo]:
        for key in self._keys:
            if key.startswith(prefix) and (start_after is None or key > start_after):
                yield ObjectInfo(key, 1, "etag")


def lease_over(source: dict[str, Any], cursor: dict[str, Any] | None = None) -> Lease:
    return Lease(
        chunk_id="chk_1",
        job_id="job_1",
        tenant_id="ten_1",
        task=ChunkTask.PLAN,
        attempt=1,
        lo=0,
        hi=0,
        items=None,
        cursor=cursor,
        kind=JobKind.PREDICT,
        input=source,
        options={},
        model_version_id=None,
        dataset_version_id=None,
    )


def keys_of(store: Listing, lease: Lease) -> list[str]:
    entries = read_input(
        cast(Database, None), cast(ObjectStore, store), "darkroom", lease, locations=ANYWHERE
    )
    return [entry.item.key for entry in entries if isinstance(entry, Found)]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ([], [], ["in/a.png", "in/b/c.png", "in/d.jpg"]),
        (["*.png"], [], ["in/a.png", "in/b/c.png"]),
        (["*.png", "d.*"], ["b/*"], ["in/a.png", "in/d.jpg"]),
        ([], ["*"], []),
        (["*.PNG"], [], []),
    ],
)
def test_globs_see_the_key_after_the_prefix_and_markers_of_folders_are_no_items(
    include: list[str], exclude: list[str], expected: list[str]
) -> None:
    store = Listing("in/", "in/a.png", "in/b/", "in/b/c.png", "in/d.jpg", "out/e.png")
    source = {"prefix": "s3://photos/in/", "include": include, "exclude": exclude}
    assert keys_of(store, lease_over(source)) == expected


def test_prefix_goes_on_after_the_key_that_was_committed_last() -> None:
    store = Listing("a", "b", "c")
    source = {"prefix": "s3://photos/", "include": [], "exclude": []}
    cursor = {"planned": 2, "position": {"key": "b"}}
    assert keys_of(store, lease_over(source, cursor)) == ["c"]
