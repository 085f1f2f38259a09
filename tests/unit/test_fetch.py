"""Bytes come in order, with as few GETs as can be, and retries where they may help."""

from __future__ import annotations

import io
import threading

import pytest

from app.errors import ObjectMissingError, StorageError
from tests.unit.pictures import DictStore, whole_items
from worker.pipeline.fetch import FetchedItem, fetch_items
from worker.pipeline.retry import RetryBudget
from worker.pipeline.values import ByteStream, ItemRef, Store


def fetch(
    items: list[ItemRef], store: Store, *, max_bytes: int = 1000, total: int = 32
) -> list[FetchedItem]:
    budget = RetryBudget(base_seconds=0.0, total=total)
    return list(fetch_items(items, store=store, max_bytes=max_bytes, budget=budget))


def run_of(store: DictStore, key: str, lengths: list[int], gap: int = 0) -> list[ItemRef]:
    """Items that lie one behind the other in a new object, ``gap`` bytes between them."""
    items: list[ItemRef] = []
    data = b""
    for ordinal, length in enumerate(lengths):
        data += b"-" * gap
        items.append(ItemRef(ordinal, "bucket", key, len(data), length))
        data += bytes([65 + ordinal % 26]) * length
    store.objects[key] = data
    return items


class Stuttering(io.BytesIO):
    """Gives at most three bytes a read, as a network may."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(3 if size is None or size < 0 else min(size, 3))


class FlakyStore(DictStore):
    """Fails as often as told: by an error at open, or by a stream that ends too early."""

    def __init__(self, objects: dict[str, bytes], faults: list[Exception | int]) -> None:
        super().__init__(objects)
        self.faults = faults
        self.lock = threading.Lock()

    def open(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> ByteStream:
        with self.lock:
            fault = self.faults.pop(0) if self.faults else None
        stream = super().open(bucket, key, offset, length)
        if isinstance(fault, Exception):
            raise fault
        return stream if fault is None else io.BytesIO(stream.read(fault))


@pytest.mark.parametrize("gap", [0, 512])
def test_run_inside_one_object_is_one_get(gap: int) -> None:
    store = DictStore({})
    items = run_of(store, "shard", [5, 7, 1, 300], gap)
    fetched = fetch(items, store)
    assert [entry.data for entry in fetched] == [b"A" * 5, b"B" * 7, b"C", b"D" * 300]
    assert store.opened == [("shard", gap, 313 + 3 * gap)]


def test_stream_is_cut_as_it_arrives_however_it_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    store = DictStore({})
    items = run_of(store, "shard", [5, 7, 1])
    monkeypatch.setattr(store, "open", lambda *part: Stuttering(store.objects["shard"]))
    assert [entry.data for entry in fetch(items, store)] == [b"A" * 5, b"B" * 7, b"C"]


def test_far_apart_or_backward_items_are_gets_of_their_own() -> None:
    store = DictStore({"shard": bytes(200_000)})
    items = [
        ItemRef(0, "bucket", "shard", 100_000, 10),
        ItemRef(1, "bucket", "shard", 0, 10),
        ItemRef(2, "bucket", "shard", 190_000, 10),
    ]
    assert [len(entry.data) for entry in fetch(items, store)] == [10, 10, 10]
    assert sorted(offset for _, offset, _ in store.opened if offset is not None) == [
        0,
        100_000,
        190_000,
    ]


def test_whole_objects_come_in_order() -> None:
    store = DictStore({f"k{index}": bytes([index]) * index for index in range(100)})
    fetched = fetch(whole_items(store), store)
    assert [entry.item.ordinal for entry in fetched] == list(range(100))
    assert [entry.data for entry in fetched] == list(store.objects.values())


def test_whole_objects_are_fetched_only_a_few_ahead() -> None:
    store = DictStore({f"k{index}": b"x" for index in range(100)})
    budget = RetryBudget()
    stream = fetch_items(whole_items(store), store=store, max_bytes=10, budget=budget)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(store.opened) <= 16
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fetch")]


def test_runs_and_whole_objects_may_mix() -> None:
    store = DictStore({"a": b"aa", "b": b"bb"})
    run = run_of(store, "shard", [2, 3])
    items = [ItemRef(9, "bucket", "a"), *run, ItemRef(10, "bucket", "b")]
    assert [entry.data for entry in fetch(items, store)] == [b"aa", b"AA", b"BBB", b"bb"]


def test_missing_object_is_not_tried_again() -> None:
    store = DictStore({"a": b"a"})
    fetched = fetch([ItemRef(0, "bucket", "gone"), ItemRef(1, "bucket", "a")], store)
    assert isinstance(fetched[0].error, ObjectMissingError)
    assert fetched[1].data == b"a"
    assert [key for key, _, _ in store.opened].count("gone") == 1


def test_missing_shard_fails_each_of_its_items_at_one_get() -> None:
    store = DictStore({})
    items = run_of(store, "shard", [1, 2, 3])
    del store.objects["shard"]
    fetched = fetch(items, store)
    assert [entry.error and entry.error.code for entry in fetched] == ["object_missing"] * 3
    assert len(store.opened) == 1


@pytest.mark.parametrize("fault", [StorageError("busy"), TimeoutError("slow"), 2])
def test_passing_fault_is_tried_again(fault: Exception | int) -> None:
    # A short answer shows only where the length is known.
    item = ItemRef(0, "bucket", "a", 0, 5)
    store = FlakyStore({"a": b"hello"}, [fault, fault])
    assert fetch([item], store)[0].data == b"hello"
    assert len(store.opened) == 3


def test_fault_that_stays_fails_the_item_after_four_tries() -> None:
    store = FlakyStore({"a": b"hello"}, [StorageError("busy")] * 99)
    (fetched,) = fetch([ItemRef(0, "bucket", "a")], store)
    assert fetched.error is not None
    assert fetched.error.code == "fetch_failed"
    assert len(store.opened) == 4


def test_broken_run_goes_on_where_it_broke() -> None:
    store = FlakyStore({}, [7])
    items = run_of(store, "shard", [5, 5, 5])
    assert [entry.data for entry in fetch(items, store)] == [b"A" * 5, b"B" * 5, b"C" * 5]
    assert store.opened == [("shard", 0, 15), ("shard", 5, 10)]


def test_shard_that_is_too_short_fails_only_the_items_it_lacks() -> None:
    store = DictStore({})
    items = run_of(store, "shard", [5, 5, 5])
    store.objects["shard"] = store.objects["shard"][:7]
    fetched = fetch(items, store)
    assert [entry.error and entry.error.code for entry in fetched] == [
        None,
        "fetch_failed",
        "fetch_failed",
    ]


def test_chunk_spends_no_more_than_its_budget_of_retries() -> None:
    store = FlakyStore({f"k{index}": b"x" for index in range(20)}, [StorageError("down")] * 999)
    fetched = fetch(whole_items(store), store, total=5)
    assert all(entry.error is not None for entry in fetched)
    assert len(store.opened) <= 20 + 5


def test_store_that_never_answers_is_not_asked_for_every_item_of_a_large_chunk() -> None:
    store = FlakyStore({f"k{index}": b"x" for index in range(500)}, [StorageError("down")] * 9999)
    fetched = fetch(whole_items(store), store)
    assert [entry.error and entry.error.code for entry in fetched] == ["fetch_failed"] * 500
    # As many failures in a row as there are retries, and what eight threads had begun.
    assert len(store.opened) < 32 + 32
    items = run_of(store, "shard", [1] * 500)
    before = len(store.opened)
    fetched = fetch(items, store)
    assert all(isinstance(entry.error, StorageError) for entry in fetched)
    assert len(store.opened) - before <= 33


def test_failures_between_which_the_store_answers_make_nothing_hopeless() -> None:
    faults: list[Exception | int | None] = [StorageError("busy"), None] * 100
    store = FlakyStore({f"k{index}": b"x" for index in range(100)}, faults)  # type: ignore[arg-type]
    budget = RetryBudget(base_seconds=0.0, total=40)
    fetched = list(fetch_items(whole_items(store), store=store, max_bytes=9, budget=budget))
    assert not budget.is_hopeless
    assert sum(entry.error is None for entry in fetched) >= 50


def test_every_try_that_ends_is_heard_of() -> None:
    ends: list[None] = []
    store = FlakyStore({"a": b"hello", "b": b"x"}, [StorageError("busy"), StorageError("busy")])
    budget = RetryBudget(base_seconds=0.0, on_end=lambda: ends.append(None))
    items = [ItemRef(0, "bucket", "a"), ItemRef(1, "bucket", "gone"), ItemRef(2, "bucket", "b")]
    list(fetch_items(items, store=store, max_bytes=9, budget=budget))
    assert len(ends) == len(store.opened) == 5


def test_waiting_retry_ends_when_the_run_is_halted() -> None:
    halt = threading.Event()
    halt.set()
    budget = RetryBudget(base_seconds=1000, cap_seconds=1000, halt=halt)
    assert budget.wait_to_retry(StorageError("down"), 1) is False


def test_items_over_the_byte_limit_are_too_large() -> None:
    store = DictStore({"whole": b"x" * 1001, "fits": b"x" * 1000})
    run = run_of(store, "shard", [10, 1001, 10])
    items = [ItemRef(7, "bucket", "whole"), ItemRef(8, "bucket", "fits"), *run]
    fetched = fetch(items, store)
    assert [entry.error and entry.error.code for entry in fetched] == [
        "too_large",
        None,
        None,
        "too_large",
        None,
    ]


def test_fault_of_ours_is_raised() -> None:
    store = FlakyStore({"a": b"a"}, [ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        fetch([ItemRef(0, "bucket", "a")], store)
