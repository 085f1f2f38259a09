"""What stands in for a network: an answer made of the pixels, by a rule the oracle knows.

Fetch, decode, ranking and recording stay the real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from app.models.spec import PreprocessSpec
from app.points import reach
from tests.faults.acts import note
from tests.faults.images import colour_of
from tests.faults.plan import Plan
from worker.pipeline.decode import DecodedRun, DecodePool
from worker.recognisers.load import Recogniser

_FACTOR = 0x9E3779


def fake_forward(plan: Plan) -> None:
    """Replace the forward pass, and nothing else, in this process."""
    poison = int(plan.poison, 16) if plan.poison else None

    def forward(self: Recogniser, pixels: Tensor) -> Tensor:
        reach("forward")
        if plan.forward_seconds:
            time.sleep(plan.forward_seconds)
        one = pixels[:, :1, :1]
        first = one[:, 0, 0].to(torch.int64)
        colours = first[:, 0] << 16 | first[:, 1] << 8 | first[:, 2]
        if poison is not None and bool((colours == poison).any()):
            note(plan, "poison", "exit")
            os._exit(9)
        logits = logits_of(colours, len(self.spec.classes))
        # Every image is one colour: rows that got mixed have no answer at all.
        whole = (pixels == one).flatten(1).all(dim=1)
        logits[~whole] = float("nan")
        return logits

    Recogniser.forward = forward  # type: ignore[method-assign]


def logits_of(colours: Tensor, classes: int) -> Tensor:
    """Logits whose ranking names the six-bit digits of the mixed colours, first digit first."""
    digits = classes // 64
    mixed = colours * _FACTOR & 0xFFFFFF
    logits = torch.zeros(len(colours), classes)
    for digit in range(digits):
        index = (mixed >> (18 - 6 * digit) & 63) + 64 * digit
        logits.scatter_(1, index[:, None], float(2 * (digits - digit)))
    return logits


def fake_decode() -> None:
    """Take the pixels from the images' bytes in this process: for measuring the rest."""

    class NoChildren(DecodePool):
        def __init__(self, processes: int, max_bytes: int) -> None:
            self.processes, self.max_bytes = processes, max_bytes

        def __exit__(self, *_: object) -> None:
            self.close()

        def close(self) -> None:
            """There is nothing to end."""

        def child_pids(self) -> list[int]:
            return []

        def decode(self, images: Sequence[bytes], spec: PreprocessSpec) -> DecodedRun:
            colours = np.array([colour_of(data) for data in images], ">u4")
            rgb = colours.view(np.uint8).reshape(-1, 4)[:, 1:]
            pixels = np.broadcast_to(rgb[:, None, None], (len(images), *spec.output_shape))
            return DecodedRun(pixels, [None] * len(images), 0.0)

    def start(
        cls: type[DecodePool], /, processes: int, max_bytes: int, *_: object, **__: object
    ) -> DecodePool:
        return NoChildren(processes, max_bytes)

    DecodePool.start = classmethod(start)  # type: ignore[assignment,method-assign]
