"""Which delivery is claimed next, and what it costs to find it behind many others."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from app.db.session import Database
from app.ids import WEBHOOK, new_id
from app.webhooks.claim import DUE, claim_delivery
from app.webhooks.states import WebhookState
from app.webhooks.tables import Webhook
from tests.factories import make_tenant

_MANY = text(
    """
    INSERT INTO webhook_deliveries (id, tenant_id, webhook_id, event_type, payload, state,
                                    attempt, tries, due_at)
    SELECT :webhook || '-' || n, :tenant, :webhook, 'webhook.test', '{}', 'pending', 0, 0,
           now() - make_interval(secs => :oldest - n)
    FROM generate_series(1, :count) n
    """
)


def add_webhook(db: Database, tenant_id: str, count: int, *, oldest: float = 1e6) -> str:
    """A webhook that is owed so many deliveries; the first is due for ``oldest`` seconds."""
    webhook_id = new_id(WEBHOOK)
    with db.tenant(tenant_id) as session:
        session.add(
            Webhook(
                id=webhook_id,
                tenant_id=tenant_id,
                url="https://example.com",
                events=["job.succeeded"],
                state=WebhookState.ENABLED,
            )
        )
        session.flush()
        words = {"webhook": webhook_id, "tenant": tenant_id, "count": count, "oldest": oldest}
        session.execute(_MANY, words)
    return webhook_id


def rows_read(db: Database, busy: list[str]) -> int:
    """Deliveries that a claim looks at, by PostgreSQL's own account."""
    explained = text(f"EXPLAIN (ANALYZE, FORMAT JSON) {DUE.text}")
    with db.system() as session:
        session.execute(text("ANALYZE webhook_deliveries"))
        words = {"busy": busy, "busy_webhooks": []}
        nodes = [session.execute(explained, words).scalar_one()[0]["Plan"]]
    total = 0
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if node.get("Relation Name") == "webhook_deliveries":
            seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            total += int(seen * node["Actual Loops"])
    return total


def test_what_is_due_for_longest_goes_first_whoever_it_is_for(quiet: Database) -> None:
    tenant_id = make_tenant(quiet)
    older = add_webhook(quiet, tenant_id, 2, oldest=1000)
    newer = add_webhook(quiet, tenant_id, 1, oldest=999.5)
    claimed = []
    with quiet.system() as session:
        while found := claim_delivery(session):
            claimed.append(found.webhook_id)
    assert claimed == [older, newer, older]


def test_busy_tenants_and_webhooks_are_left_out(quiet: Database) -> None:
    tenants = [make_tenant(quiet) for _ in range(2)]
    first, second = (add_webhook(quiet, tenants[0], 1) for _ in range(2))
    other = add_webhook(quiet, tenants[1], 1, oldest=10)
    with quiet.system() as session:
        found = claim_delivery(session, busy_webhooks=[first, second])
        assert found is not None
        assert found.webhook_id == other
        assert claim_delivery(session, busy=[tenants[0]]) is None
        found = claim_delivery(session, busy=[tenants[1]], busy_webhooks=[first])
        assert found is not None
        assert found.webhook_id == second


def test_claims_at_once_take_different_deliveries_of_one_webhook(quiet: Database) -> None:
    add_webhook(quiet, make_tenant(quiet), 2)
    with quiet.system() as session, quiet.system() as another:
        taken = [claim_delivery(each) for each in (session, another, session)]
    assert taken[0] is not None
    assert taken[1] is not None
    assert taken[0].id != taken[1].id
    assert taken[2] is None


def test_webhook_whose_due_deliveries_are_all_being_claimed_hides_no_other(
    quiet: Database,
) -> None:
    tenant_id = make_tenant(quiet)
    add_webhook(quiet, tenant_id, 1)
    later = add_webhook(quiet, tenant_id, 1, oldest=10)
    with quiet.system() as session, quiet.system() as another:
        assert claim_delivery(session) is not None
        found = claim_delivery(another)
        assert found is not None
        assert found.webhook_id == later


@pytest.mark.parametrize("is_busy", [True, False])
def test_claim_looks_at_a_few_rows_however_many_are_due(quiet: Database, is_busy: bool) -> None:
    tenant_id = make_tenant(quiet)
    for _ in range(3):
        add_webhook(quiet, tenant_id, 5_000)
    assert rows_read(quiet, [tenant_id] if is_busy else []) <= 12
