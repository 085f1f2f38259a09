"""Runs one function in a process of its own, with walls, and says what it took."""

from __future__ import annotations

import importlib
import multiprocessing
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

MIB = 1024 * 1024
#: What one hostile input may cost at most.
SECONDS = 10
MEGABYTES = 512
#: The wall behind the measure: address space counts what is only mapped, too.
_WALL_BYTES = 4096 * MIB


class Confined(NamedTuple):
    """What the function returned, its CPU time, and the peak of the whole process in MiB."""

    result: Any
    seconds: float
    peak_mib: float


def run_confined(function: Callable[..., Any], *args: Any) -> Confined:
    """Call a module's function in a fresh process, forked from a small one that lives on.

    CPU seconds are compared rather than seconds of the wall, as a test may share its machine.

    Raises:
        AssertionError: it died, ran out of time or took too much memory.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.security.intake"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_serve, args=(theirs, function.__module__, function.__qualname__, args), daemon=True
    )
    process.start()
    theirs.close()
    try:
        assert ours.poll(20 * SECONDS), f"{function.__name__}{args!r:.200} never ended"
        answer = ours.recv()
    except EOFError:
        process.join()
        raise AssertionError(f"the process died with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if isinstance(answer, str):
        raise AssertionError(answer)
    done = Confined(*answer)
    assert done.seconds < SECONDS, f"it took {done.seconds:.1f} s of CPU"
    assert done.peak_mib < MEGABYTES, f"it took {done.peak_mib:.0f} MiB"
    return done


def _serve(pipe: Connection, module: str, name: str, args: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_WALL_BYTES, _WALL_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (2 * SECONDS, 2 * SECONDS))
    function = getattr(importlib.import_module(module), name)
    start = time.process_time()
    try:
        result = function(*args)
    except BaseException as error:  # whatever comes out is the answer
        pipe.send(f"it escaped: {type(error).__name__}: {error}")
        return
    pipe.send((result, time.process_time() - start, _peak_mib()))


def _peak_mib() -> float:
    """The most memory this process had; unlike ru_maxrss a parent's share is not in it."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024
