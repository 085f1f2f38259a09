"""What decode children and their walls cost a photo job.

``make bench ONLY=decode [PHOTOS=photos.zip] [ROUNDS=n]`` decodes the same photos in one child with
walls, in one without, and in this process, turn and turn about. Held against each other is the
processor's time of parent and child together: a job's forward pass overlaps with its decoding, so
what decoding takes of the processor is what it costs. Of each the best round counts, as whatever
else the machine does only adds. ``ratio`` is decoding with walls by decoding without;
``walls_of_job`` and ``children_of_job`` are what walls, and children with them, add to a job, which
is decoding in this process and the forward pass of squeezenet1_0.
"""

from __future__ import annotations

import os
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from app.models.spec import ModelSpec, PreprocessSpec
from tests.security.image_files import encode
from worker.pipeline.decode import CHILD_COMMAND, DecodePool
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.pixels import decode_image

SPEC = PreprocessSpec(256, 224)
LIMITS = DecodeLimits()
MAX_BYTES = 64 * 1024 * 1024
#: As many as a worker hands over at once where photos are of this size.
RUN = 4
PHOTOS = 48
BATCH = 32
#: A child that raises no wall and arms no timer, whatever else is the same.
BARE_CHILD = """
import signal
from worker.pipeline import decode_child as child
child.raise_walls = lambda _: {}
child.forbid_files = lambda *_, **__: None
class Signals:
    def __getattr__(self, name): return getattr(signal, name)
    def setitimer(self, *_): pass
child.signal = Signals()
child.main()
"""


def make_photos() -> list[bytes]:
    """JPEGs of 500×375 pixels with about as much detail as photos have, some 60 KB each."""
    photos = []
    for number in range(PHOTOS):
        random = np.random.default_rng(number)
        detail = random.integers(0, 256, (75, 100, 3), np.uint8)
        smooth = Image.fromarray(detail).resize((500, 375), Image.Resampling.BICUBIC)
        photos.append(encode(smooth, "JPEG", quality=90))
    return photos


def read_photos(path: str) -> list[bytes]:
    """The JPEGs of a zip, at most as many as are made otherwise."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.lower().endswith((".jpg", ".jpeg"))]
        return [archive.read(name) for name in names[:PHOTOS]]


def through(pool: DecodePool, photos: list[bytes]) -> None:
    """Decode all photos in a pool, a run at a time."""
    for start in range(0, len(photos), RUN):
        assert not any(pool.decode(photos[start : start + RUN], SPEC).errors)


def here(photos: list[bytes]) -> None:
    """Decode all photos in this process."""
    for photo in photos:
        decode_image(photo, SPEC, LIMITS)


def cpu_seconds(pool: DecodePool | None) -> float:
    """Time on a processor so far, of this process and of a pool's only child."""
    own = time.process_time()
    if pool is None:
        return own
    (pid,) = pool.child_pids()
    return own + int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def forward_cpu_ms() -> float:
    """Processor's time of the forward pass of one photo, in milliseconds."""
    import torch

    from worker.recognisers.registry import build_module, default_preprocess

    spec = ModelSpec("squeezenet1_0", ("one", "two"), default_preprocess("squeezenet1_0"))
    module = build_module(spec).eval()
    spent: list[float] = []
    # One: several that wait for each other on a busy machine would make a job look dear.
    torch.set_num_threads(1)
    with torch.inference_mode():
        batch = torch.zeros(BATCH, 3, SPEC.crop_px, SPEC.crop_px)
        for _ in range(6):
            before = time.process_time()
            module(batch)
            spent.append((time.process_time() - before) / BATCH * 1000)
    return min(spent)


def start(command: Sequence[str]) -> tuple[DecodePool, float]:
    """A pool of one child, and the seconds that it took to start."""
    began = time.perf_counter()
    pool = DecodePool.start(1, MAX_BYTES, LIMITS, command=command)
    return pool, time.perf_counter() - began


def main() -> int:
    """Measure all three round by round; 1 where children or walls add 5 % to a job or more."""
    path = os.environ.get("PHOTOS")
    rounds = int(os.environ.get("ROUNDS", "40"))
    photos = read_photos(path) if path else make_photos()
    # As nice as the children are, so that a busy machine treats all alike.
    os.nice(10)
    walled, walled_start = start(CHILD_COMMAND)
    bare, bare_start = start((sys.executable, "-c", BARE_CHILD))
    works: dict[str, tuple[DecodePool | None, Callable[[], None]]] = {
        "walled": (walled, lambda: through(walled, photos)),
        "bare": (bare, lambda: through(bare, photos)),
        "here": (None, lambda: here(photos)),
    }
    took: dict[str, list[float]] = {name: [] for name in works}
    with walled, bare:
        for number in range(rounds + 1):
            for name in list(works) if number % 2 else reversed(works):
                pool, work = works[name]
                before = cpu_seconds(pool)
                work()
                if number:  # the first round only warms
                    took[name].append(cpu_seconds(pool) - before)
    each = {name: min(spent) / len(photos) * 1000 for name, spent in took.items()}
    job = each["here"] + forward_cpu_ms()
    walls, children = each["walled"] - each["bare"], each["walled"] - each["here"]
    print(  # noqa: T201  a bench prints
        f"decode photos={len(photos)} rounds={rounds} walled_cpu_ms={each['walled']:.2f} "
        f"bare_cpu_ms={each['bare']:.2f} here_cpu_ms={each['here']:.2f} "
        f"job_cpu_ms={job:.2f} "
        f"start_walled_ms={walled_start * 1000:.0f} start_bare_ms={bare_start * 1000:.0f} "
        f"walls_of_job={walls / job:.2%} children_of_job={children / job:.2%} "
        f"ratio={each['walled'] / each['bare']:.3f}"
    )
    return 1 if max(walls, children) >= 0.05 * job else 0


if __name__ == "__main__":
    sys.exit(main())
