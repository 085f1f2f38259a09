"""The processes that train one network together, each on a device of its own: its ranks.

Rank 0 is the process that was asked for the training. It alone has the images, evaluates, keeps
checkpoints and decides; the others compute gradients of what it hands out. All change their
weights by the same sum, so they stay equal.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed, nn


class Ranks:
    """One process alone: whatever is asked of the others is its own."""

    rank = 0
    size = 1

    def agree(self, word: bool) -> bool:
        """What rank 0 says; each rank must ask."""
        return word

    def seed_step(self, augmenting: torch.Generator, seed: int, step: int) -> None:
        """Let each rank draw from generators of its own, which the step alone decides."""

    def share(self, tensor: Tensor) -> None:
        """Put what rank 0 has into each rank's tensor of the same shape."""

    def add_up(
        self,
        module: nn.Module,  # noqa: ARG002
        weight: Tensor | None,  # noqa: ARG002
        sums: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, Tensor] | None:
        """Make gradients and sums those of all ranks together.

        ``weight`` is what a rank's images count beside those of the others; None, as ``sums``,
        where it has none to learn from. Returns None where nobody has.
        """
        return sums


#: Of a training on one device.
ALONE = Ranks()


class SeveralRanks(Ranks):
    """This process among others that :mod:`torch.distributed` has brought together."""

    def __init__(self, rank: int, size: int, device: str) -> None:
        self.rank = rank
        self.size = size
        self.device = device

    def agree(self, word: bool) -> bool:
        """See :meth:`Ranks.agree`."""
        told = torch.tensor([word], dtype=torch.uint8)
        distributed.broadcast(told, 0)
        return bool(told)

    def seed_step(self, augmenting: torch.Generator, seed: int, step: int) -> None:
        """See :meth:`Ranks.seed_step`.

        So a checkpoint need not hold the generators of all ranks.
        """
        drawn = ((seed * 1_000_003 + step) * 1024 + self.rank) % 2**63
        augmenting.manual_seed(drawn)
        torch.manual_seed(drawn)

    def share(self, tensor: Tensor) -> None:
        """See :meth:`Ranks.share`."""
        # What lies in another order, as weights of convolutions on a GPU, is sent as a copy.
        sent = tensor.contiguous()
        distributed.broadcast(sent, 0)
        if sent is not tensor:
            tensor.copy_(sent)

    def share_bytes(self, content: bytes | None = None) -> bytes:
        """What rank 0 gives, on each rank."""
        length = torch.tensor([len(content or b"")])
        self.share(length)
        body = torch.empty(int(length), dtype=torch.uint8)
        if content:
            body = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        if len(body):
            self.share(body)
        return body.numpy().tobytes()

    def add_up(
        self, module: nn.Module, weight: Tensor | None, sums: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor] | None:
        """See :meth:`Ranks.add_up`.

        After the backward pass and in one message, rather than in DistributedDataParallel's hooks:
        layers may rest in some epochs, a rank may have no image of a short batch, and one may
        compute its batch in more parts than the others. The message is a copy of all gradients.
        """
        parameters = list(module.parameters())
        # The largest share of a batch is rank 0's: if it cannot learn, nobody can.
        learnt = torch.tensor(
            [sums is not None and each.grad is not None for each in parameters], dtype=torch.uint8
        )
        distributed.broadcast(learnt, 0)
        chosen = [each for each, has in zip(parameters, learnt.tolist(), strict=True) if has]
        if not chosen:
            return None
        message = self._message(chosen, weight, sums)
        distributed.all_reduce(message)
        *gradients, numbers = torch.split(message, [each.numel() for each in chosen] + [3])
        for parameter, gradient in zip(chosen, gradients, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(gradient.view(parameter.shape)).div_(numbers[0])
        return numbers[1], numbers[2].to(torch.int64)

    def _message(
        self,
        parameters: Sequence[nn.Parameter],
        weight: Tensor | None,
        sums: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Gradients times weight, the weight, the loss and the right answers, float32 [n]."""
        if sums is None or weight is None:
            count = sum(each.numel() for each in parameters) + 3
            return torch.zeros(count, device=self.device)
        gradients = [
            torch.zeros_like(each).flatten() if each.grad is None else each.grad.flatten()
            for each in parameters
        ]
        message = torch.cat([*gradients, torch.ones(1, device=self.device)]) * weight
        return torch.cat([message, torch.stack([sums[0], sums[1].to(torch.float32)])])


def share_sizes(images: int, ranks: int) -> list[int]:
    """How many of a batch's images each rank gets, rank 0 the most; none gets a single one of more.

    A network that normalises over a batch could not learn from it.
    """
    sharing = max(1, min(ranks, images // 2))
    least, more = divmod(images, sharing)
    return [least + (rank < more) if rank < sharing else 0 for rank in range(ranks)]
