"""What webhooks are sent is signed, by secrets that lie nowhere in clear."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
import standardwebhooks
from sqlalchemy import func, select, text, update

from app.audit.keys import AuditKey
from app.audit.tables import AuditEntry
from app.client import Darkroom, SignatureError, verify_webhook
from app.client.values import Webhook as ClientWebhook
from app.db.session import Database
from app.dispatch.cleanup_rows import clean_rows
from app.keyring import Keyring, key_id_of
from app.rotation import rotate
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.webhooks.claim import MOST_TRIES, claim_delivery
from app.webhooks.deliver import deliver
from app.webhooks.deliveries import replay_delivery, send_test
from app.webhooks.secrets import about
from app.webhooks.sign import signed_headers
from app.webhooks.states import DeliveryState
from app.webhooks.tables import Webhook, WebhookDelivery
from tests.api_client import Api, make_app, make_key
from tests.factories import PEPPER, make_tenant
from tests.local_parts import build_database
from tests.races import racing
from tests.receiver import Received, Receiver
from tests.webhooks import KEYRING, LOCAL, LOCAL_GUARD, SEALING_KEYS, make_due, only_delivery


class World:
    """A tenant, the API, and a receiver of its webhooks."""

    def __init__(self, app: Any, db: Database, settings: Settings, receiver: Receiver) -> None:
        self.db = db
        self.receiver = receiver
        self.tenant_id = make_tenant(db)
        self.api = Api(app, make_key(db, settings, self.tenant_id))
        self.client = Darkroom("http://here", self.api.key, http=httpx2.WSGITransport(app=app))

    def add(self) -> ClientWebhook:
        return self.client.webhooks.create(self.receiver.url)

    def row(self, webhook_id: str) -> Webhook:
        with self.db.system() as session:
            return session.scalars(select(Webhook).where(Webhook.id == webhook_id)).one()

    def change(self, webhook_id: str, **values: Any) -> None:
        with self.db.system() as session:
            session.execute(update(Webhook).where(Webhook.id == webhook_id).values(**values))

    def send(self, webhook_id: str, keyring: Keyring = KEYRING) -> Received:
        """What arrives of a test of the webhook."""
        with self.db.tenant(self.tenant_id) as session:
            send_test(session, self.tenant_id, webhook_id)
        return self.send_due(keyring)

    def send_due(self, keyring: Keyring = KEYRING) -> Received:
        with self.db.system() as session:
            claimed = claim_delivery(session)
        assert claimed is not None
        outcome = deliver(self.db, claimed, LOCAL_GUARD, keyring)
        assert outcome.is_success, outcome
        return self.receiver.received[-1]


@pytest.fixture(scope="module")
def db(postgres: Any) -> Iterator[Database]:
    """A database of this module alone: claims and rotations are of everything."""
    db = Database(*build_database(postgres, "signing"), pool_size=5)
    yield db
    db.close()


@pytest.fixture(scope="module")
def app(settings: Settings, db: Database, objects: ObjectStore) -> Any:
    urls = {
        name: getattr(db, engine).url.render_as_string(hide_password=False)
        for name, engine in (("database_url", "_engine"), ("system_database_url", "_system_engine"))
    }
    here = settings.model_copy(
        update={
            **{name: type(settings.database_url)(url) for name, url in urls.items()},
            "webhook_hosts": ",".join(LOCAL),
            "sealing_keys": SEALING_KEYS,
        }
    )
    return make_app(here, objects)


@pytest.fixture
def world(app: Any, db: Database, settings: Settings) -> Iterator[World]:
    with db.system() as session:
        session.execute(text("TRUNCATE webhooks CASCADE"))
    with Receiver() as receiver:
        yield World(app, db, settings, receiver)


def is_signed_by(secret: str | None, received: Received) -> bool:
    """Whether both our client and the specification's own library take it."""
    assert secret
    try:
        standardwebhooks.Webhook(secret).verify(received.raw, received.headers)
        theirs = True
    except standardwebhooks.WebhookVerificationError:
        theirs = False
    try:
        assert verify_webhook(received.headers, received.raw, secret) == received.body
        ours = True
    except SignatureError:
        ours = False
    assert ours == theirs
    return ours


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(SignatureError, match=words):
        yield


def test_delivery_is_signed_by_the_secret_that_was_shown(world: World) -> None:
    made, other = world.add(), world.add()
    assert made.secret is not None
    assert made.secret.startswith("whsec_")
    assert len(base64.b64decode(made.secret.removeprefix("whsec_"), validate=True)) == 32
    assert made.signed
    received = world.send(made.id)
    assert received.headers["webhook-signature"].startswith("v1,")
    assert is_signed_by(made.secret, received)
    assert not is_signed_by(other.secret, received)


def test_example_of_the_specification_is_signed_as_it_says() -> None:
    # https://github.com/standard-webhooks/standard-webhooks, its libraries' own test.
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    at = datetime.fromtimestamp(1614265330, UTC)
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}', [secret])
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert headers["webhook-timestamp"] == "1614265330"


def test_secret_is_shown_once_and_never_again(world: World) -> None:
    words = {"json": {"url": world.receiver.url}, "headers": {"Idempotency-Key": "one"}}
    first = world.api("POST", "/v1/webhooks", **words)
    again = world.api("POST", "/v1/webhooks", **words)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json == {**first.json, "secret": None}
    here = first.headers["Location"]
    turn = {"json": {"overlap_seconds": 60}, "headers": {"Idempotency-Key": "two"}}
    rotated = world.api("POST", f"{here}/secret/rotate", **turn)
    repeat = world.api("POST", f"{here}/secret/rotate", **turn)
    assert (rotated.status_code, repeat.status_code) == (200, 200)
    assert repeat.json == {**rotated.json, "secret": None}
    assert rotated.json["secret"] not in (None, first.json["secret"])
    for path in (here, "/v1/webhooks", f"{here}/deliveries"):
        shown = world.api("GET", path).text
        assert "whsec_" not in shown
        assert "sealed" not in shown


def test_secret_lies_sealed_and_in_no_other_row_does_it_open(world: World) -> None:
    made, other = world.add(), world.add()
    world.client.webhooks.rotate_secret(made.id)
    for each in (made, other):
        world.client.webhooks.test(each.id)
    kept = world.row(made.id)
    raw = base64.b64decode((made.secret or "").removeprefix("whsec_"))
    assert kept.sealed_previous_secret is not None
    assert KEYRING.open(kept.sealed_previous_secret, about(world.tenant_id, made.id)) == raw
    assert "whsec_" not in repr(made)
    with world.db.system() as session:
        for table in ("webhooks", "webhook_deliveries", "audit_entries", "idempotency_keys"):
            rows = session.scalars(text(f"SELECT t::text FROM {table} t")).all()
            assert not [row for row in rows if (made.secret or "")[6:] in row], table
            assert not [row for row in rows if raw.hex() in row], table
    # A token that was moved into another row opens nothing, and nothing goes out unsigned.
    world.change(other.id, sealed_secret=kept.sealed_previous_secret)
    with world.db.system() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.webhook_id == made.id)
            .values(due_at=func.now() + timedelta(days=1))
        )
        claimed = claim_delivery(session)
    assert claimed is not None
    assert claimed.webhook_id == other.id
    outcome = deliver(world.db, claimed, LOCAL_GUARD, KEYRING)
    assert outcome.error == "it cannot be signed: the webhook's secret does not open"
    assert world.receiver.received == []


def test_both_secrets_sign_until_the_overlap_is_over(world: World) -> None:
    made = world.add()
    rotated = world.client.webhooks.rotate_secret(made.id, overlap_seconds=3600)
    assert rotated.previous_secret_ends_at is not None
    received = world.send(made.id)
    signatures = received.headers["webhook-signature"].split(" ")
    assert len(signatures) == len(set(signatures)) == 2
    assert is_signed_by(made.secret, received)
    assert is_signed_by(rotated.secret, received)
    world.change(made.id, previous_secret_ends_at=func.now() - timedelta(seconds=1))
    received = world.send(made.id)
    assert is_signed_by(rotated.secret, received)
    assert not is_signed_by(made.secret, received)


def test_secret_whose_overlap_is_over_is_forgotten(world: World) -> None:
    ended, rotating = world.add(), world.add()
    for each in (ended, rotating):
        world.client.webhooks.rotate_secret(each.id, overlap_seconds=3600)
    world.change(ended.id, previous_secret_ends_at=func.now() - timedelta(seconds=1))
    clean_rows(world.db, event_days=1)
    assert world.row(ended.id).sealed_previous_secret is None
    assert world.row(ended.id).sealed_secret is not None
    assert world.row(rotating.id).sealed_previous_secret is not None


def test_at_most_two_secrets_are_alive_and_all_old_ones_can_be_ended_at_once(world: World) -> None:
    made = world.add()
    second = world.client.webhooks.rotate_secret(made.id)
    path = f"/v1/webhooks/{made.id}/secret/rotate"
    busy = world.api("POST", path)
    assert (busy.status_code, busy.json["code"]) == (409, "secret_rotating")
    assert is_signed_by(second.secret, world.send(made.id))
    third = world.client.webhooks.rotate_secret(made.id, overlap_seconds=0)
    assert third.previous_secret_ends_at is None
    received = world.send(made.id)
    assert is_signed_by(third.secret, received)
    assert not is_signed_by(second.secret, received)
    assert not is_signed_by(made.secret, received)
    for seconds in (-1, 30 * 24 * 3600 + 1):
        wrong = world.api("POST", path, json={"overlap_seconds": seconds})
        assert (wrong.status_code, wrong.json["code"]) == (422, "request_invalid")


def test_rotations_at_once_wait_for_each_other(world: World) -> None:
    made = world.add()
    with racing(world.db) as race:
        with world.db.tenant(world.tenant_id) as session:
            session.execute(select(Webhook.id).where(Webhook.id == made.id).with_for_update())
            path = f"/v1/webhooks/{made.id}/secret/rotate"
            second = race(lambda: world.api("POST", path))
            second.waits()
            session.execute(
                update(Webhook).values(previous_secret_ends_at=func.now() + timedelta(hours=1))
            )
        assert second.passes().json["code"] == "secret_rotating"


def test_webhook_from_before_there_were_secrets_says_so_and_gets_one_by_rotation(
    world: World,
) -> None:
    made = world.add()
    world.change(made.id, sealed_secret=None)
    assert not world.client.webhooks.get(made.id).signed
    assert "webhook-signature" not in world.send(made.id).headers
    rotated = world.client.webhooks.rotate_secret(made.id)
    assert (rotated.signed, rotated.previous_secret_ends_at) == (True, None)
    assert is_signed_by(rotated.secret, world.send(made.id))


def test_rotation_of_the_sealing_keys_seals_both_secrets_again(world: World) -> None:
    made = world.add()
    second = world.client.webhooks.rotate_secret(made.id)
    fresh = {"new": bytes([1]) * 32}
    both = Keyring({**fresh, "test": bytes(32)})
    done = {each.name: each for each in rotate(world.db, both, AuditKey.derive(PEPPER))}
    assert [done[name].resealed for name in ("webhooks", "webhooks, previous")] == [1, 1]
    kept = world.row(made.id)
    assert {key_id_of(kept.sealed_secret or ""), key_id_of(kept.sealed_previous_secret or "")} == {
        "new"
    }
    received = world.send(made.id, Keyring(fresh))
    assert is_signed_by(made.secret, received)
    assert is_signed_by(second.secret, received)


def test_replay_keeps_the_id_and_is_signed_anew(world: World) -> None:
    made = world.add()
    first = world.send(made.id)
    delivery = only_delivery(world.db, made.id)
    rotated = world.client.webhooks.rotate_secret(made.id, overlap_seconds=0)
    with world.db.tenant(world.tenant_id) as session:
        replay_delivery(session, world.tenant_id, made.id, delivery.id)
    second = world.send_due()
    assert first.webhook_id == second.webhook_id == delivery.id
    assert first.raw == second.raw
    assert int(second.headers["webhook-timestamp"]) >= int(first.headers["webhook-timestamp"])
    assert is_signed_by(rotated.secret, second)
    assert not is_signed_by(made.secret, second)


def test_log_shows_no_word_of_the_receivers(world: World) -> None:
    made = world.add()
    world.receiver.status = 500
    world.receiver.headers = {"X-Inner": "secret-of-an-inner-service"}
    world.client.webhooks.test(made.id)
    with world.db.system() as session:
        claimed = claim_delivery(session)
    assert claimed is not None
    deliver(world.db, claimed, LOCAL_GUARD, KEYRING)
    shown = world.api("GET", f"/v1/webhooks/{made.id}/deliveries").text
    assert "the receiver answered 500" in shown
    assert "inner-service" not in shown
    assert "webhook-signature" not in shown


def test_delivery_whose_senders_die_again_and_again_is_given_up(world: World) -> None:
    made = world.add()
    world.client.webhooks.test(made.id)
    for _ in range(MOST_TRIES):
        with world.db.system() as session:
            assert claim_delivery(session) is not None
        make_due(world.db, made.id)
    world.client.webhooks.test(made.id)
    with world.db.system() as session:
        claimed = claim_delivery(session)
    # The one behind it is not held up.
    assert claimed is not None
    assert claimed.tries == 1
    (given_up,) = world.client.webhooks.deliveries(made.id, state="failed")
    assert given_up.attempts == MOST_TRIES
    assert "died" in (given_up.last_error or "")
    with world.db.tenant(world.tenant_id) as session:
        replay_delivery(session, world.tenant_id, made.id, given_up.id)
    assert world.send_due().webhook_id == given_up.id
    assert only(world, given_up.id).state == DeliveryState.DELIVERED


def only(world: World, delivery_id: str) -> WebhookDelivery:
    with world.db.system() as session:
        return session.get_one(WebhookDelivery, delivery_id)


def test_rotation_is_audited_without_the_secret(world: World) -> None:
    made = world.add()
    rotated = world.client.webhooks.rotate_secret(made.id, overlap_seconds=60)
    with world.db.system() as session:
        entries = session.scalars(
            select(AuditEntry).where(AuditEntry.target == made.id).order_by(AuditEntry.id)
        ).all()
    assert [each.action for each in entries] == ["webhook.created", "webhook.secret_rotated"]
    assert entries[1].details == {"overlap_seconds": 60}
    assert (rotated.secret or "x") not in json.dumps([each.details for each in entries])


SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
BODY = b'{"type":"job.succeeded","timestamp":"2026-11-25T00:00:00Z","data":{}}'


def headers_of(at: datetime, body: bytes = BODY, secret: bytes = bytes(range(32))) -> Any:
    return signed_headers("dlv_1", at, body.decode(), [secret])


def test_receiver_takes_what_is_signed_whatever_the_case_of_its_headers() -> None:
    headers = headers_of(datetime.now(UTC))
    for each in (headers, {name.title(): value for name, value in headers.items()}):
        assert verify_webhook(each, BODY, SECRET)["type"] == "job.succeeded"


def test_receiver_refuses_what_was_changed_on_the_way() -> None:
    now = datetime.now(UTC)
    good = headers_of(now)
    later = str(int(now.timestamp()) + 1)
    with refused("no signature"):
        verify_webhook(good, BODY + b" ", SECRET)
    for name, value in (
        ("webhook-id", "dlv_2"),
        ("webhook-timestamp", later),
        ("webhook-signature", good["webhook-signature"].replace("v1,", "v1a,")),
        ("webhook-signature", good["webhook-signature"].replace("v1,", "v1,,")),
        ("webhook-signature", good["webhook-signature"][:-1]),
        ("webhook-signature", "v1,"),
        ("webhook-signature", "v1,\u00e9"),
        ("webhook-signature", ""),
        ("webhook-signature", headers_of(now, secret=b"x" * 32)["webhook-signature"]),
    ):
        with refused("no signature"):
            verify_webhook({**good, name: value}, BODY, SECRET)
    for name in good:
        with refused("missing"):
            verify_webhook({key: good[key] for key in good if key != name}, BODY, SECRET)


def test_receiver_refuses_what_was_recorded_and_is_sent_again_later() -> None:
    now = datetime.now(UTC)
    for away in (timedelta(minutes=-6), timedelta(minutes=6)):
        with refused("too long ago"):
            verify_webhook(headers_of(now + away), BODY, SECRET)
    for away in (timedelta(minutes=-4), timedelta(minutes=4)):
        assert verify_webhook(headers_of(now + away), BODY, SECRET)
    for stamp in ("", "1e9", "-1", "+1", " 1", "1_0", "\u0661", "nan", "9" * 5000):
        with refused("no number"):
            verify_webhook({**headers_of(now), "webhook-timestamp": stamp}, BODY, SECRET)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_%%%", "not base64"])
def test_receiver_without_a_secret_is_told_so(secret: str) -> None:
    with pytest.raises(ValueError, match="whsec_"):
        verify_webhook(headers_of(datetime.now(UTC)), BODY, secret)
