"""A webhook that takes nothing for days is disabled, says why, and can be enabled again."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from structlog.testing import capture_logs

from app.db.session import Database
from app.ids import WEBHOOK, new_id
from app.settings import load_settings
from app.webhooks.claim import MOST_TRIES, Claimed, claim_delivery
from app.webhooks.deliver import record_outcome
from app.webhooks.deliveries import send_test
from app.webhooks.register import enable_webhook
from app.webhooks.send import Outcome
from app.webhooks.states import DeliveryState, WebhookState
from app.webhooks.tables import Webhook, WebhookDelivery
from tests.factories import make_tenant

FAILED = Outcome(status=500, error="answered 500")
TAKEN = Outcome(status=200)
DAYS = 5


class World:
    """A webhook and what its receiver answers."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.tenant_id = make_tenant(db)
        self.id = new_id(WEBHOOK)
        with db.tenant(self.tenant_id) as session:
            session.add(
                Webhook(
                    id=self.id,
                    tenant_id=self.tenant_id,
                    url="https://example.com",
                    events=["job.succeeded"],
                    state=WebhookState.ENABLED,
                )
            )

    def look(self) -> Webhook:
        with self.db.system() as session:
            return session.scalars(select(Webhook).where(Webhook.id == self.id)).one()

    def send(self, outcome: Outcome, *, tries: int = 1) -> str:
        """Send something, which is its try of that number; the delivery's state then."""
        with self.db.tenant(self.tenant_id) as session:
            delivery = send_test(session, self.tenant_id, self.id)
            delivery.tries = tries - 1
        return self.answer(self.claim(), outcome)

    def claim(self) -> Claimed:
        with self.db.system() as session:
            claimed = claim_delivery(session)
        assert claimed is not None
        return claimed

    def answer(self, claimed: Claimed, outcome: Outcome) -> str:
        with self.db.system() as session:
            assert record_outcome(session, claimed, outcome, failing_days=DAYS)
        with self.db.system() as session:
            return session.get_one(WebhookDelivery, claimed.id).state

    def let_days_pass(self, days: float) -> None:
        with self.db.system() as session:
            session.execute(
                update(Webhook)
                .where(Webhook.id == self.id)
                .values(first_failed_at=Webhook.first_failed_at - timedelta(days=days))
            )


@pytest.fixture
def world(quiet: Database) -> World:
    return World(quiet)


def test_setting_says_five_days_unless_told_otherwise() -> None:
    assert load_settings(DATABASE_URL="postgresql://x").webhook_failing_days == DAYS


def test_nothing_but_failures_for_days_disables_and_says_why(world: World) -> None:
    assert world.look().first_failed_at is None
    world.send(FAILED)
    since = world.look().first_failed_at
    assert since is not None
    world.let_days_pass(DAYS + 1)
    with capture_logs() as lines:
        assert world.send(FAILED, tries=MOST_TRIES) == DeliveryState.FAILED
    found = world.look()
    assert (found.state, found.disabled_reason) == (WebhookState.DISABLED, "failing")
    assert found.first_failed_at == since - timedelta(days=DAYS + 1)
    assert [
        (line["event"], line["webhook"], line["reason"])
        for line in lines
        if line["log_level"] == "warning"
    ] == [("webhook_disabled", world.id, "failing")]


def test_failures_of_less_than_the_days_disable_nothing(world: World) -> None:
    world.send(FAILED)
    world.let_days_pass(DAYS - 1)
    assert world.send(FAILED, tries=MOST_TRIES) == DeliveryState.FAILED
    assert world.look().state == WebhookState.ENABLED


def test_one_fault_after_quiet_days_is_tried_again_before_anything_is_disabled(
    world: World,
) -> None:
    world.send(FAILED, tries=MOST_TRIES)
    world.let_days_pass(100)
    assert world.send(FAILED) == DeliveryState.PENDING
    assert world.look().state == WebhookState.ENABLED


def test_success_begins_the_count_anew(world: World) -> None:
    world.send(FAILED)
    world.let_days_pass(DAYS + 1)
    assert world.send(TAKEN) == DeliveryState.DELIVERED
    assert world.look().first_failed_at is None
    assert world.send(FAILED, tries=MOST_TRIES) == DeliveryState.FAILED
    assert world.look().state == WebhookState.ENABLED


def test_enabled_again_it_has_its_days_anew(world: World) -> None:
    world.send(FAILED)
    world.let_days_pass(DAYS + 1)
    world.send(FAILED, tries=MOST_TRIES)
    with world.db.tenant(world.tenant_id) as session:
        found = enable_webhook(session, world.tenant_id, world.id)
        assert (found.state, found.disabled_reason) == (WebhookState.ENABLED, None)
        assert found.first_failed_at is None
    world.send(FAILED, tries=MOST_TRIES)
    assert world.look().state == WebhookState.ENABLED


def test_what_was_due_at_a_disabled_webhook_counts_as_no_failure_of_it(world: World) -> None:
    with world.db.tenant(world.tenant_id) as session:
        send_test(session, world.tenant_id, world.id)
    with world.db.system() as session:
        session.execute(
            update(Webhook)
            .where(Webhook.id == world.id)
            .values(state=WebhookState.DISABLED, disabled_at=func.now())
        )
    claimed = world.claim()
    assert not claimed.is_enabled
    refused = Outcome(error="the webhook is disabled")
    assert world.answer(claimed, refused) == DeliveryState.FAILED
    assert world.look().first_failed_at is None
