"""Every bad image of the list gets its named outcome, quickly and small, and harms no neighbour."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import ItemError
from app.models.spec import PreprocessSpec
from app.uploads.judge import ImageLimits, judge_image
from tests.security.hostile_images import MIB, Case, cases, good
from tests.security.image_files import SIDE, encode
from worker.pipeline.decode import DecodePool
from worker.pipeline.limits import DecodeLimits
from worker.pipeline.stream import DecodedItem, DecodedStream
from worker.pipeline.values import ItemRef

#: Shows the pixels of the cases' own size as they are.
AS_IS = PreprocessSpec(SIDE, SIDE, "stretch", "nearest")
LIMITS = DecodeLimits()
MAX_BYTES = 64 * MIB
JUDGE_LIMITS = ImageLimits(max_bytes=MAX_BYTES, max_pixels=LIMITS.max_pixels)
CHUNK = 256
SECONDS = 10
MEMORY = 512 * MIB
CASES = cases()


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool.start(1, MAX_BYTES, LIMITS) as pool:
        yield pool


def forget_peak(pid: int) -> None:
    """Let the kernel count the peak of a process's memory from now on."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    """The most memory that a process has held."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_image_has_its_outcome_within_ten_seconds_and_512_mb(
    pool: DecodePool, case: Case
) -> None:
    data = case.make()
    (pid,) = pool.child_pids()
    forget_peak(pid)
    began = time.monotonic()
    run = pool.decode([data], AS_IS)
    assert time.monotonic() - began < SECONDS
    error = run.errors[0]
    assert not case.judge(error.code if error else None, run.pixels[0])
    assert pool.child_pids() == [pid], "the image ended its child"
    assert peak_bytes(pid) < MEMORY
    if error is not None:
        assert len(error.detail) > 10
        assert "/" not in error.detail, "no path of this machine"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_judge_of_archives_agrees_and_reads_no_more_than_the_header(case: Case) -> None:
    data = case.make()
    began = time.monotonic()
    tracemalloc.start()
    try:
        code = None
        try:
            judge_image(data, JUDGE_LIMITS)
        except ItemError as error:
            code = error.code
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < SECONDS
    assert peak < MIB
    if code == "undecodable":
        # What a header lacks may be damaged or cut off; only the decoder tells which.
        assert case.outcome in {"undecodable", "truncated"}
    elif code is not None:
        assert case.outcome == code


def test_the_judge_of_archives_uses_no_image_library() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", "import worker.tasks.ingest, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not [name for name in loaded if name.partition(".")[0] == "PIL"]


class Pictures:
    """A store that is a list of files, keyed by their place."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files

    def open(
        self, bucket: str, key: str, offset: int | None = None, length: int | None = None
    ) -> io.BytesIO:
        """The whole file; nothing here has parts."""
        return io.BytesIO(self.files[int(key)])


def test_chunk_full_of_bad_images_harms_no_neighbour() -> None:
    neighbours = {place: good(place) for place in range(CHUNK)}
    # Bad ones among good ones: both in each run that a child is given.
    bad = {1 + 3 * number: case for number, case in enumerate(CASES)}
    assert len(bad) == len(CASES) <= CHUNK // 3
    files = [bad[place].make() if place in bad else neighbours[place][0] for place in range(CHUNK)]
    items = [ItemRef(place, "bucket", str(place)) for place in range(CHUNK)]
    with DecodePool.start(2, MAX_BYTES, LIMITS) as pool:
        pids = pool.child_pids()
        with DecodedStream(items, store=Pictures(files), decoder=pool, preprocess=AS_IS) as stream:
            answers: list[DecodedItem] = list(stream)
        assert pool.child_pids() == pids
        assert all(peak_bytes(pid) < MEMORY for pid in pids)
    assert [answer.item.ordinal for answer in answers] == list(range(CHUNK))
    empty = np.zeros((SIDE, SIDE, 3), np.uint8)
    wrong = {}
    for place, answer in enumerate(answers):
        code = answer.error.code if answer.error else None
        pixels = empty if answer.pixels is None else answer.pixels
        if place in bad:
            wrong[bad[place].name] = bad[place].judge(code, pixels)
        else:
            same = code is None and bool((pixels == neighbours[place][1]).all())
            wrong[f"neighbour {place}"] = None if same else f"{code}"
    assert {name: what for name, what in wrong.items() if what} == {}


def test_decoding_imports_nothing_more_once_the_walls_stand() -> None:
    program = (
        "import sys, warnings; warnings.simplefilter('ignore')\n"
        "from worker.pipeline import decode_child as child\n"
        "from app.errors import ItemError\n"
        "from app.models.spec import PreprocessSpec\n"
        "from worker.pipeline.limits import DecodeLimits\n"
        "child._ready_pillow()\n"
        "before = set(sys.modules)\n"
        "files = sys.stdin.buffer.read()\n"
        "while files:\n"
        "    size = int.from_bytes(files[:4], 'big')\n"
        "    data, files = files[4 : 4 + size], files[4 + size :]\n"
        "    try: child.decode_image(data, PreprocessSpec(16, 16), DecodeLimits())\n"
        "    except ItemError: pass\n"
        "print(*set(sys.modules) - before)"
    )
    made = [data for data in (case.make() for case in CASES) if len(data) < MIB]
    imported = subprocess.run(
        [sys.executable, "-c", program],
        input=b"".join(len(data).to_bytes(4, "big") + data for data in made),
        capture_output=True,
        check=True,
    )
    assert imported.stdout.split() == []


def test_largest_allowed_image_of_the_thirstiest_kind_stays_within_512_mb(
    pool: DecodePool,
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    largest = encode(
        Image.new("RGBA", (6300, 6300), (10, 20, 30, 255)), "PNG", compress_level=1, exif=exif
    )
    (pid,) = pool.child_pids()
    forget_peak(pid)
    run = pool.decode([largest], AS_IS)
    assert run.errors == [None]
    assert (run.pixels[0] == (10, 20, 30)).all()
    assert peak_bytes(pid) < MEMORY
