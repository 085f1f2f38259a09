"""What a decode child could do if an image took it over: next to nothing."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.unit.pictures import AS_IS, LIMITS, MAX_BYTES, encode, picture
from worker.pipeline.decode import DecodePool
from worker.pipeline.walls import probe

# A child that an image has taken over: it runs the image's bytes and tells what came of it.
OBEDIENT_CHILD = """
import os, re, socket, time
from app.errors import ItemError
from worker.pipeline import decode_child
decode_image = decode_child.decode_image
def obey(data, spec, limits):
    if not bytes(data).startswith(b"RUN "):
        return decode_image(data, spec, limits)
    try:
        exec(bytes(data)[4:].decode())
    except Exception as error:
        raise ItemError(f"{type(error).__name__} {error}") from None
    raise ItemError("done")
decode_child.decode_image = obey
decode_child.main()
"""
OBEDIENT = (sys.executable, "-c", OBEDIENT_CHILD)
SECRETS = {
    "DATABASE_URL": "postgresql://canary-1",
    "SYSTEM_DATABASE_URL": "postgresql://canary-2",
    "AWS_SECRET_ACCESS_KEY": "canary-3",
    "DARKROOM_KEY_PEPPER": "canary-4",
    "REDIS_URL": "redis://:canary-5@127.0.0.1",
    "DARKROOM_SEALING_KEYS": "canary-6",
}
#: The longest match of nothing: the processor stays inside one C function for ages.
ENDLESS = b"RUN re.match(r'(a+)+$', 'a' * 60 + 'b')"
#: A quarter of a second of the processor's time.
LONG = b"RUN end = time.process_time() + 0.25\nwhile time.process_time() < end: pass"
REFUSED = probe()

needs_namespaces = pytest.mark.skipif(
    "no_network" in REFUSED, reason=f"the kernel refuses: {REFUSED.get('no_network')}"
)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    with DecodePool.start(1, MAX_BYTES, LIMITS, command=OBEDIENT) as pool:
        yield pool


def told(pool: DecodePool, program: str) -> str:
    """What a taken child says of a program that it ran."""
    run = pool.decode([b"RUN " + program.encode(), encode(picture())], AS_IS)
    error, neighbour = run.errors
    assert neighbour is None
    assert error is not None
    return error.detail


def of_child(pool: DecodePool, name: str) -> str:
    return Path(f"/proc/{pool.child_pids()[0]}/{name}").read_text()


def test_child_has_no_secret_in_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    with DecodePool.start(1, MAX_BYTES, LIMITS) as pool:
        environment = of_child(pool, "environ")
    assert "canary" not in environment
    assert not any(name in environment for name in SECRETS)


def test_child_can_open_no_file_and_no_socket(pool: DecodePool) -> None:
    for program in (
        f"open({__file__!r})",
        "open('/proc/%d/environ' % os.getppid())",
        "socket.socket()",
        "os.pipe()",
    ):
        assert "Too many open files" in told(pool, program), program
    assert "ImportError" in told(pool, "import sqlite3") or "Too many" in told(
        pool, "import sqlite3"
    )


def test_child_holds_no_descriptor_but_its_own(pool: DecodePool) -> None:
    assert pool.decode([encode(picture())], AS_IS).errors == [None]
    held = Path(f"/proc/{pool.child_pids()[0]}/fd")
    targets = {int(link.name): os.readlink(link) for link in held.iterdir()}
    assert sorted(targets) == [0, 1, 2, 3, 4, 5]
    assert [targets[fd] for fd in (0, 1, 2)] == ["/dev/null"] * 3
    assert targets[3].startswith("socket:")
    assert "darkroom-pixels" in targets[4]
    assert "darkroom-pixels" in targets[5]


def test_child_starts_in_the_root_folder_with_no_privileges(pool: DecodePool) -> None:
    assert os.readlink(f"/proc/{pool.child_pids()[0]}/cwd") == "/"
    status = dict(line.split(":\t", 1) for line in of_child(pool, "status").splitlines())
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
    assert of_child(pool, "oom_score_adj").strip() == "1000"
    limits = of_child(pool, "limits")
    for name in ("Max file size", "Max core file size"):
        line = next(line for line in limits.splitlines() if line.startswith(name))
        assert line.split()[-3:-1] == ["0", "0"]


@needs_namespaces
def test_child_has_no_network() -> None:
    # Allowed descriptors again, so that it is the network that is not there.
    child = OBEDIENT_CHILD.replace(
        "decode_child.main()", "decode_child.forbid_files = lambda *_, **__: 0\ndecode_child.main()"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        DecodePool.start(1, MAX_BYTES, LIMITS, command=(sys.executable, "-c", child)) as pool,
    ):
        port = server.getsockname()[1]
        said = told(pool, f"socket.socket().connect(('127.0.0.1', {port}))")
        assert "Network is unreachable" in said
        assert os.readlink(f"/proc/{pool.child_pids()[0]}/ns/net") != os.readlink(
            "/proc/self/ns/net"
        )
        # Nor, as somebody else, another process's environment, whatever it may open.
        said = told(pool, "open('/proc/%d/environ' % os.getppid()).read()")
        assert "Permission" in said


def test_where_the_kernel_refuses_it_goes_on_without_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    child = (
        "from worker.pipeline import decode_child, walls\n"
        "def refuse(name, *_): raise OSError(1, f'{name}: Operation not permitted')\n"
        "walls._call = refuse\n"
        "decode_child.main()"
    )
    with (
        caplog.at_level(logging.WARNING),
        DecodePool.start(2, MAX_BYTES, LIMITS, command=(sys.executable, "-c", child)) as pool,
    ):
        assert pool.decode([encode(picture())], AS_IS).errors == [None]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no_network" in line
    assert "unshare: Operation not permitted" in line


def test_image_that_never_leaves_c_code_costs_its_processor_time_and_itself() -> None:
    limits = replace(LIMITS, cpu_seconds=0.5, item_seconds=60)
    with DecodePool.start(1, MAX_BYTES, limits, command=OBEDIENT) as pool:
        files = [encode(picture(0)), ENDLESS, encode(picture(2))]
        run = pool.decode(files, AS_IS)
        assert [error and error.code for error in run.errors] == [None, "decode_timeout", None]
        assert "seconds of the processor" in str(run.errors[1])
        for index in (0, 2):
            assert (run.pixels[index] == np.asarray(picture(index))).all()


def test_processor_time_is_limited_for_each_image_and_not_for_the_run() -> None:
    limits = replace(LIMITS, cpu_seconds=0.5)
    with DecodePool.start(1, MAX_BYTES, limits, command=OBEDIENT) as pool:
        pids = pool.child_pids()
        run = pool.decode([LONG] * 3, AS_IS)
        assert [error and error.detail for error in run.errors] == ["done"] * 3
        assert pool.child_pids() == pids


def test_image_that_needs_more_memory_than_allowed_is_too_large_and_harms_nothing() -> None:
    limits = replace(LIMITS, max_pixels=100_000_000, memory_bytes=96 * 1024 * 1024)
    wide = encode(Image.new("RGB", (6000, 6000)), "PNG", compress_level=1)
    with DecodePool.start(1, MAX_BYTES, limits) as pool:
        pids = pool.child_pids()
        run = pool.decode([encode(picture(0)), wide, encode(picture(2))], AS_IS)
        assert [error and error.code for error in run.errors] == [None, "too_large", None]
        assert "memory" in str(run.errors[1])
        assert pool.child_pids() == pids


def test_program_takes_no_more_memory_than_allowed(pool: DecodePool) -> None:
    assert "MemoryError" in told(pool, "bytearray(2 << 30)")


def test_command_tells_which_walls_the_kernel_allows(tmp_path: Path) -> None:
    answer = tmp_path / "walls.json"
    with answer.open("wb") as output:
        subprocess.run(
            [sys.executable, "-m", "worker.pipeline.walls"], stdout=output, check=True, timeout=60
        )
    assert json.loads(answer.read_text()) == {"refused": REFUSED}
