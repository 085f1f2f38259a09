"""Webhooks of tests: added, fanned out and sent, to receivers on this machine."""

from __future__ import annotations

import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr
from sqlalchemy import func, select, update

from app.db.session import Database
from app.dispatch.fan_out import fan_out
from app.dispatch.notify import notifying
from app.dispatch.stops import end_stopped_jobs
from app.jobs.cancel import cancel_job
from app.keyring import Keyring
from app.settings import Settings
from app.webhooks.claim import Claimed, claim_delivery
from app.webhooks.deliver import deliver
from app.webhooks.guard import Guard, Target
from app.webhooks.hosts import split_url
from app.webhooks.register import create_webhook
from app.webhooks.tables import WebhookDelivery
from tests.jobs import add_planned_job
from tests.receiver import Receiver

#: Webhooks of tests may go to this machine.
LOCAL = ["127.0.0.1:*"]
#: What seals the secrets of these webhooks; settings that send to them need its key.
KEYRING = Keyring({"test": bytes(32)})
SEALING_KEYS = SecretStr(f"test:{b64encode(bytes(32)).decode()}")
LOCAL_GUARD = Guard(hosts=tuple(LOCAL))


def unchecked(url: str, *addresses: str) -> Target:
    """A url as if a guard had let it pass."""
    return Target(url, split_url(url), addresses)


def add_webhook(db: Database, tenant_id: str, url: str, *events: str) -> str:
    """The id of a new webhook for these events; for ``job.cancelled`` where none are named."""
    with db.tenant(tenant_id) as session:
        webhook, _ = create_webhook(
            session,
            KEYRING,
            tenant_id,
            target=LOCAL_GUARD.check(url, tenant_id),
            events=events or ("job.cancelled",),
        )
        return webhook.id


def cancelled_job(db: Database, tenant_id: str) -> str:
    """The id of a job that has been cancelled: two events."""
    with db.tenant(tenant_id) as session:
        job_id = add_planned_job(session, tenant_id, 3)
        cancel_job(session, tenant_id, job_id)
    end_stopped_jobs(db)
    return job_id


def deliveries_of(db: Database, webhook_id: str) -> list[WebhookDelivery]:
    """The webhook's deliveries as they are due."""
    with db.system() as session:
        return list(
            session.scalars(
                select(WebhookDelivery)
                .where(WebhookDelivery.webhook_id == webhook_id)
                .order_by(WebhookDelivery.due_at)
            )
        )


def only_delivery(db: Database, webhook_id: str) -> WebhookDelivery:
    """The one that there is."""
    (delivery,) = deliveries_of(db, webhook_id)
    return delivery


def make_due(db: Database, webhook_id: str) -> None:
    """Let the time until the next try, or the end of a lease, pass."""
    with db.system() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.webhook_id == webhook_id)
            .values(due_at=func.now() - func.make_interval(0, 0, 0, 0, 0, 0, 1))
        )


def claim_next(db: Database) -> Claimed | None:
    """The next delivery that is due, taken."""
    with db.system() as session:
        return claim_delivery(session)


def fan_out_all(db: Database) -> None:
    """Make the deliveries of every event so far."""
    while fan_out(db):
        continue


def send_all(db: Database) -> int:
    """Fan out and send until nothing is due; how many POSTs."""
    fan_out_all(db)
    count = 0
    while claimed := claim_next(db):
        deliver(db, claimed, LOCAL_GUARD, KEYRING)
        count += 1
    return count


@contextmanager
def delivering(settings: Settings, db: Database) -> Iterator[None]:
    """The dispatcher's own loop fans out and sends while the block runs."""
    with notifying(settings, db, threading.Event()):
        yield


@contextmanager
def hanging_receiver() -> Iterator[tuple[Receiver, threading.Semaphore]]:
    """A receiver that answers nobody until the block ends, and what each request releases."""
    released, asked = threading.Event(), threading.Semaphore(0)

    def hang(_handler: object) -> None:
        asked.release()
        released.wait(60)

    with Receiver() as receiver:
        receiver.answer = hang
        try:
            yield receiver, asked
        finally:
            receiver.answer = None
            released.set()
