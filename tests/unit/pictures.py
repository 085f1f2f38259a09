"""Small image files, image sets, stores and networks that the tests of the torch half share."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from app.errors import ObjectMissingError
from app.models.spec import ModelSpec, PreprocessSpec
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.values import ByteStream, ItemRef
from worker.recognisers.cnn import SmallCnn
from worker.recognisers.load import Recogniser
from worker.recognisers.registry import default_preprocess
from worker.training.data import CachedImages

#: Keeps an image of this size as it is, so that tests see the decoded pixels themselves.
AS_IS = PreprocessSpec(16, 16, "stretch", "nearest")
MAX_PIXELS = 1_000_000
MAX_BYTES = 1_000_000
LIMITS = DecodeLimits(max_pixels=MAX_PIXELS)


def picture(seed: int = 0, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> Image.Image:
    """Smooth noise that differs by seed; smooth, so that lossy formats keep it nearly."""
    generator = torch.Generator().manual_seed(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    noise = torch.randint(0, 256, (4, 4, bands), generator=generator, dtype=torch.uint8)
    small = Image.frombytes(mode, (4, 4), noise.numpy().tobytes())
    return small.resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    """The image as a file of the named format."""
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def stripes(count: int, seed: int = 0) -> CachedImages:
    """Images of three classes: a bright stripe on top, in the middle, or at the bottom."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 120, (count, 32, 32, 3), generator=generator, dtype=torch.uint8)
    targets = torch.arange(count) % 3
    for row, target in zip(pixels, targets.tolist(), strict=True):
        row[4 + 10 * target : 8 + 10 * target] += 100
    return CachedImages(pixels, targets, [])


class DictStore:
    """A store that is a dictionary, and counts what is opened."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects
        self.opened: list[tuple[str, int | None, int | None]] = []

    def open(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> ByteStream:
        """The object's bytes, or the part asked for."""
        self.opened.append((key, offset, length))
        if key not in self.objects:
            raise ObjectMissingError(f"{bucket}/{key} does not exist")
        data = self.objects[key][offset or 0 :]
        return io.BytesIO(data if length is None else data[:length])


def whole_items(store: DictStore) -> list[ItemRef]:
    """One item for each object of a store, in its order."""
    return [ItemRef(index, "bucket", key) for index, key in enumerate(store.objects)]


def small_spec(classes: int = 3) -> ModelSpec:
    """A small_cnn of so many classes, named c0, c1, …"""
    names = tuple(f"c{index}" for index in range(classes))
    return ModelSpec("small_cnn", names, default_preprocess("small_cnn"))


def small_recogniser(classes: int = 3) -> Recogniser:
    """A small_cnn with random weights, the same each time, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Recogniser(small_spec(classes), SmallCnn(classes), "cpu")


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Teach on one thread: networks this small only wait for each other's."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Both hold the same tensors, bit for bit."""
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
