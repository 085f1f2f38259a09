"""One training on several devices: here, processes on the CPU that speak by Gloo.

Starting a process costs seconds, so three runs of two ranks show everything.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from app.errors import SettingsError
from app.training.recipe import TrainingRecipe
from tests.unit.pictures import assert_same, one_torch_thread, small_spec, stripes
from worker.training.checkpoint import restore_checkpoint, save_checkpoint
from worker.training.data import CachedImages
from worker.training.fit import EpochReport, Fitted, fit
from worker.training.lead import RankDiedError, choose_devices, lead_ranks
from worker.training.ranks import ALONE, Ranks, SeveralRanks, share_sizes
from worker.training.state import TrainingState

#: 43 images: three steps in an epoch, the last of two batches with a third of three images.
RECIPE = TrainingRecipe(
    epochs=3,
    train_batch_size=10,
    accumulate_batches=2,
    class_weights="balanced",
    clip_norm=0.5,
    ema_decay=0.9,
    learning_rate=0.05,
    seed=3,
)


@dataclass
class Run:
    """One training, by however many ranks."""

    reports: list[EpochReport] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    fitted: Fitted | None = None

    @property
    def weights(self) -> dict[str, Tensor]:
        assert self.fitted is not None
        return self.fitted.module.state_dict()

    def go(
        self,
        ranks: Ranks = ALONE,
        look: Callable[[TrainingState], None] = lambda _: None,
        **hooks: Any,
    ) -> Run:
        def before_step(state: TrainingState) -> None:
            look(state)
            self.steps.append(state.steps)

        self.fitted = fit(
            small_spec(),
            RECIPE,
            uneven(),
            stripes(12, seed=1),
            validation=stripes(9, seed=2),
            device="cpu",
            before_step=before_step,
            on_epoch=lambda report, _state: self.reports.append(report),
            ranks=ranks,
            **hooks,
        )
        return self

    def go_by_two(self, **hooks: Any) -> Run:
        with lead_ranks(small_spec(), RECIPE, ["cpu", "cpu"], on_death=pytest.fail) as ranks:
            return self.go(ranks, **hooks)


def uneven() -> CachedImages:
    """Images of three classes, of one of which there are more."""
    images = stripes(60)
    kept = torch.cat(
        [
            torch.arange(0, 30),
            torch.arange(30, 60)[torch.arange(30) % 3 == 0],
            *[torch.tensor([31, 32, 34])],
        ]
    )
    return CachedImages(images.pixels[kept], images.targets[kept], [])


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


@pytest.fixture(scope="module")
def by_two() -> Run:
    """The training by two ranks when nothing happens to it."""
    return Run().go_by_two()


def test_two_ranks_learn_what_one_learns(by_two: Run) -> None:
    alone = Run().go()
    assert by_two.steps == alone.steps == list(range(9))
    for name, tensor in alone.weights.items():
        assert torch.allclose(by_two.weights[name], tensor, rtol=0, atol=1e-5), name
    for one, two in zip(alone.reports, by_two.reports, strict=True):
        # What is told of the loss is a mean of weighted means, one of each share.
        assert two.train_loss == pytest.approx(one.train_loss, abs=5e-3)
        assert two.held_out_loss == pytest.approx(one.held_out_loss, abs=1e-5)
        assert (two.train_accuracy, two.steps) == (one.train_accuracy, one.steps)
    assert not children()


def test_death_of_a_rank_ends_all_and_the_next_attempt_goes_on_to_the_same_bits(
    by_two: Run, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"

    def look(state: TrainingState) -> None:
        if state.steps == 4:
            save_checkpoint(state, checkpoint)
        if state.steps == 5:
            (other,) = children()
            os.kill(other, signal.SIGKILL)

    killed = Run()
    with pytest.raises(RankDiedError, match="rank 1 of the training ended with exit code -9"):
        killed.go_by_two(look=look)
    assert killed.steps[-1] in (5, 6)
    assert not children()
    resumed = Run().go_by_two(on_begin=lambda state: restore_checkpoint(state, checkpoint))
    assert resumed.steps == list(range(4, 9))
    assert_same(resumed.weights, by_two.weights)
    assert not children()


def children() -> list[int]:
    """Processes that this one has started as ranks."""
    tasks = Path("/proc/self/task").glob("*/children")
    pids = [pid for task in tasks for pid in read(task).split()]
    return [int(pid) for pid in pids if "training.follow" in read(Path(f"/proc/{pid}/cmdline"))]


def read(path: Path) -> str:
    """What the kernel tells; nothing of a thread or process that has just ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_step_alone_decides_what_a_rank_draws() -> None:
    def draw(rank: int, step: int) -> tuple[float, float]:
        generator = torch.Generator()
        with torch.random.fork_rng(devices=[]):
            SeveralRanks(rank, 2, "cpu").seed_step(generator, seed=7, step=step)
            return float(torch.rand((), generator=generator)), float(torch.rand(()))

    assert draw(0, 5) == draw(0, 5)
    assert len({draw(rank, step) for rank in (0, 1) for step in (5, 6)}) == 4


@pytest.mark.parametrize(
    ("images", "ranks", "sizes"),
    [
        (10, 2, [5, 5]),
        (7, 3, [3, 2, 2]),
        (5, 4, [3, 2, 0, 0]),
        (3, 2, [3, 0]),
        (1, 2, [1, 0]),
    ],
)
def test_no_rank_gets_a_single_image_of_a_batch(images: int, ranks: int, sizes: list[int]) -> None:
    assert share_sizes(images, ranks) == sizes


def test_more_devices_than_there_are_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert choose_devices("all", "cuda") == ["cuda", "cuda:1", "cuda:2", "cuda:3"]
    assert choose_devices("2", "cuda:2") == ["cuda:2", "cuda:0"]
    assert choose_devices("1", "cuda") == ["cuda"]
    assert choose_devices("all", "cpu") == ["cpu"]
    with pytest.raises(SettingsError, match="8 devices, and this machine has 4"):
        choose_devices("8", "cuda")
