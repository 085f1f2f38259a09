"""One seed for every generator that training draws from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: str) -> Iterator[torch.Generator]:
    """Seed torch inside the block and give a generator for the order of the images.

    The state of torch's own generators is put back afterwards. On a CPU, equal seeds and
    thread counts give equal weights to the bit.
    """
    kind = torch.device(device)
    cuda = [kind.index or 0] if kind.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)
