"""Webhooks: every event reaches its receivers at least once, whatever dies on the way."""

from __future__ import annotations

from sqlalchemy import func, select, update

from app.db.session import Database
from app.dispatch.cleanup_rows import clean_rows
from app.dispatch.fan_out import fan_out
from app.dispatch.gauges import DispatcherGauges
from app.jobs.cancel import cancel_job
from app.jobs.events import Event
from app.jobs.states import EventState
from app.settings import Settings
from app.stack.processes import free_port
from app.webhooks.claim import MOST_TRIES
from app.webhooks.deliver import back_off_seconds, deliver
from app.webhooks.deliveries import replay_delivery, send_test
from app.webhooks.guard import Guard
from app.webhooks.register import enable_webhook, get_webhook
from app.webhooks.states import DeliveryState, WebhookState
from app.webhooks.tables import WebhookDelivery
from tests.factories import make_tenant
from tests.jobs import add_planned_job, at_once
from tests.receiver import Receiver
from tests.service import wait_until
from tests.webhooks import (
    KEYRING,
    add_webhook,
    cancelled_job,
    claim_next,
    deliveries_of,
    delivering,
    fan_out_all,
    make_due,
    only_delivery,
    send_all,
)


def test_event_is_delivered_with_what_happened(
    quiet: Database, local: Settings, receiver: Receiver
) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    job_id = cancelled_job(quiet, owner)
    with delivering(local, quiet):
        wait_until(lambda: receiver.received, "the receiver is told")
        delivery = wait_until(
            lambda: next(
                (each for each in deliveries_of(quiet, webhook) if each.delivered_at), None
            ),
            "the delivery is recorded",
        )
    (received,) = receiver.received
    assert received.path == "/hook"
    assert received.webhook_id == delivery.id
    assert received.headers["content-type"] == "application/json"
    assert received.headers["webhook-timestamp"].isdigit()
    assert received.body["type"] == "job.cancelled"
    data = received.body["data"]
    assert (data["job_id"], data["event"], data["state"]) == (job_id, 2, "cancelled")
    assert data["counts"]["cancelled"] == 3
    assert (delivery.state, delivery.attempt, delivery.last_status) == (
        DeliveryState.DELIVERED,
        1,
        200,
    )


def test_each_webhook_gets_the_types_it_asked_for_and_no_other_tenants(
    quiet: Database, receiver: Receiver
) -> None:
    owner, stranger = make_tenant(quiet), make_tenant(quiet)
    both = add_webhook(quiet, owner, receiver.url, "job.cancelling", "job.cancelled")
    one = add_webhook(quiet, owner, receiver.url, "job.cancelling")
    foreign = add_webhook(quiet, stranger, receiver.url, "job.cancelling", "job.cancelled")
    cancelled_job(quiet, owner)
    assert send_all(quiet) == 3
    assert [each.event_type for each in deliveries_of(quiet, both)] == [
        "job.cancelling",
        "job.cancelled",
    ]
    assert [each.event_type for each in deliveries_of(quiet, one)] == ["job.cancelling"]
    assert deliveries_of(quiet, foreign) == []


def test_many_fan_outs_at_once_make_one_delivery_of_each_event(quiet: Database) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, "http://127.0.0.1:9/", "job.cancelling", "job.cancelled")
    jobs = [cancelled_job(quiet, owner) for _ in range(10)]
    counts: list[int] = []
    at_once(*[lambda: counts.append(fan_out(quiet))] * 4)
    assert sum(counts) == 20
    found = [(each.job_id, each.event_number) for each in deliveries_of(quiet, webhook)]
    assert sorted(found) == sorted((job, number) for job in jobs for number in (1, 2))
    with quiet.system() as session:
        states = set(session.scalars(select(Event.state).where(Event.job_id.in_(jobs))))
    assert states == {EventState.FANNED_OUT}


def test_event_that_commits_late_is_not_passed_over(quiet: Database) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, "http://127.0.0.1:9/", "job.cancelling")
    with quiet.tenant(owner) as session:
        late = add_planned_job(session, owner, 1)
    with quiet.tenant(owner) as session:
        cancel_job(session, owner, late)
        session.flush()
        early = cancelled_job(quiet, owner)
        assert fan_out(quiet) == 2
    assert fan_out(quiet) == 1
    assert {each.job_id for each in deliveries_of(quiet, webhook)} == {early, late}


def test_receiver_that_is_down_gets_it_when_it_is_up_again(quiet: Database) -> None:
    owner, port = make_tenant(quiet), free_port()
    webhook = add_webhook(quiet, owner, f"http://127.0.0.1:{port}/hook")
    cancelled_job(quiet, owner)
    assert send_all(quiet) == 1
    waiting = only_delivery(quiet, webhook)
    assert waiting.state == DeliveryState.PENDING
    assert waiting.last_error == "the receiver refused the connection"
    assert waiting.last_tried_at is not None
    assert 3 < (waiting.due_at - waiting.last_tried_at).total_seconds() < 8
    with Receiver(port) as receiver:
        receiver.status = 503
        make_due(quiet, webhook)
        assert send_all(quiet) == 1
        assert only_delivery(quiet, webhook).last_error == "the receiver answered 503"
        receiver.status = 204
        make_due(quiet, webhook)
        assert send_all(quiet) == 1
    delivered = only_delivery(quiet, webhook)
    assert (delivered.state, delivered.attempt) == (DeliveryState.DELIVERED, 3)
    assert delivered.last_error is None
    assert {each.webhook_id for each in receiver.received} == {delivered.id}


def test_receiver_that_never_answers_well_is_given_up_and_can_be_replayed(
    quiet: Database, receiver: Receiver
) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    cancelled_job(quiet, owner)
    receiver.status = 500
    for _ in range(MOST_TRIES):
        assert send_all(quiet) == 1
        make_due(quiet, webhook)
    assert send_all(quiet) == 0
    failed = only_delivery(quiet, webhook)
    assert (failed.state, failed.attempt) == (DeliveryState.FAILED, MOST_TRIES)
    receiver.status = 200
    with quiet.tenant(owner) as session:
        replayed = replay_delivery(session, owner, webhook, failed.id)
        assert (replayed.state, replayed.failed_at) == (DeliveryState.PENDING, None)
        # Once more changes nothing: it is under way.
        replay_delivery(session, owner, webhook, failed.id)
    assert send_all(quiet) == 1
    delivered = only_delivery(quiet, webhook)
    assert (delivered.id, delivered.state) == (failed.id, DeliveryState.DELIVERED)
    assert receiver.received[-1].webhook_id == receiver.received[0].webhook_id


def test_tries_fill_most_of_a_day_and_never_wait_longer_than_eight_hours() -> None:
    waits = [back_off_seconds(tries) for tries in range(1, MOST_TRIES)]
    assert 4 <= waits[0] <= 6
    assert max(waits) <= 8 * 3600 * 1.2
    assert 12 * 3600 < sum(waits) < 30 * 3600


def test_receiver_that_is_gone_disables_its_webhook(quiet: Database, receiver: Receiver) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url, "job.cancelling", "job.cancelled")
    cancelled_job(quiet, owner)
    receiver.status = 410
    assert send_all(quiet) == 2
    # The second was claimed after the first had disabled it: nothing was sent.
    assert len(receiver.received) == 1
    assert {each.state for each in deliveries_of(quiet, webhook)} == {DeliveryState.FAILED}
    with quiet.tenant(owner) as session:
        found = get_webhook(session, owner, webhook)
        assert (found.state, found.disabled_reason) == (WebhookState.DISABLED, "gone")
        assert found.disabled_at is not None
    cancelled_job(quiet, owner)
    assert send_all(quiet) == 0
    with quiet.tenant(owner) as session:
        again = enable_webhook(session, owner, webhook)
        assert (again.state, again.disabled_reason, again.disabled_at) == ("enabled", None, None)
    receiver.status = 200
    cancelled_job(quiet, owner)
    assert send_all(quiet) == 2


def test_redirect_is_not_followed(quiet: Database, receiver: Receiver) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    cancelled_job(quiet, owner)
    receiver.status, receiver.headers = 302, {"Location": receiver.url}
    send_all(quiet)
    assert len(receiver.received) == 1
    error = only_delivery(quiet, webhook).last_error
    assert error == "the receiver answered 302; redirects are not followed"


def test_host_that_is_allowed_no_more_is_not_asked(quiet: Database, receiver: Receiver) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    cancelled_job(quiet, owner)
    fan_out_all(quiet)
    claimed = claim_next(quiet)
    assert claimed is not None
    deliver(quiet, claimed, Guard(hosts=("example.com",)), KEYRING)
    assert receiver.received == []
    waiting = only_delivery(quiet, webhook)
    assert waiting.state == DeliveryState.PENDING
    assert "DARKROOM_WEBHOOK_HOSTS" in (waiting.last_error or "")


def test_gauges_tell_what_is_owed(quiet: Database, settings: Settings, receiver: Receiver) -> None:
    owner = make_tenant(quiet)
    add_webhook(quiet, owner, receiver.url)
    cancelled_job(quiet, owner)

    def read(name: str) -> float | None:
        return DispatcherGauges(settings, quiet).registry.get_sample_value(f"darkroom_{name}")

    assert (read("events_pending"), read("webhooks_undelivered")) == (2, 0)
    fan_out(quiet)
    assert (read("events_pending"), read("webhooks_undelivered")) == (0, 1)
    assert (read("webhooks_oldest_seconds") or 0) > 0
    send_all(quiet)
    assert (read("webhooks_undelivered"), read("webhooks_oldest_seconds")) == (0, 0)


def test_old_events_and_deliveries_are_cleaned_up_and_what_is_owed_stays(
    quiet: Database, receiver: Receiver
) -> None:
    owner = make_tenant(quiet)
    webhook = add_webhook(quiet, owner, receiver.url)
    told, untold = cancelled_job(quiet, owner), ""
    send_all(quiet)
    owed = add_webhook(quiet, owner, "http://127.0.0.1:9/")
    with quiet.tenant(owner) as session:
        send_test(session, owner, owed)
    untold = cancelled_job(quiet, owner)
    assert clean_rows(quiet, event_days=1) == 0
    with quiet.system() as session:
        for table in (Event, WebhookDelivery):
            session.execute(
                update(table).values(created_at=func.now() - func.make_interval(0, 0, 0, 2))
            )
    cleaned: list[int] = []
    at_once(*[lambda: cleaned.append(clean_rows(quiet, event_days=1))] * 3)
    assert sum(cleaned) == 3
    with quiet.system() as session:
        left = set(session.scalars(select(Event.job_id)))
    assert told not in left
    assert untold in left
    assert deliveries_of(quiet, webhook) == []
    assert len(deliveries_of(quiet, owed)) == 1
