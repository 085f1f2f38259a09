"""Any rank but 0, started by :mod:`worker.training.lead`: ``python -m worker.training.follow``.

It knows a network, a recipe and where to meet the others, and has neither images nor database
nor store. It ends with its leader: the kernel kills it the moment that the leader is gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from datetime import timedelta

import torch
from torch import distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from app.errors import InvalidInputError
from app.models.spec import ModelSpec
from app.training.recipe import TrainingRecipe
from worker.recognisers.preprocess import Normalise
from worker.recognisers.registry import build_module
from worker.training.augment import Augmenter
from worker.training.fit import train_one_epoch, weigh_classes
from worker.training.hand_out import receive_images, share_state
from worker.training.optim import build_optimizer
from worker.training.ranks import SeveralRanks
from worker.training.seed import seeded
from worker.training.state import begin_state
from worker.training.steps import choose_batch_size, put_on_device

#: Where all ranks meet: only ever on one machine.
HOST = "127.0.0.1"
#: Rank 0 may evaluate, or wait for a store, for long. A rank that dies is noticed at once.
_PATIENCE = timedelta(days=7)
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks meet, and as what this one comes."""

    port: int
    rank: int
    size: int
    device: str

    def open_store(self) -> TCPStore:
        """The store through which ranks find each other; rank 0 holds it, at any port for 0."""
        return TCPStore(
            HOST, self.port, self.size, is_master=self.rank == 0, wait_for_workers=False
        )

    def join(self, store: TCPStore) -> SeveralRanks:
        """Wait until all ranks have come: by NCCL on GPUs, by Gloo on the CPU.

        Raises:
            RuntimeError: one of them went away.
        """
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        on_gpu = torch.device(self.device).type == "cuda"
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            store=store,
            rank=self.rank,
            world_size=self.size,
            timeout=_PATIENCE,
        )
        return SeveralRanks(self.rank, self.size, self.device)


@dataclass(frozen=True, slots=True)
class Orders:
    """What a leader tells a rank on its standard input, as JSON."""

    meeting: Meeting
    spec: ModelSpec
    recipe: TrainingRecipe
    leader_pid: int
    torch_threads: int

    def as_json(self) -> str:
        """Read back by :meth:`from_json`."""
        return json.dumps(
            {
                "meeting": asdict(self.meeting),
                "spec": self.spec.as_dict(),
                "recipe": self.recipe.as_dict(),
                "leader_pid": self.leader_pid,
                "torch_threads": self.torch_threads,
            }
        )

    @classmethod
    def from_json(cls, text: str) -> Orders:
        """What :meth:`as_json` wrote."""
        body = json.loads(text)
        return cls(
            Meeting(**body["meeting"]),
            ModelSpec.from_dict(body["spec"]),
            TrainingRecipe.from_dict(body["recipe"]),
            body["leader_pid"],
            body["torch_threads"],
        )


def ready_key(rank: int) -> str:
    """What a rank writes into the store once it is about to join."""
    return f"ready/{rank}"


def follow(orders: Orders) -> None:
    """Learn with the others until rank 0 says that the training is over."""
    meeting, spec, recipe = orders.meeting, orders.spec, orders.recipe
    torch.set_num_threads(orders.torch_threads)
    if torch.device(meeting.device).type == "cuda":
        torch.cuda.set_device(meeting.device)
    store = meeting.open_store()
    store.set(ready_key(meeting.rank), "")
    ranks = meeting.join(store)
    images = receive_images(ranks)
    with seeded(recipe.seed, meeting.device) as order:
        module = put_on_device(build_module(spec), meeting.device)
        state = begin_state(
            spec,
            recipe,
            images,
            module=module,
            optimizer=build_optimizer(module, recipe),
            order=order,
            batch_size=choose_batch_size(recipe.train_batch_size, meeting.device),
            device=meeting.device,
            ranks=ranks,
        )
        share_state(state, ranks)
        weights = weigh_classes(spec, recipe, images, meeting.device)
        normalise = Normalise(spec.preprocess).to(meeting.device)
        augment = Augmenter(recipe.augment, spec.preprocess)
        while ranks.agree(False):
            train_one_epoch(
                state,
                normalise,
                augment,
                images,
                class_weights=weights,
                before_step=lambda _: None,
            )
            state.epoch += 1
            state.begin_epoch()
    distributed.destroy_process_group()


def main() -> None:
    """Tie this process to its leader, then follow the orders on standard input."""
    # A signal to the whole group, such as Ctrl-C, is for the leader, which ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    orders = Orders.from_json(sys.stdin.read())
    if ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) or (
        os.getppid() != orders.leader_pid
    ):
        sys.exit("the leader is gone")
    try:
        follow(orders)
    except InvalidInputError as error:
        # Rank 0 sees the same, and tells it.
        sys.exit(error.detail)


if __name__ == "__main__":
    main()
