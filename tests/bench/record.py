"""How many chunks a second are recorded: ``python -m tests.bench.record``.

One connection records the chunks of one job, so the figure is the time of the one transaction
in which work becomes result, on a PostgreSQL of its own.
"""

from __future__ import annotations

import argparse
import time

from app.db.session import Database
from app.jobs.record import record_chunk
from app.stack.postgres import LocalPostgres
from tests.factories import make_tenant
from tests.jobs import claim, make_job, rows_of
from tests.local_parts import build_database, scratch_folder


def measure(db: Database, chunks: int, items: int) -> float:
    """Records a second of a job with so many chunks of so many items each."""
    tenant_id = make_tenant(db)
    _, ids = make_job(db, tenant_id, *[items] * chunks)
    leases = [claim(db, tenant_id, chunk) for chunk in ids]
    work = [(lease, rows_of(lease)) for lease in leases]
    began = time.perf_counter()
    for lease, rows in work:
        with db.tenant(tenant_id) as session:
            record_chunk(session, lease, rows)
    return chunks / (time.perf_counter() - began)


def main() -> None:
    """Measure several rounds and print the best and the median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chunks", type=int, default=300)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    with scratch_folder() as folder, LocalPostgres(folder, fast=True) as postgres:
        db = Database(*build_database(postgres))
        measure(db, 20, asked.items)
        rates = sorted(measure(db, asked.chunks, asked.items) for _ in range(asked.rounds))
        db.close()
    print(  # noqa: T201  a bench prints
        f"record chunks={asked.chunks} items={asked.items} rounds={asked.rounds} "
        f"median_per_s={rates[len(rates) // 2]:.0f} best_per_s={rates[-1]:.0f}"
    )


if __name__ == "__main__":
    main()
