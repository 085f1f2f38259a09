"""The OpenAPI 3.1 document: routes from the framework, schemas and answers from ours.

The framework's own schema classes drop keywords they do not know, and every problem document
would stand in full under every route; both are put right here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from functools import cache
from http import HTTPStatus
from typing import Any

from flask_openapi.openapi import OpenAPI
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from app.api.idempotency import KEY_PATTERN, REPLAYED
from app.api.problems import MEDIA_TYPE
from app.api.resource import Operation
from app.api.schemas.base import Problem
from app.api.schemas.events import LAST_EVENT_PATTERN

_REF = "#/components/schemas/{model}"

#: Schemas of raw answers that are no bytes.
_RAW = {
    "application/json": {"type": "object"},
    "text/html": {"type": "string"},
    "text/event-stream": {"type": "string"},
}

_HEADERS: dict[str, dict[str, Any]] = {
    "Location": {
        "description": "Address of what was made, or to go on to.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds after which to ask again.",
        "schema": {"type": "integer", "minimum": 0},
    },
    "ETag": {
        "description": "Strong validator: two answers with one ETag are the same bytes.",
        "schema": {"type": "string"},
    },
    REPLAYED: {
        "description": "`true` where this is the answer given to an earlier request.",
        "schema": {"type": "string", "enum": ["true"]},
    },
    "Content-Range": {
        "description": "Which bytes these are, of how many.",
        "schema": {"type": "string"},
    },
    "Accept-Ranges": {"description": "`bytes`.", "schema": {"type": "string"}},
    "Content-Disposition": {
        "description": "The name to save it under.",
        "schema": {"type": "string"},
    },
}

_PARAMETERS: dict[str, dict[str, Any]] = {
    "IdempotencyKey": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": (
            "A word of your own for this request. Sent again with the same word, it has no "
            "second effect and gets the first answer, marked `Idempotency-Replayed`."
        ),
        "schema": {"type": "string", "pattern": KEY_PATTERN, "maxLength": 255},
    },
    "IfNoneMatch": {
        "name": "If-None-Match",
        "in": "header",
        "description": "ETag of the answer you have: 304 where it is still good.",
        "schema": {"type": "string"},
    },
    "LastEventId": {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "`id` of the last event you have; goes before `after`.",
        "schema": {"type": "string", "pattern": LAST_EVENT_PATTERN},
    },
    "Range": {
        "name": "Range",
        "in": "header",
        "description": "One range of bytes, such as `bytes=1000-`.",
        "schema": {"type": "string"},
    },
    "IfRange": {
        "name": "If-Range",
        "in": "header",
        "description": "ETag of the file begun: another file is sent whole.",
        "schema": {"type": "string"},
    },
}


def build_document(app: OpenAPI, operations: Iterable[Operation]) -> dict[str, Any]:
    """The finished document; independent of what the framework keeps."""
    document = copy.deepcopy(app.api_doc)
    listed = list(operations)
    schemas, parameters = _schemas(listed)
    used = sorted({status for each in listed for status in each.problems})
    document["components"] = {
        "schemas": schemas,
        "parameters": _PARAMETERS,
        "headers": _HEADERS,
        "responses": {f"Problem{status}": _problem(status) for status in used},
        "securitySchemes": {
            "key": {
                "type": "http",
                "scheme": "bearer",
                "description": "A key of Darkroom: `Authorization: Bearer dk_…`.",
            }
        },
    }
    for each in listed:
        _finish(document["paths"][each.path][each.method], each, parameters)
    return document


def _finish(
    operation: dict[str, Any], each: Operation, schemas: dict[type[BaseModel], dict[str, Any]]
) -> None:
    operation.pop("deprecated", None)
    if "description" in operation:
        operation["description"] = operation["description"].replace("<br/>", "\n").strip()
    for parameter in operation.get("parameters", ()):
        for model in each.parameters:
            fields = schemas[model]["properties"]
            if parameter["name"] in fields:
                schema = dict(fields[parameter["name"]])
                parameter["description"] = schema.pop("description", "")
                parameter["schema"] = _without_null(schema)
        parameter.pop("deprecated", None)
    for name in each.takes:
        operation.setdefault("parameters", []).append({"$ref": f"#/components/parameters/{name}"})
    if each.media_types:
        operation["requestBody"] = {
            "required": True,
            "content": {
                media_type: {"schema": {"type": "string", "format": "binary"}}
                for media_type in each.media_types
            },
        }
    if each.body_optional:
        operation["requestBody"]["required"] = False
    answers = {
        **{status: {"$ref": f"#/components/responses/Problem{status}"} for status in each.problems},
        **{status: _answer(each, status) for status in each.answers},
    }
    operation["responses"] = {str(status): answers[status] for status in sorted(answers)}
    if each.guarded:
        # Since 3.1 a scheme of any type may list what its bearer needs.
        operation["security"] = [{"key": [each.scope.value] if each.scope is not None else []}]
        if each.scope is not None:
            note = f"Needs the scope `{each.scope.value}`."
            operation["description"] = f"{operation.get('description', '')}\n\n{note}".strip()


def _answer(each: Operation, status: int) -> dict[str, Any]:
    found = each.answers[status]
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    for form in found if isinstance(found, tuple) else (found,):
        if isinstance(form, str):
            schema = {"type": "string", "format": "binary"}
            answer.setdefault("content", {})[form] = {"schema": _RAW.get(form, schema)}
        elif form is not None:
            answer["description"] = (form.__doc__ or answer["description"]).strip()
            answer.setdefault("content", {})["application/json"] = {
                "schema": {"$ref": _REF.format(model=form.__name__)}
            }
    headers = list(each.headers.get(status, ()))
    if each.replays:
        headers.append(REPLAYED)
    if headers:
        answer["headers"] = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    return answer


def _problem(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    if status in (409, 429, 503):
        answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/Retry-After"}}
    return answer


def _schemas(
    operations: Iterable[Operation],
) -> tuple[dict[str, Any], dict[type[BaseModel], dict[str, Any]]]:
    """Components of all bodies, and the schemas of all parameters."""
    wanted: dict[tuple[type[BaseModel], JsonSchemaMode], None] = {(Problem, "serialization"): None}
    parameters: dict[type[BaseModel], dict[str, Any]] = {}
    for each in operations:
        for answer in each.answers.values():
            for form in answer if isinstance(answer, tuple) else (answer,):
                if isinstance(form, type):
                    wanted[form, "serialization"] = None
        if each.body is not None:
            wanted[each.body, "validation"] = None
        for model in each.parameters:
            parameters[model] = model.model_json_schema()
    return _definitions(tuple(wanted)), parameters


@cache
def _definitions(models: tuple[tuple[type[BaseModel], JsonSchemaMode], ...]) -> dict[str, Any]:
    """The components; kept, as every application of the process has the same."""
    _, found = models_json_schema(list(models), ref_template=_REF)
    definitions: dict[str, Any] = found["$defs"]
    return definitions


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter that may be left out: a query cannot say null."""
    if schema.get("default", ...) is None:
        schema.pop("default")
    choices = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(choices) == 1:
        schema.pop("anyOf")
        schema.update(choices[0])
    return schema
