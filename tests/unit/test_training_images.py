"""Images for training: decoded once or in every epoch, they come as the same batches."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing

import pytest
import torch
from torch import Tensor

from app.errors import ObjectMissingError
from app.training.recipe import TrainingRecipe
from tests.unit.pictures import (
    AS_IS,
    LIMITS,
    MAX_BYTES,
    DictStore,
    assert_same,
    encode,
    one_torch_thread,
    picture,
    small_spec,
    whole_items,
)
from worker.pipeline.decode import DecodePool
from worker.pipeline.values import ByteStream
from worker.training.data import (
    CachedImages,
    StreamedImages,
    TrainingImages,
    TrainingStoppedError,
    load_images,
)
from worker.training.fit import fit

#: What an image takes as pixels.
IMAGE_BYTES = 16 * 16 * 3


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodePool]:
    with DecodePool.start(2, MAX_BYTES, LIMITS) as pool:
        yield pool


@pytest.fixture
def store() -> DictStore:
    """Twenty images, of which the second cannot be read."""
    store = DictStore({f"k{index}": encode(picture(index)) for index in range(20)})
    store.objects["k1"] = b"junk"
    return store


def load(
    store: DictStore, decoder: DecodePool, max_cache_bytes: int, heard: list[int] | None = None
) -> TrainingImages:
    return load_images(
        whole_items(store),
        [10 + index for index in range(len(store.objects))],
        store=store,
        decoder=decoder,
        preprocess=AS_IS,
        should_stop=lambda: False,
        on_progress=([] if heard is None else heard).append,
        max_cache_bytes=max_cache_bytes,
    )


def batches_of(
    images: TrainingImages, order: Tensor, batch_size: int, start_batch: int = 0
) -> list[tuple[Tensor, Tensor]]:
    with closing(images.batches(order, batch_size, start_batch)) as batches:
        return list(batches)


def test_failed_images_are_left_out_with_their_targets(decoder: DecodePool) -> None:
    store = DictStore({f"k{index}": encode(picture(index)) for index in range(6)})
    items = whole_items(store)
    store.objects["k1"] = b"junk"
    del store.objects["k4"]
    heard: list[int] = []
    images = load_images(
        items,
        [10, 11, 12, 13, 14, 15],
        store=store,
        decoder=decoder,
        preprocess=AS_IS,
        should_stop=lambda: False,
        on_progress=heard.append,
        max_cache_bytes=6 * IMAGE_BYTES,
    )
    assert isinstance(images, CachedImages)
    assert heard == [1, 2, 3, 4, 5, 6]
    assert images.targets.tolist() == [10, 12, 13, 15]
    assert images.pixels.shape == (4, 16, 16, 3)
    assert images.pixels[3].numpy().tobytes() == picture(5).tobytes()
    assert [(f.ordinal, f.error and f.error.code) for f in images.failed] == [
        (1, "unsupported_format"),
        (4, "object_missing"),
    ]


def test_images_that_do_not_fit_into_the_cache_are_streamed(
    store: DictStore, decoder: DecodePool
) -> None:
    heard: list[int] = []
    cached = load(store, decoder, 20 * IMAGE_BYTES)
    streamed = load(store, decoder, 20 * IMAGE_BYTES - 1, heard)
    assert isinstance(cached, CachedImages)
    assert isinstance(streamed, StreamedImages)
    assert heard == list(range(1, 21))
    assert (cached.cached_bytes, streamed.cached_bytes) == (19 * IMAGE_BYTES, 0)
    assert len(cached) == len(streamed) == 19
    assert torch.equal(cached.targets, streamed.targets)
    assert [f.ordinal for f in streamed.failed] == [f.ordinal for f in cached.failed] == [1]


@pytest.mark.parametrize("start_batch", [0, 2, 5])
def test_streamed_batches_are_the_cached_ones(
    store: DictStore, decoder: DecodePool, start_batch: int
) -> None:
    # Every image, and three of them again, as a balanced epoch may show them.
    order = torch.randperm(19, generator=torch.Generator().manual_seed(1))
    order = torch.cat([order, order[:3]])
    cached = batches_of(load(store, decoder, 20 * IMAGE_BYTES), order, 5, start_batch)
    streamed = batches_of(load(store, decoder, 0), order, 5, start_batch)
    assert [len(targets) for _, targets in cached] == [5, 5, 5, 5, 2][start_batch:]
    for (pixels, targets), (other_pixels, other_targets) in zip(cached, streamed, strict=True):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(targets, other_targets)
    if start_batch == 0:
        first = int(order[0])
        ordinal = first + (first >= 1)
        assert cached[0][0][0].numpy().tobytes() == picture(ordinal).tobytes()
        assert int(cached[0][1][0]) == 10 + ordinal


def test_network_learns_the_same_from_streamed_images(decoder: DecodePool) -> None:
    spec = small_spec()
    store = DictStore({f"k{index}": encode(picture(index, (32, 32))) for index in range(24)})

    def weights(max_cache_bytes: int) -> dict[str, Tensor]:
        images = load_images(
            whole_items(store),
            [index % 3 for index in range(24)],
            store=store,
            decoder=decoder,
            preprocess=spec.preprocess,
            should_stop=lambda: False,
            max_cache_bytes=max_cache_bytes,
        )
        recipe = TrainingRecipe(epochs=1, train_batch_size=7)
        fitted = fit(
            spec, recipe, images, images, device="cpu", on_epoch=lambda _report, _state: None
        )
        return fitted.module.state_dict()

    with one_torch_thread():
        assert_same(weights(10**9), weights(0))


def test_stream_reads_a_few_batches_ahead_and_no_further(decoder: DecodePool) -> None:
    opened = threading.Event()

    class WatchedStore(DictStore):
        def open(
            self, bucket: str, key: str, offset: int | None = None, length: int | None = None
        ) -> ByteStream:
            if key == "k12":
                opened.set()
            return super().open(bucket, key, offset, length)

    file = encode(picture())
    store = WatchedStore({f"k{index}": file for index in range(2000)})
    images = StreamedImages(whole_items(store), torch.arange(2000), [], store, decoder, AS_IS)
    with closing(images.batches(torch.arange(2000), 4)) as batches:
        next(batches)
        # Of the fourth batch, while the training has the first.
        assert opened.wait(30)
        assert torch.equal(next(batches)[1], torch.arange(4, 8))
    assert len(store.opened) < 600
    assert not [t for t in threading.enumerate() if t.name.startswith(("batches", "fetch"))]


def test_stream_that_is_left_while_it_waits_ends(decoder: DecodePool) -> None:
    asked, answer = threading.Event(), threading.Event()

    class SlowStore(DictStore):
        def open(
            self, bucket: str, key: str, offset: int | None = None, length: int | None = None
        ) -> ByteStream:
            if key == "k40":
                asked.set()
                answer.wait(30)
            return super().open(bucket, key, offset, length)

    store = SlowStore({f"k{index}": encode(picture(index)) for index in range(64)})
    images = StreamedImages(whole_items(store), torch.arange(64), [], store, decoder, AS_IS)
    batches = images.batches(torch.arange(64), 8)
    next(batches)
    assert asked.wait(30)
    threading.Timer(0.05, answer.set).start()
    batches.close()
    assert not [t for t in threading.enumerate() if t.name == "batches"]


def test_image_that_vanishes_between_epochs_ends_the_training_with_its_error(
    store: DictStore, decoder: DecodePool
) -> None:
    images = load(store, decoder, 0)
    del store.objects["k7"]
    with pytest.raises(ObjectMissingError, match="k7"):
        batches_of(images, torch.arange(19), 4)


def test_reading_of_a_split_ends_when_training_is_told_to_stop(decoder: DecodePool) -> None:
    file = encode(picture())
    store = DictStore({f"k{index}": file for index in range(2000)})
    with pytest.raises(TrainingStoppedError):
        load_images(
            whole_items(store),
            [0] * 2000,
            store=store,
            decoder=decoder,
            preprocess=AS_IS,
            should_stop=lambda: True,
            max_cache_bytes=10**9,
        )
    assert len(store.opened) < 600
