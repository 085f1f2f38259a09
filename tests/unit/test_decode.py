"""The decode pool outlives whatever images do to its children."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.errors import UnavailableError
from app.models.spec import PreprocessSpec
from tests.unit.pictures import AS_IS, LIMITS, MAX_BYTES, encode, picture
from worker.pipeline.decode import DecodePool

# A child whose decoder ends the process on one image and never returns from another, as a
# hostile file would make a C library do.
FRAGILE_CHILD = """
import os, signal, sys
from worker.pipeline import decode_child
decode_image = decode_child.decode_image
def fragile(data, spec, limits):
    if bytes(data) == b"KILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if bytes(data) == b"HANG":
        signal.pause()
    if bytes(data).startswith(b"TWICE "):
        path, data = bytes(data)[6:].split(b"\\n", 1)
        # Folders: behind the walls no file can be opened.
        for death in (path + b".1", path + b".2"):
            if not os.path.exists(death):
                os.mkdir(death)
                os.kill(os.getpid(), signal.SIGKILL)
    return decode_image(data, spec, limits)
decode_child.decode_image = fragile
decode_child.main()
"""
FRAGILE = (sys.executable, "-c", FRAGILE_CHILD)


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    with DecodePool.start(2, MAX_BYTES, LIMITS) as pool:
        yield pool


def fragile_pool(item_seconds: float = 30.0) -> DecodePool:
    return DecodePool.start(
        1, MAX_BYTES, replace(LIMITS, item_seconds=item_seconds), command=FRAGILE
    )


def ended(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until_ended(pid: int) -> None:
    """Wait on the process itself, whoever its parent is."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(fd):
        assert select.select([fd], [], [], 20)[0], f"process {pid} still runs"


def test_run_gives_pixels_and_errors_in_order(pool: DecodePool) -> None:
    images = [picture(seed) for seed in range(5)]
    files = [encode(image) for image in images]
    files[2] = b"not an image"
    run = pool.decode(files, AS_IS)
    assert run.pixels.shape == (5, 16, 16, 3)
    assert [error and error.code for error in run.errors] == [
        None,
        None,
        "unsupported_format",
        None,
        None,
    ]
    for index in (0, 1, 3, 4):
        assert (run.pixels[index] == np.asarray(images[index])).all()


def test_next_run_may_have_another_shape(pool: DecodePool) -> None:
    for px in (16, 64, 8):
        files = [encode(picture(seed, (px, px))) for seed in range(7)]
        run = pool.decode(files, PreprocessSpec(px, px, "stretch", "nearest"))
        assert (run.pixels[6] == np.asarray(picture(6, (px, px)))).all()


def test_many_threads_may_decode_at_once(pool: DecodePool) -> None:
    def decode(seed: int) -> bool:
        files = [encode(picture(seed + index)) for index in range(4)]
        run = pool.decode(files, AS_IS)
        return all(
            (pixels == np.asarray(picture(seed + index))).all()
            for index, pixels in enumerate(run.pixels)
        )

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(decode, range(0, 160, 4)))


def test_empty_run_gives_nothing(pool: DecodePool) -> None:
    assert pool.decode([], AS_IS).pixels.shape == (0, 16, 16, 3)


def test_file_over_the_byte_limit_is_too_large_and_never_sent(pool: DecodePool) -> None:
    run = pool.decode([b"\xff\xd8\xff" + b"\x00" * MAX_BYTES, encode(picture())], AS_IS)
    assert [error and error.code for error in run.errors] == ["too_large", None]


def test_children_import_no_torch_and_run_niced(pool: DecodePool) -> None:
    pool.decode([encode(picture())], AS_IS)
    for pid in pool.child_pids():
        assert os.getpriority(os.PRIO_PROCESS, pid) == 10
        maps = Path(f"/proc/{pid}/maps").read_text()
        assert "torch" not in maps
    loaded = subprocess.run(
        [sys.executable, "-c", "import worker.pipeline.decode_child, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert not {"torch", "numpy", "pydantic", "flask"} & set(loaded)


def test_children_get_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    with DecodePool.start(1, MAX_BYTES, LIMITS) as pool:
        environment = Path(f"/proc/{pool.child_pids()[0]}/environ").read_bytes()
    assert b"canary-4711" not in environment


def test_image_that_kills_its_child_harms_no_other() -> None:
    with fragile_pool() as pool:
        first = pool.child_pids()
        files = [encode(picture(seed)) for seed in range(6)]
        files[3] = b"KILL"
        run = pool.decode(files, AS_IS)
        assert [error and error.code for error in run.errors] == [None] * 3 + [
            "undecodable",
            None,
            None,
        ]
        assert run.errors[3] is not None
        assert "ends the process" in run.errors[3].detail
        for index in (0, 1, 2, 4, 5):
            assert (run.pixels[index] == np.asarray(picture(index))).all()
        assert pool.child_pids() != first
        assert pool.decode([encode(picture())], AS_IS).errors == [None]


def test_image_whose_child_is_killed_once_while_it_is_alone_is_not_blamed(tmp_path: Path) -> None:
    deaths = str(tmp_path / "deaths").encode()
    # With its neighbours, then alone, as a kill from outside would meet it.
    unlucky = b"TWICE " + deaths + b"\n" + encode(picture(), "PNG")
    with fragile_pool() as pool:
        run = pool.decode([encode(picture(), "PNG"), unlucky], AS_IS)
    assert run.errors == [None, None]
    assert len(list(tmp_path.iterdir())) == 2


def test_child_killed_from_outside_fails_no_image(pool: DecodePool) -> None:
    for pid in pool.child_pids():
        os.kill(pid, 9)
    runs = [pool.decode([encode(picture(seed))], AS_IS) for seed in range(4)]
    assert [run.errors for run in runs] == [[None]] * 4


def test_image_that_hangs_is_given_up_and_harms_no_other() -> None:
    with fragile_pool(item_seconds=0.5) as pool:
        files = [encode(picture(0)), b"HANG", encode(picture(2))]
        run = pool.decode(files, AS_IS)
        assert [error and error.code for error in run.errors] == [None, "decode_timeout", None]
        assert (run.pixels[2] == np.asarray(picture(2))).all()


def test_stopped_child_is_replaced() -> None:
    with DecodePool.start(1, MAX_BYTES, replace(LIMITS, item_seconds=0.5)) as pool:
        (pid,) = pool.child_pids()
        os.kill(pid, 19)
        # More than a socket holds, so that handing it over waits for the child.
        large = encode(picture(0, (550, 550)), "BMP")
        run = pool.decode([large, encode(picture(1))], AS_IS)
        assert run.errors == [None, None]
        assert ended(pid)


def test_close_ends_children_and_whoever_waits_on_them() -> None:
    pool = fragile_pool()
    pids = pool.child_pids()
    with ThreadPoolExecutor(2) as threads:
        hanging = [threads.submit(pool.decode, [b"HANG"], AS_IS) for _ in range(2)]
        deadline = time.monotonic() + 20
        while not any(future.running() for future in hanging) and time.monotonic() < deadline:
            os.sched_yield()
        pool.close()
        for future in hanging:
            with pytest.raises(UnavailableError):
                future.result(timeout=20)
    assert all(ended(pid) for pid in pids)
    assert pool.child_pids() == []
    with pytest.raises(UnavailableError):
        pool.decode([encode(picture())], AS_IS)


def test_child_that_cannot_start_is_told() -> None:
    with pytest.raises(UnavailableError, match="does not start"):
        DecodePool.start(1, MAX_BYTES, LIMITS, command=(sys.executable, "-c", "raise SystemExit"))


def test_program_that_is_not_there_is_told_and_leaves_no_descriptor() -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UnavailableError, match="does not start"):
        DecodePool.start(2, MAX_BYTES, LIMITS, command=("/no/such/program",))
    assert os.listdir("/proc/self/fd") == before


def test_children_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from worker.pipeline.decode import DecodePool; import signal\n"
            "from worker.pipeline.limits import DecodeLimits\n"
            "pool = DecodePool.start(2, 1000, DecodeLimits())\n"
            "print(*pool.child_pids(), flush=True)\n"
            "signal.pause()",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    for pid in pids:
        wait_until_ended(pid)


def test_nothing_named_is_left_in_shared_memory(pool: DecodePool) -> None:
    before = set(os.listdir("/dev/shm"))
    pool.decode([encode(picture())], AS_IS)
    assert set(os.listdir("/dev/shm")) == before
