"""By which names files of records are known: CIFAR-10 and CIFAR-100 in binary form, and IDX."""

from __future__ import annotations

import re

#: Bytes of one image of CIFAR, without its labels.
CIFAR_BYTES = 3 * 32 * 32

CIFAR_10 = re.compile(r"(?P<train>data_batch_[1-9]\d?)\.bin|test_batch\.bin")
CIFAR_100 = re.compile(r"(?P<train>train)\.bin|test\.bin")
#: The files that name the classes: how many lines they have.
NAME_FILES = {"batches.meta.txt": 10, "fine_label_names.txt": 100}
IDX = re.compile(
    r"(?:(?P<train>train)|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(?:\.gz)?"
)
#: How all such names end: a quick look, for an archive of a million others.
RECORD_ENDS = (".bin", ".txt", "-ubyte", "-ubyte.gz")


def are_records(base: str, size: int) -> bool:
    """Whether a file holds records or names what they show, by its name without folders.

    Anything may be called ``train.bin``; there the size must be that of CIFAR-100's records too.
    """
    if CIFAR_100.fullmatch(base):
        return size > 0 and size % (2 + CIFAR_BYTES) == 0
    return base in NAME_FILES or bool(CIFAR_10.fullmatch(base) or IDX.fullmatch(base))
