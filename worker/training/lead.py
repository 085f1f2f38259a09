"""Starts the other ranks of a training, and ends them whatever happens to it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from app.errors import DarkroomError, SettingsError
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.training.follow import Meeting, Orders, ready_key
from worker.training.ranks import ALONE, Ranks

#: Time that the others have to import torch and to come.
_JOIN_SECONDS = 100.0
#: Time that they have to end by themselves after the last step, or to be seen dead.
_END_SECONDS = 5.0
_LOOK_SECONDS = 0.05
#: All the environment that a rank gets: no address and no credential.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "HOME", "TMPDIR")
_PREFIXES = ("CUDA_", "NVIDIA_", "NCCL_", "GLOO_", "OMP_", "MKL_", "TORCH_", "PYTORCH_")
_ROOT = Path(__file__).resolve().parents[2]


class RankDiedError(DarkroomError):
    """A process that took part in a training has ended before it was over; try again."""

    code = "rank_died"
    retryable = True


def choose_devices(asked: str, device: str) -> list[str]:
    """The devices of one training, rank by rank, of which the first is the worker's own.

    Args:
        asked: a number, or ``all``, which on a CPU is one.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        SettingsError: the machine has fewer.
    """
    kind = torch.device(device)
    if kind.type != "cuda":
        return [device] * (1 if asked == "all" else int(asked))
    there = torch.cuda.device_count()
    count = there if asked == "all" else int(asked)
    if count > there:
        raise SettingsError(
            f"a training is to use {count} devices, and this machine has {there}; lower "
            "DARKROOM_TRAIN_DEVICES, or set it to all"
        )
    own = kind.index or 0
    others = [index for index in range(there) if index != own]
    return [device, *(f"cuda:{index}" for index in others[: count - 1])]


@contextmanager
def lead_ranks(
    spec: ModelSpec,
    recipe: TrainingRecipe,
    devices: Sequence[str],
    *,
    on_death: Callable[[str], None],
) -> Iterator[Ranks]:
    """The ranks of a training, of which this process is the first; none outlives the block.

    Where another one dies on a CPU, the next thing asked of it raises. On GPUs nothing does
    while a kernel waits for the dead, so ``on_death`` is called from another thread and must
    end this process.

    Raises:
        RankDiedError: one did not come, or ended before its time.
    """
    if len(devices) == 1:
        yield ALONE
        return
    meeting = Meeting(0, 0, len(devices), devices[0])
    store = meeting.open_store()
    others: list[subprocess.Popen[str]] = []
    over = threading.Event()
    try:
        for rank, device in enumerate(devices[1:], start=1):
            place = replace(meeting, port=store.port, rank=rank, device=device)
            others.append(_start(place, spec, recipe))
        _await(others, store)
        ranks = meeting.join(store)
        if torch.device(devices[0]).type == "cuda":
            watch = threading.Thread(
                target=_watch, args=(others, over, on_death), name="ranks", daemon=True
            )
            watch.start()
        yield ranks
        over.set()
        _let_end(others)
    except RuntimeError as error:
        # What torch says of a connection that broke; the end of the process may come later.
        if (ended := _find_ended(others, _END_SECONDS)) is not None:
            raise RankDiedError(ended) from error
        raise
    finally:
        over.set()
        for other in others:
            other.kill()
            other.wait()
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _start(place: Meeting, spec: ModelSpec, recipe: TrainingRecipe) -> subprocess.Popen[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _ENVIRONMENT or name.startswith(_PREFIXES)
    }
    environment |= {"PYTHONPATH": str(_ROOT), "PYTHONSAFEPATH": "1"}
    threads = max(1, torch.get_num_threads() // place.size)
    # From this thread, which lives as long as the training: a rank ends with the one that made it.
    process = subprocess.Popen(
        [sys.executable, "-m", "worker.training.follow"],
        env=environment,
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(Orders(place, spec, recipe, os.getpid(), threads).as_json())
    except BrokenPipeError:
        # It has ended, which is seen where it is awaited.
        pass
    return process


def _await(others: Sequence[subprocess.Popen[str]], store: TCPStore) -> None:
    keys = [ready_key(rank) for rank in range(1, len(others) + 1)]
    until = time.monotonic() + _JOIN_SECONDS
    while not store.check(keys):
        if (ended := _find_ended(others)) is not None:
            raise RankDiedError(ended)
        if time.monotonic() >= until:
            raise RankDiedError(f"not all ranks of the training came within {_JOIN_SECONDS:.0f} s")
        time.sleep(_LOOK_SECONDS)


def _find_ended(others: Sequence[subprocess.Popen[str]], wait_seconds: float = 0.0) -> str | None:
    """Which rank has ended, and how, waiting a little for one to be."""
    until = time.monotonic() + wait_seconds
    while True:
        for rank, other in enumerate(others, start=1):
            if other.poll() is not None:
                return f"rank {rank} of the training ended with exit code {other.returncode}"
        if time.monotonic() >= until:
            return None
        time.sleep(_LOOK_SECONDS)


def _watch(
    others: Sequence[subprocess.Popen[str]],
    over: threading.Event,
    on_death: Callable[[str], None],
) -> None:
    while not over.wait(_LOOK_SECONDS):
        if (ended := _find_ended(others)) is not None and not over.is_set():
            on_death(ended)
            return


def _let_end(others: Sequence[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + _END_SECONDS
    for other in others:
        try:
            other.wait(max(until - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            return
