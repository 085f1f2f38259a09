"""Games of jobs and chunks against their model, as one part of ``make fuzz``.

As a command: ``python -m tests.fuzz.games [--examples 2000] [--seed n]``.
"""

from __future__ import annotations

import argparse
import sys

from tests.model import play


def main() -> int:
    """Play, and end with one line of figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--seed", type=int)
    asked = parser.parse_args()
    words = [str(asked.examples)] + ([] if asked.seed is None else [str(asked.seed)])
    return play.main(words)


if __name__ == "__main__":
    sys.exit(main())
