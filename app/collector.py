"""Python's garbage collector in a process that serves for weeks."""

from __future__ import annotations

import gc

#: New objects between two collections; Python's 700 are a few items' or requests' worth.
_COLLECT_AFTER = 20_000


def spare_the_collector() -> None:
    """Keep what the process begins with out of every garbage collection.

    Torch alone is hundreds of thousands of objects, and so is an API with its schemas. To look
    through them again and again takes a third of a worker's time with tiny images, and stops
    all requests of an API for a quarter of a second at a time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER)
