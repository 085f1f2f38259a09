"""A chunk's road from references to predictions: order, neighbours, stopping and faults."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from app.errors import StorageError
from tests.unit.pictures import (
    LIMITS,
    MAX_BYTES,
    DictStore,
    encode,
    picture,
    small_recogniser,
    whole_items,
)
from worker.pipeline import run as run_module
from worker.pipeline.decode import DecodePool
from worker.pipeline.run import CountMismatchError, run_chunk
from worker.pipeline.values import ByteStream, ChunkOutcome, ItemRef, PredictOptions
from worker.recognisers.cache import RecogniserCache
from worker.recognisers.load import Recogniser


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodePool]:
    with DecodePool.start(2, MAX_BYTES, LIMITS) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def pictures(count: int) -> DictStore:
    return DictStore({f"k{index}": encode(picture(index, (32, 32))) for index in range(count)})


def recognise(
    store: Any,
    decoder: DecodePool,
    *,
    items: list[ItemRef] | None = None,
    recogniser: Recogniser | None = None,
    **changes: Any,
) -> ChunkOutcome:
    settings: dict[str, Any] = {
        "options": PredictOptions(top_k=3),
        "image_batch_size": 4,
        "should_stop": lambda: False,
        "on_progress": lambda ended: None,
    }
    return run_chunk(
        items if items is not None else whole_items(store),
        store=store,
        decoder=decoder,
        recogniser=recogniser or small_recogniser(),
        **settings | changes,
    )


def test_results_are_the_networks_answers_in_the_order_of_the_items(decoder: DecodePool) -> None:
    store = pictures(11)
    recogniser = small_recogniser()
    outcome = recognise(store, decoder, recogniser=recogniser)
    assert [result.ordinal for result in outcome.results] == list(range(11))
    assert not outcome.stopped
    assert outcome.seconds.wall > 0
    for index, result in enumerate(outcome.results):
        pixels = torch.frombuffer(bytearray(picture(index, (32, 32)).tobytes()), dtype=torch.uint8)
        scores = recogniser.forward(pixels.view(1, 32, 32, 3)).softmax(dim=1)[0]
        assert result.prediction is not None
        assert [name for name, _ in result.prediction] == [
            f"c{rank}" for rank in scores.argsort(descending=True).tolist()
        ]
        for name, score in result.prediction:
            assert score == pytest.approx(float(scores[int(name[1:])]), abs=1e-6)
            assert type(score) is float


def test_same_images_packed_in_one_object_give_the_same_predictions(decoder: DecodePool) -> None:
    store = pictures(9)
    apart = recognise(store, decoder)
    shard = DictStore({"shard": b"".join(store.objects.values())})
    items, offset = [], 0
    for ordinal, data in enumerate(store.objects.values()):
        items.append(ItemRef(ordinal, "bucket", "shard", offset, len(data)))
        offset += len(data)
    packed = recognise(shard, decoder, items=items)
    assert packed.results == apart.results
    assert len(shard.opened) == 1


def test_failed_items_carry_their_errors_and_harm_no_neighbour(decoder: DecodePool) -> None:
    store = pictures(12)
    clean = recognise(store, decoder)
    store.objects["k2"] = b"not an image"
    store.objects["k5"] = store.objects["k5"][:60]
    items = whole_items(store)
    del store.objects["k7"]
    outcome = recognise(store, decoder, items=items)
    codes = {r.ordinal: r.error.code for r in outcome.results if r.error is not None}
    assert codes == {2: "unsupported_format", 5: "truncated", 7: "object_missing"}
    for found, expected in zip(outcome.results, clean.results, strict=True):
        if found.ordinal not in codes:
            assert found.prediction is not None
            assert expected.prediction is not None
            for (name, score), (clean_name, clean_score) in zip(
                found.prediction, expected.prediction, strict=True
            ):
                assert name == clean_name
                assert score == pytest.approx(clean_score, abs=1e-6)


def test_chunk_whose_every_item_failed_ends_in_order(decoder: DecodePool) -> None:
    store = DictStore({f"k{index}": b"junk" for index in range(30)})
    ended: list[int] = []
    outcome = recognise(store, decoder, on_progress=ended.append)
    assert [result.ordinal for result in outcome.results] == list(range(30))
    assert ended[-1] == 30


def test_empty_chunk_gives_nothing(decoder: DecodePool) -> None:
    assert recognise(DictStore({}), decoder).results == []


def test_progress_counts_up_to_all_items(decoder: DecodePool) -> None:
    ended: list[int] = []
    recognise(pictures(10), decoder, on_progress=ended.append)
    assert ended == [4, 8, 10]


def test_stop_between_batches_gives_a_prefix(decoder: DecodePool) -> None:
    answers = iter([False, False, True])
    outcome = recognise(pictures(40), decoder, should_stop=lambda: next(answers))
    assert outcome.stopped
    assert [result.ordinal for result in outcome.results] == list(range(8))


def test_stop_before_anything_gives_nothing(decoder: DecodePool) -> None:
    outcome = recognise(pictures(2), decoder, should_stop=lambda: True)
    assert outcome.stopped
    assert outcome.results == []


def test_stop_wakes_a_fetch_that_waits_to_retry(decoder: DecodePool) -> None:
    store = pictures(40)
    asked_again = threading.Event()

    class Failing:
        def open(self, bucket: str, key: str, *part: int | None) -> ByteStream:
            if key == "k39":
                asked_again.set()
                raise StorageError("down")
            return store.open(bucket, key)

    outcome = recognise(
        Failing(), decoder, items=whole_items(store), should_stop=lambda: asked_again.wait(20)
    )
    assert outcome.stopped


def test_unexpected_fault_of_the_store_ends_all_stages_and_is_raised(decoder: DecodePool) -> None:
    class Broken:
        def open(self, *part: Any) -> ByteStream:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recognise(Broken(), decoder, items=whole_items(pictures(40)))


def test_unexpected_fault_of_decoding_ends_all_stages_and_is_raised(
    decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(decoder, "decode", broken)
    with pytest.raises(ZeroDivisionError):
        recognise(pictures(200), decoder)


def test_unexpected_fault_of_the_network_ends_all_stages_and_is_raised(
    decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = small_recogniser()

    def broken(pixels: Tensor) -> Tensor:
        raise ZeroDivisionError

    monkeypatch.setattr(recogniser, "forward", broken)
    with pytest.raises(ZeroDivisionError):
        recognise(pictures(400), decoder, recogniser=recogniser)
    assert recogniser.lock.acquire(blocking=False)
    recogniser.lock.release()


def test_fault_of_the_progress_report_is_raised(decoder: DecodePool) -> None:
    def broken(ended: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        recognise(pictures(100), decoder, on_progress=broken)


def test_results_that_are_not_the_items_are_refused(
    decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recognise_batch = run_module._recognise
    monkeypatch.setattr(run_module, "_recognise", lambda *part: recognise_batch(*part)[:-1])
    with pytest.raises(CountMismatchError):
        recognise(pictures(4), decoder)


def test_answer_that_is_no_number_fails_its_item_only(
    decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = small_recogniser()
    forward = recogniser.forward

    def spoilt(pixels: Tensor) -> Tensor:
        logits = forward(pixels).clone()
        logits[1, 0] = float("nan")
        return logits

    monkeypatch.setattr(recogniser, "forward", spoilt)
    outcome = recognise(pictures(4), decoder, recogniser=recogniser)
    assert [r.error and r.error.code for r in outcome.results] == [None, "not_finite", None, None]


def test_device_out_of_memory_halves_the_image_batch(
    decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = pictures(8)
    recogniser = small_recogniser()
    expected = recognise(store, decoder, recogniser=recogniser, image_batch_size=2)
    forward, sizes = recogniser.forward, []

    def tight(pixels: Tensor) -> Tensor:
        sizes.append(len(pixels))
        if len(pixels) > 2:
            raise torch.OutOfMemoryError
        return forward(pixels)

    monkeypatch.setattr(recogniser, "forward", tight)
    outcome = recognise(store, decoder, recogniser=recogniser, image_batch_size=8)
    # What did not fit once is not tried again, in this chunk or the next.
    assert sizes == [8, 4, 2, 2, 2, 2]
    assert outcome.results == expected.results
    assert recogniser.fitting_images == 2
    sizes.clear()
    again = recognise(store, decoder, recogniser=recogniser, image_batch_size=8)
    assert sizes == [2] * 4
    assert again.results == expected.results


def test_size_that_fits_is_remembered_when_the_recogniser_is_loaded_again() -> None:
    first, other, again = small_recogniser(), small_recogniser(), small_recogniser()
    cache = RecogniserCache(max_bytes=1)
    cache.get("one", lambda: first).fitting_images = 4
    assert cache.get("two", lambda: other).fitting_images is None
    assert cache.version_ids() == ["two"]
    assert cache.get("one", lambda: again).fitting_images == 4


def test_two_chunks_of_one_process_never_use_the_device_at_once(
    decoder: DecodePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser = small_recogniser()
    forward = recogniser.forward
    inside = threading.Semaphore(1)

    def alone(pixels: Tensor) -> Tensor:
        assert inside.acquire(blocking=False)
        try:
            return forward(pixels)
        finally:
            inside.release()

    monkeypatch.setattr(recogniser, "forward", alone)
    outcomes: list[ChunkOutcome] = []
    threads = [
        threading.Thread(
            target=lambda: outcomes.append(
                recognise(pictures(60), decoder, recogniser=recogniser, image_batch_size=2)
            )
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 2
    assert outcomes[0].results == outcomes[1].results


def test_stopped_chunk_leaves_no_open_stream(decoder: DecodePool) -> None:
    closed = threading.Event()
    files = [encode(picture(index)) for index in range(400)]

    class Watched(io.BytesIO):
        def close(self) -> None:
            closed.set()
            super().close()

    class OneShard:
        def open(self, *part: Any) -> ByteStream:
            return Watched(b"".join(files))

    items, offset = [], 0
    for ordinal, data in enumerate(files):
        items.append(ItemRef(ordinal, "bucket", "shard", offset, len(data)))
        offset += len(data)
    answers = iter([False, True])
    outcome = recognise(OneShard(), decoder, items=items, should_stop=lambda: next(answers))
    assert len(outcome.results) == 4
    assert closed.is_set()


def test_logits_of_answered_images_are_handed_on_by_their_ordinals(decoder: DecodePool) -> None:
    store = pictures(7)
    store.objects["k2"] = b"no image"
    recogniser = small_recogniser()
    ordinals: list[int] = []
    rows: list[Any] = []

    def keep(these: list[int], logits: Any) -> None:
        ordinals.extend(these)
        rows.extend(logits)

    outcome = recognise(store, decoder, recogniser=recogniser, on_logits=keep)
    assert ordinals == [0, 1, 3, 4, 5, 6]
    answered = [each.prediction for each in outcome.results if each.prediction is not None]
    for row, prediction in zip(rows, answered, strict=True):
        shares = torch.from_numpy(row).softmax(dim=0)
        best = int(shares.argmax())
        name, score = prediction[0]
        assert name == recogniser.spec.classes[best]
        assert score == pytest.approx(float(shares[best]))
