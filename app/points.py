"""Named points on the way of a chunk, where a test makes a fault happen.

Inert: :func:`reach` does nothing until a test has armed the process. Stdlib only, so that the
pipeline may name its points too.
"""

from __future__ import annotations

from collections.abc import Callable

#: Every point, in the order in which a chunk passes them. A name stands here once and in one
#: place of the code.
POINTS = (
    "after_pop",  # a bell came out of Redis, nothing is claimed yet
    "after_claim",  # the lease is committed, no work has begun
    "fetched",  # the bytes of an item, or a run of them, have come
    "decoded",  # a run of items is pixels
    "inferred",  # an ImageBatch went through the network
    "before_commit",  # of a recording: everything is written, nothing is visible
    "inside_commit",  # of a recording: the COMMIT goes out next
    "after_commit",  # of a recording: visible, and the worker does not know yet
    "before_ack",  # the door is done, the bell is not acknowledged
    "heartbeat",  # the thread is about to extend the leases
    "narrow",  # a chunk is cut in two, not committed
    "close",  # a job is about to be closed, not committed
    "checkpoint_begun",  # a training's checkpoint is about to be stored
    "checkpoint_stored",  # it is stored, the chunk does not point to it yet
    "webhook_posted",  # a receiver has answered, nothing is recorded yet
)

_act: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """Say that this process is at the point now."""
    if _act is not None:
        _act(point)


def arm(act: Callable[[str], None] | None) -> None:
    """Let ``act`` run at every point from now on; None disarms. For tests alone."""
    global _act  # noqa: PLW0603  (one per process, as the process is what dies)
    _act = act
