"""What it costs to load weights that lie sealed: ``python -m tests.bench.sealed``.

The same weights are loaded from a plain file, with its digest checked, and from a sealed bundle
on the same disk, by turns and each in a process of its own, on the CPU. Memory is the most that
the process held beyond what it had before, without pages of files, which the kernel may drop.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path

from app.models.spec import ModelSpec
from app.sealing.bundle import Subject, new_data_key, seal

_MIB = 1024 * 1024


def make_files(folder: Path, spec: ModelSpec, data_key: bytes) -> Subject:
    """The same weights as ``plain`` and ``sealed``."""
    from worker.recognisers.registry import build_module
    from worker.recognisers.weights import save_weights

    save_weights(build_module(spec), folder / "plain")
    with (folder / "plain").open("rb") as plain, (folder / "sealed").open("wb") as sealed:
        subject = Subject("tn", "mdv", hashlib.file_digest(plain, "sha256").hexdigest())
        plain.seek(0)
        for piece in seal(plain, data_key, subject):
            sealed.write(piece)
    return subject


def load(kind: str, folder: Path, spec: ModelSpec, data_key: bytes, subject: Subject) -> None:
    """Load the weights as a worker does."""
    from worker.recognisers.load import load_recogniser
    from worker.tasks.files import memory_file, path_of
    from worker.tasks.sealed import unseal_into

    if kind == "plain":
        load_recogniser(spec, folder / "plain", "cpu", sha256=subject.sha256)
        return
    with memory_file() as file, (folder / "sealed").open("rb") as bundle:
        unseal_into(file, bundle, data_key, subject)
        load_recogniser(spec, path_of(file), "cpu")


def measure(
    kind: str, folder: Path, spec: ModelSpec, data_key: bytes, subject: Subject
) -> tuple[float, float, float]:
    """Seconds of a load, seconds of processor time, and the most MiB it held."""
    from worker.recognisers.registry import build_empty_module

    # Everything imported, and every lazy part of torch awake.
    build_empty_module(spec)
    before, most, done = _held_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, _held_bytes())

    thread = threading.Thread(target=watch)
    thread.start()
    began, began_cpu = time.perf_counter(), time.thread_time()
    load(kind, folder, spec, data_key, subject)
    seconds, cpu = time.perf_counter() - began, time.thread_time() - began_cpu
    done.set()
    thread.join()
    return seconds, cpu, (most - before) / _MIB


def _held_bytes() -> int:
    """Anonymous and shared memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    words = dict(line.split(":", 1) for line in lines)
    return sum(1024 * int(words[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def main() -> None:
    """Measure by turns and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet101")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    from worker.recognisers.registry import default_preprocess, imagenet_classes

    spec = ModelSpec(asked.arch, imagenet_classes(), default_preprocess(asked.arch))
    data_key = new_data_key()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subject = make_files(folder, spec, data_key)
        size = (folder / "plain").stat().st_size / _MIB
        found: dict[str, list[tuple[float, float, float]]] = {"plain": [], "sealed": []}
        for _ in range(asked.rounds):
            for kind, rounds in found.items():
                with context.Pool(1) as pool:
                    words = (kind, folder, spec, data_key, subject)
                    rounds.append(pool.apply(measure, words))
    for kind, rounds in found.items():
        seconds, cpu, mib = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(  # noqa: T201  a bench prints
            f"load {kind} arch={asked.arch} file_mib={size:.0f} rounds={asked.rounds} "
            f"median_s={seconds:.3f} cpu_s={cpu:.3f} peak_mib={mib:.0f}"
        )


if __name__ == "__main__":
    main()
