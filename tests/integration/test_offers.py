"""What a round of the relay costs where a tenant has many open jobs."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text

from app.db.session import Database
from app.dispatch.offers import _OFFERS
from app.dispatch.turns import STEP
from app.queues.names import Queue
from tests.factories import make_tenant
from tests.jobs import add_planned_job

JOBS = 300


def test_each_job_looks_up_its_own_turn_and_no_other_though_the_tables_are_new(
    quiet: Database,
) -> None:
    owner = make_tenant(quiet)
    with quiet.tenant(owner) as session:
        for _ in range(JOBS):
            add_planned_job(session, owner, 10)
    with quiet.system() as session:
        # Statistics as they are until autovacuum has come by: none.
        for column in ("queue", "tenant_id", "job_id"):
            session.execute(
                text("SELECT pg_clear_attribute_stats('public', 'turns', :column, false)"),
                {"column": column},
            )
        session.execute(
            text(
                "INSERT INTO turns (queue, tenant_id, job_id, since, deficit)"
                " SELECT 'inference', tenant_id, id, now(), 1000 FROM jobs WHERE tenant_id = :owner"
            ),
            {"owner": owner},
        )
        words = {
            "queue": Queue.INFERENCE.value,
            "plans": False,
            "wanted": 4,
            "head_chunks": 4,
            "step": STEP,
            "left_out": [],
        }
        plan = session.execute(
            text(f"EXPLAIN (ANALYZE, FORMAT JSON) {_OFFERS.text}"), words
        ).scalar_one()
    # One for each job, and one for the tenant itself.
    assert turns_read(plan[0]["Plan"]) == JOBS


def turns_read(node: dict[str, Any]) -> int:
    """Rows of ``turns`` that a plan went through, by PostgreSQL's own account."""
    here = 0
    if node.get("Relation Name") == "turns":
        seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        here = round(seen * node["Actual Loops"])
    return here + sum(map(turns_read, node.get("Plans", [])))
