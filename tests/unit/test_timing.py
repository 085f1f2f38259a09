"""Measured time: shared among those who work at once, and named after the device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from worker.pipeline import device as device_module
from worker.pipeline.device import DeviceWatch, describe_device
from worker.pipeline.timing import SharedTime


def test_time_is_divided_among_those_who_work_at_once() -> None:
    now = [100.0]
    shared = SharedTime(lambda: now[0])
    first, second = shared.share(), shared.share()
    one = first.__enter__()
    now[0] += 4  # alone
    two = second.__enter__()
    now[0] += 6  # both
    first.__exit__(None, None, None)
    now[0] += 1  # the other alone
    second.__exit__(None, None, None)
    now[0] += 50  # nobody
    with shared.share() as three:
        now[0] += 2
    assert (one.seconds, two.seconds, three.seconds) == (7, 4, 2)


def test_failed_work_is_charged_and_leaves_nothing_behind() -> None:
    now = [0.0]
    shared = SharedTime(lambda: now[0])
    work = shared.share()
    failed = work.__enter__()
    now[0] += 3
    assert not work.__exit__(ValueError, ValueError("no"), None)
    with shared.share() as after:
        now[0] += 5
    assert (failed.seconds, after.seconds) == (3, 5)


def test_watch_of_a_processor_sums_its_blocks() -> None:
    watch = DeviceWatch(torch.device("cpu"))
    assert watch.seconds == 0
    with watch:
        pass
    before = watch.seconds
    with watch:
        torch.ones(64, 64) @ torch.ones(64, 64)
    assert watch.seconds > before > 0


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("processor\t: 0\nmodel name\t: Some  CPU @ 2.50GHz\n", "Some CPU @ 2.50GHz"),
        ("processor\t: 0\nBogoMIPS\t: 48.00\n", "aarch64"),
        (None, "aarch64"),
    ],
    ids=["named", "unnamed", "no file"],
)
def test_processor_is_called_by_its_name_and_threads(
    content: str | None, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(device_module, "_CPU_INFO", file)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    assert describe_device("cpu") == f"{name}, 3 threads, float32"
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert describe_device("cpu") == f"{name}, 1 thread, float32"
