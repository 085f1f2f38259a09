"""Who sends a delivery: one at a time, none held up by another, none lost with its sender."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from app.db.session import Database
from app.settings import Settings
from app.webhooks.claim import Claimed
from app.webhooks.deliver import record_outcome
from app.webhooks.deliveries import send_test
from app.webhooks.send import Outcome
from app.webhooks.states import DeliveryState
from tests.factories import make_tenant
from tests.jobs import at_once
from tests.receiver import Receiver
from tests.service import environment, wait_until
from tests.webhooks import (
    add_webhook,
    cancelled_job,
    claim_next,
    delivering,
    fan_out_all,
    hanging_receiver,
    make_due,
    only_delivery,
)


def send_tests(db: Database, tenant_id: str, webhook_id: str, count: int = 10) -> None:
    with db.tenant(tenant_id) as session:
        for _ in range(count):
            send_test(session, tenant_id, webhook_id)


def test_sender_whose_lease_has_ended_records_nothing(quiet: Database, receiver: Receiver) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    cancelled_job(quiet, owner)
    fan_out_all(quiet)
    frozen = claim_next(quiet)
    assert frozen is not None
    assert claim_next(quiet) is None
    make_due(quiet, webhook)
    second = claim_next(quiet)
    assert second is not None
    assert second.attempt == frozen.attempt + 1
    with quiet.system() as session:
        assert not record_outcome(session, frozen, Outcome(status=500, error="late"))
        assert record_outcome(session, second, Outcome(status=200))
        assert not record_outcome(session, frozen, Outcome(status=500, error="later"))
    assert only_delivery(quiet, webhook).state == DeliveryState.DELIVERED


def test_claims_at_once_never_take_the_same_delivery(quiet: Database) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, "http://127.0.0.1:9/")
    send_tests(quiet, owner, webhook, 8)
    taken = [
        each for each in at_once(*[lambda: claim_next(quiet)] * 8) if isinstance(each, Claimed)
    ]
    assert taken
    assert len({each.id for each in taken}) == len(taken)


def test_slow_receivers_of_one_tenant_do_not_hold_up_anothers(
    quiet: Database, local: Settings, receiver: Receiver
) -> None:
    slow, quick = make_tenant(quiet), make_tenant(quiet)
    add_webhook(quiet, quick, receiver.url)
    slots = local.model_copy(update={"webhook_slots": 4})
    with delivering(slots, quiet), hanging_receiver() as (stuck, asked):
        send_tests(quiet, slow, add_webhook(quiet, slow, stuck.url))
        assert asked.acquire(timeout=30)
        cancelled_job(quiet, quick)
        wait_until(lambda: receiver.received, "the other tenant is told")
        # A fourth of the slots is all that the slow one gets.
        assert len(stuck.received) == 1


def test_slow_receiver_of_a_tenant_does_not_hold_up_its_other_webhooks(
    quiet: Database, local: Settings, receiver: Receiver
) -> None:
    owner = make_tenant(quiet)
    add_webhook(quiet, owner, receiver.url)
    slots = local.model_copy(update={"webhook_slots": 8})
    with delivering(slots, quiet), hanging_receiver() as (stuck, asked):
        send_tests(quiet, owner, add_webhook(quiet, owner, stuck.url, "job.expired"))
        assert asked.acquire(timeout=30)
        cancelled_job(quiet, owner)
        wait_until(lambda: receiver.received, "the other webhook is told", seconds=10)
        assert len(stuck.received) == 1


def test_dispatcher_killed_after_the_post_sends_it_again_under_the_same_id(
    quiet: Database, local: Settings, receiver: Receiver
) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    cancelled_job(quiet, owner)
    program = (
        "import os, signal\n"
        "from app.points import arm\n"
        "arm(lambda at: os.kill(os.getpid(), signal.SIGKILL) if at == 'webhook_posted' else None)\n"
        "from app.dispatch.run import main\n"
        "main()\n"
    )
    urls = {
        name: getattr(quiet, door).url.render_as_string(hide_password=False)
        for name, door in (("database_url", "_engine"), ("system_database_url", "_system_engine"))
    }
    died = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(local, **urls),
        cwd=os.getcwd(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stdout
    left = only_delivery(quiet, webhook)
    assert (left.state, left.attempt, len(receiver.received)) == (DeliveryState.SENDING, 1, 1)
    with delivering(local, quiet):
        make_due(quiet, webhook)
        wait_until(lambda: only_delivery(quiet, webhook).delivered_at, "it is delivered")
    first, second = receiver.received
    assert first.webhook_id == second.webhook_id == left.id
    assert first.body == second.body
    assert only_delivery(quiet, webhook).attempt == 2
