"""Archives that somebody made to harm, each with what becomes of it.

``CASES`` are made on the spot; ``python -m tests.security.hostile_archives FOLDER`` writes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

# Each adds its cases to the list, in this order.
from tests.security import (  # isort: skip
    archives_of_names,  # noqa: F401
    archives_of_bombs,  # noqa: F401
    archives_of_lies,  # noqa: F401
    archives_of_records,  # noqa: F401
)
from tests.security.archive_cases import CASES

__all__ = ["CASES", "main"]


def main(folder: Path) -> None:
    """Write every case to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in CASES:
        (folder / case.name).write_bytes(case.make())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
