"""Damaged archives, lists and weights by the ten thousand, through the worker's own way with them.

As a command: ``python -m tests.fuzz.archives [--examples 50000] [--seed n] [--first 0]``. Inputs
are numbered; ``--seed``, ``--first`` and ``--examples 1`` make a single one again.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import signal
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, cast

from app.errors import DarkroomError
from app.jobs.manifest import read_manifest
from app.locations import Location
from app.storage.s3 import ObjectStore
from app.uploads.labels import Labels
from app.uploads.members import ArchiveLimits
from app.uploads.reader import Survey
from tests.fuzz import archive_files as files
from tests.security.intake import take
from worker.recognisers.header import check_header
from worker.recognisers.weights import open_weights

MIB = 1024 * 1024
ARCHIVES = ArchiveLimits(
    max_entries=1000, max_member_bytes=MIB, max_total_bytes=1024 * MIB, max_ratio=100
)
SECONDS = 10
MEGABYTES = 512
_NAMES = ("a/1.jpg", "b/2.jpg", "3.jpg")


class Fuzz:
    """One run of the fuzz: what it tried, and what got out."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        signal.signal(signal.SIGALRM, _too_long)
        self.outcomes: Counter[str] = Counter()
        self.escapes: list[str] = []
        self._zips, self._tars = files.zips(), files.tars()
        self._weights, self._tensors = _weights()
        #: What the process holds before the first input, torch with it.
        self.resting_mib = peak_mib()
        self._ways = (
            self._zip,
            self._tar,
            self._gzip,
            self._zip,
            self._tar,
            self._labels,
            self._manifest,
            self._manifest,
            self._header,
            self._header,
        )

    def try_one(self, number: int) -> None:
        """Put the input of this number through its reader."""
        random_ = random.Random(f"{self.seed}:{number}")
        way = self._ways[number % len(self._ways)]
        began = time.process_time()
        signal.alarm(12 * SECONDS)
        try:
            outcome = way(random_)
        except DarkroomError as error:
            outcome = error.code
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            outcome = "escape"
            self.escapes.append(f"input {number}: {error!r}"[:500])
        finally:
            signal.alarm(0)
        if time.process_time() - began > SECONDS:
            self.escapes.append(f"input {number}: took longer than it may")
        self.outcomes[outcome] += 1

    def _zip(self, random_: random.Random) -> str:
        return _take(files.damage_zip(random_, self._zips))

    def _tar(self, random_: random.Random) -> str:
        return _take(files.damage_tar(random_, self._tars))

    def _gzip(self, random_: random.Random) -> str:
        return _take(files.damage_gzip(random_, self._tars))

    def _labels(self, random_: random.Random) -> str:
        content = files.damage_text(random_, [files.LABELS])
        survey = Survey(label_files=[("b/labels.csv", content), ("labels.csv", content)])
        survey.base_hashes = array("q", [hash(name.rpartition("/")[2]) for name in _NAMES])
        labels = Labels(survey)
        for name in _NAMES:
            label, split = labels.of(name)
            assert label is None or (0 < len(label) <= 200)
            assert split in (None, "train", "validation", "test")
        json.dumps(labels.faults).encode()
        return "labels"

    def _manifest(self, random_: random.Random) -> str:
        content = files.damage_text(random_, files.MANIFESTS)
        key = random_.choice(["m.jsonl", "m.csv", "m"])
        store = cast(ObjectStore, _Store(content))
        last = 0
        for line in read_manifest(store, Location("lists", key), default_bucket="photos"):
            assert line.line > last, "lines are numbered in order, or a plan could not go on"
            assert (line.item is None) != (line.fault is None)
            last = line.line
            # What goes into the database must be what it takes.
            said = json.dumps([line.fault, line.item and line.item.metadata], allow_nan=False)
            assert len(said) < 64 * 1024
            if line.item is not None:
                line.item.custom_id.encode()
                assert "\x00" not in line.item.custom_id + line.item.source
        return "manifest"

    def _header(self, random_: random.Random) -> str:
        content = files.damage_weights(random_, self._weights, self._tensors)
        handle = os.memfd_create("weights")
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            path = Path(f"/proc/self/fd/{handle}")
            check_header(path)
            # What passes our own check, the library behind it must take.
            with open_weights(path) as weights:
                for name in weights.keys():  # noqa: SIM118  (no mapping)
                    weights.get_tensor(name)
        return "weights"


class _Store:
    """An object store of one object, whose bytes come in pieces."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def open(self, bucket: str, key: str) -> Any:
        return io.BytesIO(self._content)


def _take(content: bytes) -> str:
    outcome = take(io.BytesIO(content), ARCHIVES)
    return str(outcome.get("refused") or ("items_failed" if outcome["failed"] else "packed"))


def _weights() -> tuple[dict[str, object], bytes]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape, size in (
        ("a.weight", "F32", [4, 3], 48),
        ("a.bias", "F16", [4], 8),
        ("n", "I64", [], 8),
        ("none", "BF16", [0, 7], 0),
    ):
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [position, position + size],
        }
        position += size
    return header, bytes(position)


def peak_mib() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError("it never ended")


def main() -> int:
    """Try all inputs and end with one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    began = time.monotonic()
    fuzz = Fuzz(asked.seed)
    for number in range(asked.first, asked.first + asked.examples):
        fuzz.try_one(number)
    took = peak_mib() - fuzz.resting_mib
    if took > MEGABYTES:
        fuzz.escapes.append(f"an input took {took} MiB")
    for escape in fuzz.escapes:
        print(f"escape: {escape}", file=sys.stderr)  # noqa: T201
    outcomes = " ".join(f"{name}={count}" for name, count in sorted(fuzz.outcomes.items()))
    print(  # noqa: T201  (it speaks)
        f"fuzz_archives inputs={asked.examples} escapes={len(fuzz.escapes)} seed={asked.seed} "
        f"seconds={time.monotonic() - began:.0f} took_mib={took} {outcomes}"
    )
    return 1 if fuzz.escapes else 0


if __name__ == "__main__":
    sys.exit(main())
