"""Every route against every id of another tenant, every missing scope, every key that is none.

All rows of the tables here come from the OpenAPI document: a new route is attacked without
anybody thinking of it, and one that these tests cannot call makes them fail.
"""

from __future__ import annotations

import json
import re
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import text

from app.ids import new_id
from app.tenants.scopes import Scope
from tests.api_client import Api, import_body, make_key
from tests.factories import name_of_tenant
from tests.security.calls import (
    BODIES,
    JOBS,
    MAKES,
    NEW_NAMES,
    OPEN,
    PLAIN,
    WORDS,
    Route,
    fill,
    routes,
)
from tests.security.work import recorded_work
from tests.world import World, build_world

ROUTES = list(routes())
GUARDED = [route for route in ROUTES if route.name not in OPEN]
BY_NAME = pytest.mark.parametrize("route", GUARDED, ids=lambda route: route.name)
#: Every route with each id in its path, alone and together.
FOREIGN = [
    (route, asked)
    for route in GUARDED
    if route.name not in MAKES
    for asked in (
        *((one,) for one in route.parameters if one not in WORDS),
        *([route.parameters] if len(set(route.parameters) - WORDS) > 1 else []),
    )
]


@pytest.fixture(scope="module")
def other(app, settings, database, objects):
    """The tenant whose rows are not to be seen, not even guessed."""
    return build_world(app, settings, database, objects, "secret-name")


@pytest.fixture(scope="module")
def narrow(app, settings, database, world):
    """A key of the asking tenant for each single scope, and for all scopes but one."""

    def api(*scopes):
        return Api(app, make_key(database, settings, world.tenant_id, *scopes))

    few = {scope.value: api(scope) for scope in Scope}
    without = {
        scope.value: api(*(one for one in Scope if one not in (scope, Scope.ADMIN)))
        for scope in Scope
    }
    return few, without


def absent(name: str, value: str) -> str:
    """An id of the same kind that nobody has."""
    return "no-such-name" if name == "name" else new_id(value[:3])


def same(answer, *ids: str) -> tuple[int, dict[str, str], str]:
    """An answer without what differs by rights: the request's own id and the ids asked for."""
    body = answer.get_data(as_text=True)
    for one in (*ids, answer.headers["X-Request-Id"]):
        body = body.replace(one, "…")
    headers = {
        name: value
        for name, value in answer.headers.items()
        # The ids asked for have lengths of their own where they are names.
        if name not in ("X-Request-Id", "Content-Length", "Date")
    }
    return answer.status_code, headers, body


def test_every_route_is_known_to_these_tests(world: World):
    known = set(world.ids)
    for route in ROUTES:
        teach = f"teach tests/security/calls.py the route {route.name}"
        assert set(route.parameters) <= known, f"{teach}: a parameter of {route.path}"
        assert (route.name in OPEN) == (route.scope is None and route.name != "submit_job"), teach
        if route.media_type == "application/json":
            assert route.name in BODIES, f"{teach}: a body"
    assert set(BODIES) | OPEN <= {route.name for route in ROUTES}
    assert len(FOREIGN) >= 25


def test_every_kind_of_job_is_known_to_these_tests():
    from app.api.jobs import SCOPE_OF_KIND

    assert {kind: scope for kind, (scope, _) in JOBS.items()} == {
        kind.value: scope.value for kind, scope in SCOPE_OF_KIND.items()
    }


@pytest.mark.parametrize(
    ("route", "asked"), FOREIGN, ids=[f"{each.name}-{'+'.join(names)}" for each, names in FOREIGN]
)
def test_id_of_another_tenant_is_as_if_it_did_not_exist(app, world, other, route: Route, asked):
    foreign = {name: other.ids[name] for name in asked if name not in WORDS}
    missing = {name: absent(name, str(value)) for name, value in foreign.items()}
    with recorded_work(app) as work:
        refused = route.call(world.api, {**world.ids, **foreign})
    with recorded_work(app) as work_of_missing:
        unknown = route.call(world.api, {**world.ids, **missing})
    assert refused.status_code == 404, refused.text
    assert refused.json["code"].endswith("_not_found")
    assert same(refused, *foreign.values()) == same(unknown, *missing.values())
    assert work == work_of_missing
    assert work, "nothing was asked, so nothing was proved"
    assert other.tenant_id not in refused.text
    # The owner still has it, whatever the attacker's verb was.
    if route.method == "get":
        assert route.call(other.api, other.ids).status_code == 200


def test_nothing_of_another_tenant_was_changed_by_asking(other: World, database):
    with database.tenant(other.tenant_id) as session:
        rows = {
            "jobs": ("state", "queued", "validating"),
            "uploads": ("state", "receiving", "ready"),
            "webhooks": ("state", "enabled"),
            "api_keys": ("revoked_at IS NULL", True),
        }
        for table, (column, *good) in rows.items():
            found = session.execute(text(f"SELECT {column} FROM {table}")).scalars().all()
            assert found
            assert set(found) <= set(good), table


@pytest.mark.parametrize(
    "route",
    [route for route in GUARDED if route.method == "get" and "after" in route.queries],
    ids=lambda route: route.name,
)
def test_pages_hold_nothing_of_another_tenant(world, other, route: Route):
    theirs = [str(value) for name, value in other.ids.items() if name not in WORDS]
    page = route.call(world.api, world.ids)
    assert page.status_code == 200
    assert not [one for one in (*theirs, other.tenant_id) if one in page.text]
    for one in theirs:
        # As the place to go on from, too: it is a place in the order, and no row is looked at.
        page = route.call(world.api, world.ids, query_string={"after": one})
        assert page.status_code in (200, 404, 422)
        assert not [word for word in (set(theirs) - {one}) if word in page.text]


#: Bodies that name a row: what is foreign must be as what is missing.
NAMING = {
    "job of an upload": ("submit_job", {**JOBS["predict"][1], "input": {"upload": "{upload_id}"}}),
    "job of a ready upload": (
        "submit_job",
        {**JOBS["predict"][1], "input": {"upload": "{ready_upload_id}"}},
    ),
    "job of a dataset": ("submit_job", {**JOBS["predict"][1], "input": {"dataset": "{name}"}}),
    "job of a dataset version": (
        "submit_job",
        {**JOBS["predict"][1], "input": {"dataset": "{dataset_version_id}"}},
    ),
    "job with a model": ("submit_job", {**JOBS["predict"][1], "model": "{name}"}),
    "job with a model version": (
        "submit_job",
        {**JOBS["predict"][1], "model": "{model_version_id}"},
    ),
    "evaluation on a dataset": (
        "submit_job",
        {**JOBS["evaluate"][1], "input": {"dataset": "{name}"}},
    ),
    "evaluation of a model version": (
        "submit_job",
        {**JOBS["evaluate"][1], "model": "{model_version_id}"},
    ),
    "training on a dataset": (
        "submit_job",
        {**JOBS["finetune"][1], "input": {"dataset": "{name}"}},
    ),
    "training that starts from a model": (
        "submit_job",
        {**JOBS["finetune"][1], "options": {"start": "{name}"}},
    ),
    "training that starts from a version": (
        "submit_job",
        {**JOBS["finetune"][1], "options": {"start": "{model_version_id}"}},
    ),
    "search on a dataset": (
        "submit_job",
        {**JOBS["search"][1], "input": {"dataset": "{name}"}},
    ),
    "search that starts from a version": (
        "submit_job",
        {
            **JOBS["search"][1],
            "options": {**JOBS["search"][1]["options"], "recipe": {"start": "{model_version_id}"}},
        },
    ),
    "import of an upload": (
        "submit_job",
        {
            **import_body(),
            "options": {**import_body()["options"], "weights": "{upload_id}"},
        },
    ),
    "version of an upload": (
        "import_version",
        {**import_body()["options"], "weights": "{upload_id}"},
    ),
    "export of a job": ("submit_job", JOBS["export"][1]),
    "export of another kind of job": (
        "submit_job",
        {**JOBS["export"][1], "input": {"job": "{job_id}"}},
    ),
    "retry with a model": ("retry_job", {"model": "{model_version_id}"}),
    "dataset of an upload": ("freeze_dataset", BODIES["freeze_dataset"]),
    "dataset of an open upload": (
        "freeze_dataset",
        {**BODIES["freeze_dataset"], "input": {"upload": "{upload_id}"}},
    ),
    "gate on a dataset": ("put_gate", {"metric": "f1", "dataset": "{name}"}),
    "promotion judged on a dataset": (
        "promote",
        {"version": 1, "gate": {"metric": "f1", "dataset": "{name}"}},
    ),
}


#: Parameters of queries that may name a row, and which ids of a world they may be. A page's
#: ``after`` is a place in the order and has a test of its own.
ASKED_FOR = {
    "owner": ("own_name", "tenant"),
    "actor": ("own_key_id",),
    "target": ("job_id",),
}
ASKING = [
    (route, parameter, word)
    for route in GUARDED
    for parameter in sorted(route.naming_queries - {"after"})
    # One that nobody thought of fails the test below.
    for word in ASKED_FOR.get(parameter, ())
]


def placeholders(body: Any, path: str = "") -> set[str]:
    """The paths in a body at which an id is filled in."""
    if isinstance(body, dict):
        inner = [
            placeholders(value, f"{path}.{name}" if path else name) for name, value in body.items()
        ]
        return set().union(*inner)
    return {path} if isinstance(body, str) and body.startswith("{") else set()


def test_every_text_of_a_body_or_query_that_may_name_a_row_is_attacked():
    attacked = {(name, path) for name, body in NAMING.values() for path in placeholders(body)}
    for route in ROUTES:
        teach = f"{route.name}: name what it may be in tests/security, or that it names no row"
        assert {(route.name, path) for path in route.naming_bodies} <= attacked, teach
        assert route.naming_queries <= {*ASKED_FOR, "after"}, teach
    # And the list of what names none is no longer than what there is.
    there = {path for route in ROUTES for path in route.texts}
    assert there >= PLAIN
    assert {(route.name, path) for route in ROUTES for path in route.texts} >= NEW_NAMES
    assert len(ASKING) >= 6


@pytest.mark.parametrize(
    ("route", "parameter", "word"),
    ASKING,
    ids=[f"{each.name}-{parameter}-{word}" for each, parameter, word in ASKING],
)
def test_query_that_names_a_row_of_another_tenant_is_as_if_it_named_none(
    app, database, world, other, route: Route, parameter, word
):
    theirs = {
        **other.ids,
        "own_name": name_of_tenant(database, other.tenant_id),
        "own_key_id": f"key_{other.api.key.split('_')[1]}",
    }[word]
    nobodys = absent("name" if "_id" not in word else word, str(theirs))
    # Theirs in the path too, where that is a name: this is how a shared model is asked for.
    path = {**world.ids, "name": other.ids["name"]}
    with recorded_work(app) as work:
        refused = route.call(world.api, path, query_string={parameter: theirs})
    with recorded_work(app) as work_of_missing:
        unknown = route.call(world.api, path, query_string={parameter: nobodys})
    assert refused.status_code == (404 if parameter == "owner" else 200), refused.text
    assert same(refused, theirs) == same(unknown, nobodys)
    assert work == work_of_missing
    assert work, "nothing was asked, so nothing was proved"
    assert other.tenant_id not in refused.text
    if refused.status_code == 200:
        # Its tenant finds by it what this one does not.
        found = route.call(other.api, other.ids, query_string={parameter: theirs})
        assert other.ids["job_id"] in found.text
        assert len(found.text) > len(refused.text) + 100


@pytest.mark.parametrize("case", NAMING)
def test_body_that_names_a_row_of_another_tenant_is_as_if_it_named_none(app, world, other, case):
    name, body = NAMING[case]
    route = next(each for each in ROUTES if each.name == name)
    words = set(re.findall(r"\{(\w+)\}", json.dumps(body)))
    assert words
    foreign = {word: other.ids[word] for word in words}
    missing = {word: absent(word, str(value)) for word, value in foreign.items()}
    if name == "retry_job":
        # Of a job that may be retried, so that the model is what is looked at.
        with app.extensions["darkroom"].db.tenant(world.tenant_id) as session:
            session.execute(
                text(
                    "UPDATE jobs SET state = 'cancelled', cancelled = total, ended_at = now() "
                    "WHERE id = :id"
                ),
                {"id": world.ids["predict_job_id"]},
            )
    path = {**world.ids, "job_id": world.ids["predict_job_id"]}
    with recorded_work(app) as work:
        refused = route.call(world.api, path, json=fill(body, foreign))
    with recorded_work(app) as work_of_missing:
        unknown = route.call(world.api, path, json=fill(body, missing))
    assert refused.status_code in (404, 422), refused.text
    assert same(refused, *foreign.values()) == same(unknown, *missing.values())
    assert work == work_of_missing
    assert other.tenant_id not in refused.text


def test_idempotency_key_of_another_tenant_brings_no_answer_of_theirs(world, other):
    headers = {"Idempotency-Key": "the-same-word"}
    made = other.api("POST", "/v1/jobs", json=import_body("x"), headers=headers)
    own = world.api("POST", "/v1/jobs", json=import_body("x"), headers=headers)
    assert made.status_code == own.status_code == 202
    assert "Idempotency-Replayed" not in own.headers
    assert own.json["id"] != made.json["id"]
    # Nor does it tell that somebody used it, for something else.
    own = world.api("POST", "/v1/jobs", json=import_body("y"), headers=headers)
    assert (own.status_code, own.json["code"]) == (422, "idempotency_key_reused")


@pytest.mark.parametrize(
    # Where the body decides, see the kinds of jobs.
    "route",
    [route for route in GUARDED if route.scope is not None],
    ids=lambda route: route.name,
)
def test_key_without_the_scope_is_refused_and_one_that_has_only_it_is_let_in(
    world, narrow, route: Route
):
    few, without = narrow
    for held, api in few.items():
        if held in (route.scope, "admin"):
            continue
        assert_scope_missing(route.call(api, world.ids), route.scope)
    assert_scope_missing(route.call(without[route.scope], world.ids), route.scope)
    # With ids that lead nowhere: what the call would do is not done, and that it got there is seen.
    missing = {name: absent(name, str(value)) for name, value in world.ids.items()}
    got_in = route.call(few[route.scope], {**missing, "number": 1, "alias": "x"})
    assert got_in.status_code not in (401, 403), got_in.text


@pytest.mark.parametrize("kind", JOBS)
def test_job_of_a_kind_needs_the_scope_of_that_kind(world, narrow, kind):
    few, without = narrow
    scope, body = JOBS[kind]
    body = fill(body, world.ids)
    for held, api in few.items():
        answer = api("POST", "/v1/jobs", json=body)
        if held in (scope, "admin"):
            assert answer.status_code == 202, answer.text
        else:
            assert_scope_missing(answer, scope)
    assert_scope_missing(without[scope]("POST", "/v1/jobs", json=body), scope)


def assert_scope_missing(answer, scope: str | None) -> None:
    assert (answer.status_code, answer.json["code"]) == (403, "scope_missing"), answer.text
    assert f"{scope!r}" in answer.json["detail"]


@pytest.fixture(scope="module")
def no_keys(app, settings, database, world):
    """Headers that prove nothing, by the code that tells why."""
    good = world.api.key
    expired = make_key(database, settings, world.tenant_id, name="expired")
    revoked = make_key(database, settings, world.tenant_id, name="revoked")
    with database.tenant(world.tenant_id) as session:
        for column, key in (("expires_at", expired), ("revoked_at", revoked)):
            session.execute(
                text(f"UPDATE api_keys SET {column} = now() - :ago WHERE id = :id"),
                {"ago": timedelta(seconds=1), "id": f"key_{key.split('_')[1]}"},
            )
    stranger = settings.model_copy(update={"key_pepper": type(settings.key_pepper)("p" * 32)})
    unknown = make_key(database, stranger, world.tenant_id, name="unknown")
    return {
        "key_missing": [None, "", "Bearer", "Bearer ", f"Basic {good}", good],
        "key_malformed": [
            "Bearer dk_nonsense",
            f"Bearer {good[:-1]}",
            f"Bearer {good} {good}",
            f"Bearer {good.upper()}",
            f"Bearer {good}\u00e9",
            "Bearer " + "x" * 8000,
        ],
        "key_unknown": [f"Bearer {unknown}"],
        "key_expired": [f"Bearer {expired}"],
        "key_revoked": [f"Bearer {revoked}"],
    }


@BY_NAME
def test_without_a_good_key_every_route_answers_401(app, world, no_keys, route: Route):
    for code, headers in no_keys.items():
        for header in headers:

            def api(method, path, headers=None, header=header, **words):
                given = {} if header is None else {"Authorization": header}
                return app.test_client().open(
                    path, method=method, headers={**(headers or {}), **given}, **words
                )

            answer = route.call(api, world.ids)
            assert (answer.status_code, answer.json["code"]) == (401, code), header
            assert answer.headers["WWW-Authenticate"] == 'Bearer realm="darkroom"'


def test_method_that_a_route_does_not_have_is_refused_before_anything_is_looked_up(app, world):
    methods = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND")
    known: dict[str, set[str]] = {}
    for route in ROUTES:
        known.setdefault(route.path, set()).add(route.method.upper())
    for path, method in product(known, methods):
        if method in known[path]:
            continue
        with recorded_work(app) as work:
            answer = app.test_client().open(path.format(**world.ids), method=method)
        assert (answer.status_code, work) == (405, []), (method, path)
        assert "OPTIONS" not in answer.headers["Allow"]


@pytest.mark.parametrize(
    "route", [each for each in GUARDED if each.method == "get"], ids=lambda route: route.name
)
def test_head_of_a_guarded_route_needs_a_key_as_its_get_does(app, world, narrow, route: Route):
    path = route.path.format(**world.ids)
    assert app.test_client().head(path).status_code == 401
    without = narrow[1][route.scope]
    assert without("HEAD", path).status_code == 403
