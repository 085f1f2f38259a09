"""Keys: two live ones in rotation, expiry, revocation, and that no key's text stays anywhere."""

from __future__ import annotations

import hmac
import json
import logging
import zlib
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from app.api.app import create_app
from app.db.session import Database
from app.errors import UnauthorizedError
from app.ids import KEY, new_id
from app.jobs.tables import IdempotencyKey
from app.log import configure_logging
from app.settings import Settings
from app.tenants import known_keys
from app.tenants.keys import NewKey, create_key, look_up_key
from app.tenants.known_keys import SERVES_SECONDS, KnownKeys
from app.tenants.scopes import Scope
from tests.api_client import Api, make_key
from tests.clock import Clock
from tests.factories import make_tenant

REVOKED_WITHIN_SECONDS = 5


@pytest.fixture(scope="module")
def other_process(app: Any, settings: Settings) -> Any:
    """The application as a second process has it: nothing is shared but the database."""
    return create_app(settings)


@pytest.fixture
def admin(app: Any, database: Database, settings: Settings, tenant_id: str) -> Api:
    return Api(app, make_key(database, settings, tenant_id))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(known_keys, "monotonic_seconds", clock)
    return clock


def make(admin: Api, *scopes: str, **more: Any) -> dict[str, Any]:
    body = {"name": "robot", "scopes": scopes or ["jobs:read"], **more}
    made: dict[str, Any] = admin("POST", "/v1/keys", json=body).json
    return made


def rotate(admin: Api, key_id: str, status: int = 201, **body: Any) -> dict[str, Any]:
    answer = admin("POST", f"/v1/keys/{key_id}/rotate", json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json
    return found


def asks(app: Any, key_text: str) -> int:
    """The status that a request under this key gets."""
    status: int = Api(app, key_text)("GET", "/v1/jobs").status_code
    return status


def age(database: Database, key_id: str, **ago: float) -> None:
    """Let a key end as if so much time had passed."""
    with database.system() as session:
        session.execute(
            text("UPDATE api_keys SET expires_at = expires_at - :ago WHERE id = :id"),
            {"ago": timedelta(**ago), "id": key_id},
        )


def with_checksum(body: str) -> str:
    return f"{body}_{zlib.crc32(body.encode()):08x}"


def test_old_and_new_key_serve_until_the_overlap_is_over(
    app: Any, admin: Api, database: Database, clock: Clock
) -> None:
    old = make(admin, "jobs:read", "exports")
    new = rotate(admin, old["id"], overlap_seconds=3600)
    assert (new["name"], new["scopes"]) == (old["name"], old["scopes"])
    assert (new["line_id"], new["expires_at"]) == (old["id"], None)
    assert (asks(app, old["text"]), asks(app, new["text"])) == (200, 200)
    age(database, old["id"], seconds=3601)
    clock.now += SERVES_SECONDS
    refused = Api(app, old["text"])("GET", "/v1/jobs")
    assert (refused.status_code, refused.json["code"]) == (401, "key_expired")
    assert asks(app, new["text"]) == 200


def test_overlap_is_a_day_unless_said_otherwise(admin: Api) -> None:
    old = make(admin)
    rotate(admin, old["id"])
    listed = {key["id"]: key for key in admin("GET", "/v1/keys").json["data"]}
    left = datetime.fromisoformat(listed[old["id"]]["expires_at"]) - datetime.now(UTC)
    assert timedelta(hours=23, minutes=50) < left <= timedelta(hours=24, seconds=5)


def test_rotation_at_once_ends_the_old_key_at_once(app: Any, admin: Api) -> None:
    old = make(admin)
    assert asks(app, old["text"]) == 200
    new = rotate(admin, old["id"], overlap_seconds=0)
    assert (asks(app, old["text"]), asks(app, new["text"])) == (401, 200)


def test_at_most_two_keys_of_a_line_are_alive(admin: Api, database: Database) -> None:
    first = make(admin)
    second = rotate(admin, first["id"])
    for key in (first, second):
        problem = rotate(admin, key["id"], 409)
        assert problem["code"] == "key_rotating"
        other = second if key is first else first
        assert other["id"] in problem["detail"]
        # Not even where the rotated one would end at once.
        assert rotate(admin, key["id"], 409, overlap_seconds=0)["code"] == "key_rotating"
    age(database, first["id"], days=2)
    third = rotate(admin, second["id"])
    assert third["line_id"] == first["id"]
    assert rotate(admin, first["id"], 409)["code"] == "key_not_alive"


def test_of_rotations_at_the_same_moment_one_makes_a_key(admin: Api) -> None:
    key = make(admin)
    path = f"/v1/keys/{key['id']}/rotate"
    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(lambda _: admin("POST", path).status_code, range(4)))
    assert sorted(statuses) == [201, 409, 409, 409]


@pytest.mark.parametrize("which", ["old", "new"])
def test_each_of_both_is_revoked_by_itself(app: Any, admin: Api, which: str) -> None:
    old = make(admin)
    both = {"old": old, "new": rotate(admin, old["id"])}
    assert admin("DELETE", f"/v1/keys/{both[which]['id']}").status_code == 204
    assert {name: asks(app, key["text"]) for name, key in both.items()} == {
        "old": 200,
        "new": 200,
        which: 401,
    }


def test_successor_whose_text_was_lost_is_revoked_and_made_again(admin: Api) -> None:
    old = make(admin)
    lost = rotate(admin, old["id"], overlap_seconds=60)
    admin("DELETE", f"/v1/keys/{lost['id']}")
    again = rotate(admin, old["id"])
    # The shortened life of the old key is not inherited, nor is it prolonged.
    assert again["expires_at"] is None
    listed = {key["id"]: key for key in admin("GET", "/v1/keys").json["data"]}
    left = datetime.fromisoformat(listed[old["id"]]["expires_at"]) - datetime.now(UTC)
    assert left <= timedelta(seconds=60)


def test_successor_lives_as_long_as_its_key_was_made_to(admin: Api) -> None:
    until = datetime.now(UTC) + timedelta(days=90)
    old = make(admin, expires_at=until.isoformat())
    new = rotate(admin, old["id"])
    life = datetime.fromisoformat(new["expires_at"]) - datetime.fromisoformat(new["created_at"])
    assert abs(life - timedelta(days=90)) < timedelta(minutes=5)


@pytest.mark.parametrize("overlap", [-1, 30 * 24 * 3600 + 1, 1.5, "1d", None])
def test_overlap_beyond_its_bounds_is_refused(admin: Api, overlap: Any) -> None:
    problem = rotate(admin, make(admin)["id"], 422, overlap_seconds=overlap)
    assert problem["errors"][0]["pointer"] == "/overlap_seconds"


def test_revoked_key_has_no_successor(admin: Api) -> None:
    key = make(admin)
    admin("DELETE", f"/v1/keys/{key['id']}")
    assert rotate(admin, key["id"], 409)["code"] == "key_not_alive"


def test_key_of_another_tenant_is_not_there_to_be_rotated(
    app: Any, admin: Api, database: Database, settings: Settings
) -> None:
    other = Api(app, make_key(database, settings, make_tenant(database)))
    key = make(admin)
    foreign, unknown = (rotate(other, key_id, 404) for key_id in (key["id"], new_id(KEY)))
    assert foreign["code"] == unknown["code"] == "key_not_found"
    assert asks(app, key["text"]) == 200


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope is not Scope.ADMIN])
def test_only_an_admin_makes_keys_so_none_gets_more_rights_than_it_has(
    app: Any, admin: Api, scope: Scope
) -> None:
    key = make(admin, scope.value)
    lesser = Api(app, key["text"])
    body = {"name": "more", "scopes": ["admin"]}
    for method, path, words in (
        ("POST", "/v1/keys", {"json": body}),
        ("POST", f"/v1/keys/{key['id']}/rotate", {}),
        ("GET", "/v1/keys", {}),
        ("DELETE", f"/v1/keys/{key['id']}", {}),
    ):
        answer = lesser(method, path, **words)
        assert (answer.status_code, answer.json["code"]) == (403, "scope_missing")


def test_key_revoked_in_one_process_ends_in_another_within_five_seconds(
    app: Any, other_process: Any, admin: Api, clock: Clock
) -> None:
    key = make(admin)
    assert (asks(app, key["text"]), asks(other_process, key["text"])) == (200, 200)
    admin("DELETE", f"/v1/keys/{key['id']}")
    assert asks(app, key["text"]) == 401
    assert asks(other_process, key["text"]) == 200
    assert SERVES_SECONDS < REVOKED_WITHIN_SECONDS
    clock.now += SERVES_SECONDS
    assert asks(other_process, key["text"]) == 401


def test_key_rotated_at_once_in_one_process_ends_in_another_within_five_seconds(
    other_process: Any, admin: Api, clock: Clock
) -> None:
    key = make(admin)
    assert asks(other_process, key["text"]) == 200
    rotate(admin, key["id"], overlap_seconds=0)
    clock.now += SERVES_SECONDS
    assert asks(other_process, key["text"]) == 401


def test_last_use_is_told(app: Any, admin: Api) -> None:
    key = make(admin)
    assert key["last_used_at"] is None
    asks(app, key["text"])
    listed = {each["id"]: each for each in admin("GET", "/v1/keys").json["data"]}
    used = datetime.fromisoformat(listed[key["id"]]["last_used_at"])
    assert abs(datetime.now(UTC) - used) < timedelta(minutes=1)


class Work:
    """What looking a key up costs: the questions to the database and the comparisons."""

    def __init__(self, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self._db = db
        self.done: list[str] = []
        compare = hmac.compare_digest

        def note(given: str, kept: str) -> bool:
            self.done.append(f"compare {len(given)} with {len(kept)}")
            return compare(given, kept)

        monkeypatch.setattr("app.tenants.keys.hmac.compare_digest", note)

    def ask(self, question: str, words: Any) -> Any:
        self.done.append(f"ask {question}")
        return self._db.ask(question, words)

    def tenant(self, tenant_id: str) -> Any:
        self.done.append("transaction")
        return self._db.tenant(tenant_id)


@pytest.fixture
def new_key(database: Database, tenant_id: str, settings: Settings) -> NewKey:
    with database.tenant(tenant_id) as session:
        return create_key(
            session,
            tenant_id,
            name="k",
            scopes=[Scope.JOBS_READ],
            pepper=settings.key_pepper.get_secret_value(),
        )


def refusals(new_key: NewKey) -> dict[str, str]:
    """Texts of the right form that prove nothing, by why."""
    prefix, id_part, secret, _ = new_key.text.split("_")
    wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
    return {
        "unknown id": with_checksum(f"{prefix}_{new_id(KEY).removeprefix('key_')}_{secret}"),
        "wrong secret": with_checksum(f"{prefix}_{id_part}_{wrong}"),
    }


def test_unknown_id_and_wrong_secret_cost_the_same_work_and_read_alike(
    new_key: NewKey, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    pepper = settings.key_pepper.get_secret_value()
    work = Work(database, monkeypatch)
    seen = {}
    for why, key_text in refusals(new_key).items():
        work.done.clear()
        with pytest.raises(UnauthorizedError) as caught:
            look_up_key(work, key_text, pepper)  # type: ignore[arg-type]
        seen[why] = (list(work.done), caught.value.as_dict())
    assert seen["unknown id"] == seen["wrong secret"]
    assert len(seen["unknown id"][0]) == 2


def test_wrong_checksum_never_reaches_the_database(
    new_key: NewKey, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(database, monkeypatch)
    wrong = new_key.text[:-1] + ("0" if new_key.text[-1] != "0" else "1")
    for broken in (wrong, new_key.text.upper(), f" {new_key.text}", f"{new_key.text}\n", "dk_"):
        with pytest.raises(UnauthorizedError) as caught:
            KnownKeys("p" * 32).authenticate(work, broken)  # type: ignore[arg-type]
        assert caught.value.code == "key_malformed"
    assert work.done == []


def test_text_of_a_key_stands_in_no_table_and_no_log(
    app: Any,
    admin: Api,
    database: Database,
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure_logging("DEBUG", json=True)
    try:
        sent = {"Idempotency-Key": new_id(KEY)}
        body = {"name": "robot", "scopes": ["jobs:read"]}
        made = admin("POST", "/v1/keys", json=body, headers=sent)
        path = f"/v1/keys/{made.json['id']}/rotate"
        rotated = admin("POST", path, headers={"Idempotency-Key": new_id(KEY)})
        repeated = admin("POST", "/v1/keys", json=body, headers=sent)
        texts = [made.json["text"], rotated.json["text"], admin.key]
        answers = [Api(app, made.json["text"])("GET", "/v1/jobs")]
        # Refused ones too, whole and broken, where another header would not even hold them.
        answers += [Api(app, wrong)("GET", "/v1/jobs") for wrong in (texts[0][:-1], texts[0] * 2)]
        answers.append(Api(app, "dk_x")("GET", f"/v1/jobs?after={texts[0]}"))
        logging.getLogger("elsewhere").warning("a line that is caught")
    finally:
        logged = "".join(capfd.readouterr())
        configure_logging("ERROR")
    assert '"path": "/v1/keys"' in logged
    assert repeated.json["text"] is None
    secrets = [text.split("_")[2] for text in texts]
    for secret in secrets:
        assert secret not in logged
        assert not any(secret in answer.text for answer in answers)
    assert _tables_with(database, secrets) == []


def _tables_with(database: Database, secrets: list[str]) -> list[str]:
    """Tables of which some row holds one of the texts, in any column."""
    with database.system() as session:
        tables = session.scalars(
            text(
                "SELECT relname FROM pg_class "
                "WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        ).all()
        found = []
        for table in tables:
            rows = session.scalar(
                text(f"SELECT count(*) FROM {table} t WHERE t::text LIKE ANY(:texts)"),
                {"texts": [f"%{secret}%" for secret in secrets]},
            )
            if rows:
                found.append(table)
    return found


def test_replay_of_a_rotation_shows_the_same_key_without_its_text(
    admin: Api, database: Database, tenant_id: str
) -> None:
    key = make(admin)
    sent = {"Idempotency-Key": "rotate-1"}
    path = f"/v1/keys/{key['id']}/rotate"
    first = admin("POST", path, headers=sent)
    again = admin("POST", path, headers=sent)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json == {**first.json, "text": None}
    with database.tenant(tenant_id) as session:
        kept = session.scalars(select(IdempotencyKey.body)).all()
    assert first.json["text"].split("_")[2] not in json.dumps(kept)
