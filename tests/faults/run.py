"""``make faults``: every family of faults against real parts, then the table.

``python -m tests.faults.run [--seed N] [--only NAME,NAME] [--quick]``. Exits with 1 where the
promise was not kept; the seed it prints repeats the run.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import traceback
from collections.abc import Callable, Sequence

from sqlalchemy import text

from app.clock import monotonic_seconds
from tests.faults import doors, jobs, kills, parts, stores  # noqa: F401  (enter their families)
from tests.faults.families import FAMILIES, Family
from tests.faults.leftovers import find_leftovers
from tests.faults.oracle import Verdict
from tests.faults.stage import Stage, open_stage
from tests.faults.trial import Trial
from tests.faults.verdict import Row, conclude

_HEAD = ("fault", "times", "items", "lost", "twice", "closings", "recovery s", "s", "pass")
_WIDTHS = (24, 6, 8, 5, 6, 9, 11, 7, 5)

Say = Callable[[str], None]


def run_families(
    families: Sequence[Family], seed: int, *, quick: bool, say: Say = print
) -> tuple[list[Row], str]:
    """Run the families one after the other on one stage; the table's rows and its last line."""
    began = monotonic_seconds()
    rows: list[Row] = []
    say(f"seed {seed}")
    with open_stage(seed) as stage:
        say(_line(_HEAD))
        for family in families:
            row = _run_family(stage, family, seed, quick=quick)
            rows.append(row)
            say(_line(_cells(row)))
            for breach in row.verdict.breaches:
                say(f"  BREACH {family.name}: {breach}")
            if not row.has_passed:
                say(f"  FAILED {row.complaint}".rstrip())
                say(f"  repeat: make faults SEED={seed} ONLY={family.name}")
        # What a broken promise left open may still write objects.
        if all(row.has_passed for row in rows):
            rows += _ask_for_leftovers(stage, say)
    return rows, _summary(rows, monotonic_seconds() - began)


def _run_family(stage: Stage, family: Family, seed: int, *, quick: bool) -> Row:
    row = Row(family.name)
    began = monotonic_seconds()
    trial = Trial(stage, family.name, seed, quick=quick)
    try:
        family.work(trial)
    except Exception as error:
        row.complaint = f"{type(error).__name__}: {error}"
        traceback.print_exc(file=sys.stderr)
    conclude(trial, row)
    row.seconds = monotonic_seconds() - began
    return row


def _ask_for_leftovers(stage: Stage, say: Say) -> list[Row]:
    """Nothing where objects and rows agree after a clean-up, or a row that has not passed."""
    stage.crew.close()
    stage.api.kill()
    with stage.db.system() as session:
        tenants = session.scalars(text("SELECT id FROM tenants")).all()
    found = find_leftovers(stage.db, stage.store, stage.settings.bucket, tenants)
    say(
        f"objects after a clean-up: {found.objects}; {found.cleaned} deleted, "
        f"{len(found.strays)} that no row names, {len(found.missing)} missing"
    )
    if found.is_clean:
        return []
    breaches = [f"no row names {key}" for key in found.strays]
    breaches += [f"a row names {key}, which is not there" for key in found.missing]
    for breach in breaches:
        say(f"  BREACH leftovers: {breach}")
    return [Row("leftovers", verdict=Verdict(breaches=breaches))]


def _cells(row: Row) -> list[str]:
    verdict, recovery = row.verdict, row.recovery_seconds
    return [
        row.family,
        str(row.times),
        str(verdict.items),
        str(verdict.lost),
        str(verdict.twice),
        f"{verdict.closings}/{verdict.jobs}",
        "" if recovery is None else f"{recovery:.2f}",
        f"{row.seconds:.1f}",
        "yes" if row.has_passed else "NO",
    ]


def _line(cells: Sequence[str]) -> str:
    first, *others = zip(cells, _WIDTHS, strict=True)
    return first[0].ljust(first[1]) + "".join(cell.rjust(width) for cell, width in others)


def _summary(rows: Sequence[Row], seconds: float) -> str:
    verdicts = [row.verdict for row in rows]
    flushes = [row.recovery_seconds for row in rows if row.family == "flush_valkey"]
    flush = f"{flushes[0]:.2f}" if flushes and flushes[0] is not None else "none"
    return (
        f"faults families={len(rows)} injected={sum(row.times for row in rows)} "
        f"items={sum(verdict.items for verdict in verdicts)} "
        f"lost={sum(verdict.lost for verdict in verdicts)} "
        f"twice={sum(verdict.twice for verdict in verdicts)} "
        f"closed_wrong={sum(verdict.closed_wrong for verdict in verdicts)} "
        f"flush_recovery_s={flush} seconds={seconds:.0f}"
    )


def choose(only: str, *, quick: bool) -> list[Family]:
    """The families named, or all of the run. Raises ValueError where one is unknown."""
    if not only:
        return [family for family in FAMILIES.values() if family.quick or not quick]
    names = list(dict.fromkeys(name.strip() for name in only.split(",")))
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        known = ", ".join(FAMILIES)
        raise ValueError(f"no such family: {', '.join(unknown)}; there are {known}")
    return [FAMILIES[name] for name in names]


def main() -> int:
    """Run, print, and say by the exit code whether the promise was kept."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", default="", help="families, separated by commas")
    parser.add_argument("--quick", action="store_true", help="the most important ones, small")
    arguments = parser.parse_args()
    seed = secrets.randbelow(10**6) if arguments.seed is None else arguments.seed
    try:
        families = choose(arguments.only, quick=arguments.quick)
    except ValueError as error:
        parser.error(str(error))
    rows, summary = run_families(families, seed, quick=arguments.quick, say=_say)
    _say(summary)
    return 0 if all(row.has_passed for row in rows) else 1


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201  a table for whoever asked for it


if __name__ == "__main__":
    sys.exit(main())
