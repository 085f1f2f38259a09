"""The service keeps to its own document, whatever a client sends."""

from __future__ import annotations

import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as budget
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation.modes import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from app.ids import ARTIFACT, DELIVERY, JOB, KEY, UPLOAD, WEBHOOK, new_id
from tests.api_client import offline_app, offline_document
from tests.world import build_world

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 12


DOCUMENT = offline_document()
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "LOCK"}
#: What could stand in an address: ids of the forms that the routes know.
IDS = {
    f"{name}_id": new_id(prefix)
    for name, prefix in {
        "artifact": ARTIFACT,
        "delivery": DELIVERY,
        "job": JOB,
        "key": KEY,
        "upload": UPLOAD,
        "webhook": WEBHOOK,
    }.items()
}
OPERATIONS = sorted((method, path) for path, each in DOCUMENT["paths"].items() for method in each)


@pytest.fixture(scope="module")
def world(app, settings, database, objects):
    """A tenant that has one of everything, so that addresses lead somewhere; ids by name."""
    built = build_world(app, settings, database, objects)
    return built.api.key, built.ids


@pytest.fixture(scope="module")
def schema(app):
    """The document as it is served; reading it looks through our code for constants."""
    return schemathesis.openapi.from_wsgi("/v1/openapi.json", app)


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_documented_whatever_is_sent(world, schema, method, path):
    key, found = world
    operation = schema[path][method]
    known = {name: value for name, value in found.items() if f"{{{name}}}" in path}

    def send(case: Any) -> None:
        # A wait would be spent: nobody works on the jobs here.
        case.query.pop("wait", None)
        headers = {"Authorization": f"Bearer {key}"}
        if path.endswith("/events"):
            # Its stream is one long wait, too.
            headers["Accept"] = "application/json"
        case.call_and_validate(headers=headers, checks=CHECKS)

    for mode, parameters in (
        (GenerationMode.POSITIVE, known),
        (GenerationMode.NEGATIVE, None),
    ):
        strategy = operation.as_strategy(generation_mode=mode, path_parameters=parameters)
        # Derandomised and without a database of examples: the same run everywhere.
        run = budget(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(given(case=strategy)(send))
        try:
            run()
        except Unsatisfiable:
            # Nothing can be wrong about a request that has no parameters.
            assert mode is GenerationMode.NEGATIVE


def test_document_is_valid_openapi_and_complete():
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.validate()
    for path, each in DOCUMENT["paths"].items():
        for method, operation in each.items():
            assert operation["operationId"], (method, path)
            assert operation["summary"].endswith("."), (method, path)
            statuses = set(operation["responses"])
            assert {"400", "500", "503"} <= statuses
            # What stands in a link is its key.
            open_to_all = ("docs" in path) or ("openapi" in path) or path.endswith("/download")
            if path.startswith("/v1/") and not open_to_all:
                assert [list(one) for one in operation["security"]] == [["key"]]
                assert {"401", "403"} <= statuses
            if method == "post":
                references = [one.get("$ref", "") for one in operation["parameters"]]
                takes_key = "#/components/parameters/IdempotencyKey" in references
                # A link is made afresh each time: no answer is kept that would hold one.
                assert takes_key is not path.endswith("/link")


@pytest.fixture(scope="module")
def alone():
    """The application without any part: it refuses a method before it looks anything up."""
    return offline_app()


@pytest.mark.parametrize("path", sorted(DOCUMENT["paths"]))
def test_an_undocumented_method_is_refused_with_exactly_the_documented_ones(alone, path):
    address = re.sub(r"{(\w+)}", lambda found: IDS.get(found[1], "1"), path)
    allowed = {method.upper() for method in DOCUMENT["paths"][path]}
    allowed |= {"HEAD"} if "GET" in allowed else set()
    for method in METHODS - allowed:
        answer = alone.test_client().open(address, method=method)
        assert answer.status_code == 405, method
        assert set(answer.headers["Allow"].split(", ")) == allowed, method


def test_what_begins_as_a_word_of_ours_comes_to_the_guard_as_any_other_text_does(alone):
    for text in ("multiparts", "no-id", "multipart."):
        assert alone.test_client().get(f"/v1/uploads/{text}").status_code == 401, text


def test_every_route_is_in_the_document_and_so_behind_its_guard(alone):
    rules = alone.url_map.iter_rules()
    paths = {re.sub(r"<(?:id:)?(\w+)>", r"{\1}", rule.rule) for rule in rules}
    assert paths == set(DOCUMENT["paths"])


def test_every_reference_of_the_document_leads_somewhere():
    def references(value: Any) -> Any:
        if isinstance(value, dict):
            for name, inner in value.items():
                if name == "$ref":
                    yield inner
                else:
                    yield from references(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from references(inner)

    for reference in set(references(DOCUMENT)):
        found: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]


def test_names_of_an_object_are_limited_to_those_of_their_pattern():
    """A pattern alone lets every name pass that does not match it."""

    def objects(node):
        for each in node.values() if isinstance(node, dict) else node:
            if isinstance(each, dict | list):
                yield from objects(each)
        if isinstance(node, dict) and "patternProperties" in node:
            yield node

    found = list(objects(DOCUMENT))
    assert found
    for node in found:
        assert set(node["propertyNames"]) - {"maxLength"}, node
