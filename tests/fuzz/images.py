"""Damaged images by the ten thousand, through the judge of archives and real decode children.

As a command: ``python -m tests.fuzz.images [--examples 50000] [--seed n] [--first 0]``. Inputs are
numbered; ``--seed``, ``--first`` and ``--examples 1`` make a single one again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from app.uploads.judge import ImageLimits, judge_image
from tests.fuzz.mutate import mutate, with_right_checksums
from tests.security.hostile_images import MIB, cases, good
from tests.security.image_files import encode, quadrants
from worker.pipeline.decode import DecodePool
from worker.pipeline.limits import DecodeLimits

SPEC = PreprocessSpec(16, 16, "stretch", "nearest")
LIMITS = DecodeLimits()
MAX_BYTES = 64 * MIB
JUDGE_LIMITS = ImageLimits(MAX_BYTES, LIMITS.max_pixels, LIMITS.max_aspect)
#: All that an image may end with; another code is a hole in the table of errors.
CODES = frozenset(
    {"empty", "undecodable", "truncated", "unsupported_format", "too_large", "decode_timeout"}
)
PNG = b"\x89PNG\r\n\x1a\n"
CHILDREN = 2
#: Images of a run, as a worker hands them over; one of them is good and must stay so.
RUN = 32
_SEED_BYTES = 64 * 1024
#: A run of which every image takes all of its time ends before this.
_RUN_SECONDS = RUN * 2 * LIMITS.item_seconds


def seeds() -> list[bytes]:
    """Files to damage: the list of bad images, and each format in each of its kinds."""
    files = [case.make() for case in cases() if case.name not in _LARGE]
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"):
        image = Image.new(mode, (32, 24)) if mode == "I;16" else quadrants().convert(mode)
        for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"):
            try:
                files.append(encode(image, name))
            except (OSError, ValueError):
                continue  # this format has no such kind
    picture = quadrants().resize((64, 48))
    for packing in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "raw"):
        files.append(encode(picture, "TIFF", compression=packing))
    files.append(encode(picture.convert("1"), "TIFF", compression="group4"))
    files.append(encode(picture, "JPEG", progressive=True))
    files.append(encode(picture, "WEBP", lossless=True))
    return [data for data in files if 0 < len(data) <= _SEED_BYTES]


#: Cases whose files are too large to be seeds, and long in the making.
_LARGE = frozenset(
    {
        *("100 MB trailing", "8 MB trailing", "zTXt bomb", "50 MB ICC, packed", "50 MB ICC"),
        *("tags that are the whole file, each", "13000², 1 bit", "20000², 1 bit"),
    }
)


class Fuzz:
    """One run of the fuzz: what it tried, and what got out."""

    def __init__(self, pool: DecodePool, seed: int) -> None:
        self.pool = pool
        self.seed = seed
        self.files = seeds()
        self.outcomes: Counter[str] = Counter()
        self.escapes: list[str] = []
        #: Inputs that the judge refused and the children took.
        self.stricter: list[int] = []

    def make(self, number: int) -> bytes:
        """The input of this number."""
        random_ = random.Random(f"{self.seed}:{number}")
        data = mutate(random_, self.files)
        if data.startswith(PNG) and random_.random() < 0.7:
            return with_right_checksums(data)
        return data

    def try_run(self, first: int, count: int) -> None:
        """Put so many inputs and one good image through judge and children."""
        inputs = [self.make(first + number) for number in range(count)]
        neighbour, seen = good(first)
        place = first % (count + 1)
        began = time.monotonic()
        try:
            run = self.pool.decode([*inputs[:place], neighbour, *inputs[place:]], SPEC)
        except Exception as raised:
            self.escapes.append(f"inputs {first}…{first + count - 1}: {raised!r}")
            return
        if time.monotonic() - began > _RUN_SECONDS:
            self.escapes.append(f"inputs {first}…{first + count - 1}: took longer than they may")
        if run.errors[place] is not None or not (run.pixels[place] == seen).all():
            self.escapes.append(f"inputs {first}…{first + count - 1}: harmed a good image")
        errors = run.errors[:place] + run.errors[place + 1 :]
        for number, (data, error) in enumerate(zip(inputs, errors, strict=True), start=first):
            self._check(number, error)
            self._judge(number, data, error)

    def _check(self, number: int, error: Exception | None) -> None:
        if error is None:
            self.outcomes["pixels"] += 1
        elif isinstance(error, ItemError) and error.code in CODES and error.detail:
            self.outcomes["died" if "ends the process" in error.detail else error.code] += 1
        else:
            self.escapes.append(f"input {number}: {error!r}")

    def _judge(self, number: int, data: bytes, error: Exception | None) -> None:
        try:
            judge_image(data, JUDGE_LIMITS)
        except ItemError:
            if error is None:
                self.stricter.append(number)
        except Exception as raised:
            self.escapes.append(f"input {number}: the judge raised {raised!r}")


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def main() -> int:
    """Try all inputs and end with one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    last = asked.first + asked.examples
    with DecodePool.start(CHILDREN, MAX_BYTES, LIMITS) as pool:
        fuzz = Fuzz(pool, asked.seed)
        with ThreadPoolExecutor(CHILDREN) as threads:
            list(
                threads.map(
                    lambda first: fuzz.try_run(first, min(RUN - 1, last - first)),
                    range(asked.first, last, RUN - 1),
                )
            )
        peak = max(peak_bytes(pid) for pid in pool.child_pids())
    if peak > LIMITS.memory_bytes:
        fuzz.escapes.append(f"a child took {peak} bytes")
    for escape in fuzz.escapes:
        print(f"escape: {escape}", file=sys.stderr)  # noqa: T201
    outcomes = " ".join(
        f"{name.replace(' ', '_')}={count}" for name, count in sorted(fuzz.outcomes.items())
    )
    print(  # noqa: T201  (it speaks)
        f"fuzz_images inputs={asked.examples} escapes={len(fuzz.escapes)} seed={asked.seed} "
        f"seconds={time.monotonic() - began:.0f} peak_mb={peak // MIB} "
        f"judged_stricter={len(fuzz.stricter)} {outcomes}"
    )
    return 1 if fuzz.escapes else 0


if __name__ == "__main__":
    sys.exit(main())
