"""Which parameters of a network are its head, and how far each lies from the images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from app.models.architectures import Family, find_architecture

#: Made of parts that follow each other, each of which is a place on the way.
_CONTAINERS: tuple[type[nn.Module], ...] = (
    nn.Sequential,
    nn.ModuleList,
    nn.ModuleDict,
    nn.TransformerEncoder,
)
#: Containers of torchvision by name, as its import costs seconds, and one block in spite of
#: being a Sequential.
_ZOO_CONTAINERS = frozenset({"Encoder", "MaxVitBlock"})
_ZOO_BLOCKS = frozenset({"Conv2dNormActivation"})
_NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.LayerNorm,
)
#: Heads of GoogLeNet and Inception v3 that only training uses.
_AUXILIARY = frozenset({"aux1", "aux2", "AuxLogits"})


def head_parameters(module: nn.Module, arch: str) -> set[str]:
    """Names of the last classifier's parameters; of a decision tree, all there are.

    Raises:
        InvalidInputError: ``arch_unknown``.
    """
    names = [name for name, _ in module.named_parameters()]
    if find_architecture(arch).family == Family.BASELINE:
        return set(names)
    return {name for name in names if _owner(name) == _owner(names[-1])}


def class_parameters(module: nn.Module, arch: str) -> set[str]:
    """Names of all parameters whose shape follows the number of classes.

    The head's, and the last layer's of each auxiliary head.

    Raises:
        InvalidInputError: ``arch_unknown``.
    """
    found = head_parameters(module, arch)
    for auxiliary in _AUXILIARY:
        names = [n for n, _ in module.named_parameters() if n.partition(".")[0] == auxiliary]
        if names:
            found |= {name for name in names if _owner(name) == _owner(names[-1])}
    return found


def depth_groups(module: nn.Module, arch: str) -> list[list[str]]:
    """Names of all parameters, from the images to the head, block by block.

    A layer that normalises belongs to what it normalises, positions and tokens to the first
    block, auxiliary heads to the head, which is the last group.

    Raises:
        InvalidInputError: ``arch_unknown``.
    """
    head = head_parameters(module, arch)
    first: list[str] = []
    last: list[str] = []
    groups: list[list[str]] = []
    _walk(module, "", groups, first)
    kept: list[list[str]] = []
    for group in groups:
        rest: list[str] = []
        for name in group:
            is_last = name in head or name.partition(".")[0] in _AUXILIARY
            (last if is_last else rest).append(name)
        if not rest:
            continue
        if kept and all(isinstance(_layer(module, name), _NORMS) for name in rest):
            kept[-1] += rest
        else:
            kept.append(rest)
    first = [name for name in first if name not in head]
    if first:
        kept[:1] = [first + (kept[0] if kept else [])]
    return [*kept, last or sorted(head)]


def training_logits(module: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits [n, classes], and those of auxiliary heads where the network has any in training.

    Of several auxiliary heads it is the mean of their logits, which teaches all of them.
    """
    answer = module(images)
    if isinstance(answer, Tensor):
        return answer, None
    # A named tuple of torchvision: the logits first.
    logits, *auxiliary = answer
    heads = [one for one in auxiliary if one is not None]
    return logits, torch.stack(heads).mean(dim=0) if heads else None


def _walk(module: nn.Module, prefix: str, groups: list[list[str]], first: list[str]) -> None:
    """Append the blocks of a container in order; its own parameters go to ``first``."""
    first += [prefix + name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        if _is_container(child):
            _walk(child, f"{prefix}{name}.", groups, first)
        elif names := [f"{prefix}{name}.{part}" for part, _ in child.named_parameters()]:
            groups.append(names)


def _is_container(module: nn.Module) -> bool:
    kind = type(module).__name__
    if kind in _ZOO_BLOCKS:
        return False
    return isinstance(module, _CONTAINERS) or kind in _ZOO_CONTAINERS


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _layer(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(_owner(name))
