"""The OpenAPI document rearranged for reading: operations by tag, with an example each."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]

_METHODS = ("get", "post", "put", "delete")
#: What examples show where a schema gives no example of its own.
_WORDS = {
    "upload": "upl_01k8zj5w3v9q4t6y8b0d2f4h6k",
    "job": "job_01k8zj5w3v9q4t6y8b0d2f4h6k",
    "dataset": "digits@1",
    "model": "digits",
    "name": "digits",
    "filename": "photos.zip",
    "arch": "squeezenet1_0",
    "weights": "torchvision:DEFAULT",
    "classes": "imagenet",
    "url": "https://example.com/darkroom",
    "etag": "9b2cf535f27731c974343645a3985328",
}


@dataclass(frozen=True, slots=True)
class Field:
    """One parameter or property, as a line of a table."""

    name: str
    type: str
    #: Name of the schema to link to.
    schema: str | None
    required: bool
    description: str
    place: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One status that an operation may answer."""

    status: str
    description: str
    schema: str | None
    media_type: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One operation."""

    id: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[Field]
    body: str | None
    outcomes: list[Outcome]
    curl: str


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one tag."""

    name: str
    description: str
    entries: list[Entry] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Shape:
    """One schema."""

    name: str
    description: str
    fields: list[Field]
    choices: list[str]


@dataclass(frozen=True, slots=True)
class Outline:
    """The whole page."""

    groups: list[Group]
    shapes: list[Shape]


def outline(document: Schema) -> Outline:
    """The document as a page reads it."""
    groups = {
        tag["name"]: Group(tag["name"], tag.get("description", ""))
        for tag in document.get("tags", ())
    }
    for path, operations in document["paths"].items():
        for method in _METHODS:
            if method in operations:
                entry = _entry(document, path, method, operations[method])
                groups[operations[method]["tags"][0]].entries.append(entry)
    schemas = document["components"]["schemas"]
    shapes = [_shape(name, schemas[name]) for name in sorted(schemas)]
    return Outline([group for group in groups.values() if group.entries], shapes)


def _entry(document: Schema, path: str, method: str, operation: Schema) -> Entry:
    parameters = [_resolve(document, each) for each in operation.get("parameters", ())]
    content = operation.get("requestBody", {}).get("content", {})
    body = content.get("application/json", {}).get("schema")
    return Entry(
        id=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation.get("summary", ""),
        description=operation.get("description", ""),
        parameters=[_parameter(each) for each in parameters],
        body=_linked(body),
        outcomes=[
            _outcome(status, _resolve(document, answer))
            for status, answer in operation["responses"].items()
        ],
        curl=_curl(document, path, method, operation, list(content)),
    )


def _parameter(parameter: Schema) -> Field:
    schema = parameter.get("schema", {})
    return Field(
        name=parameter["name"],
        type=type_text(schema),
        schema=None,
        required=bool(parameter.get("required")),
        description=parameter.get("description", ""),
        place=parameter["in"],
    )


def _outcome(status: str, answer: Schema) -> Outcome:
    media_type, content = (
        next(iter(answer["content"].items())) if "content" in answer else (None, {})
    )
    return Outcome(
        status, answer.get("description", ""), _linked(content.get("schema")), media_type
    )


def _shape(name: str, schema: Schema) -> Shape:
    required = schema.get("required", ())
    fields = [
        Field(
            name=field_name,
            type=type_text(inner),
            schema=_linked(inner),
            required=field_name in required,
            description=inner.get("description", ""),
        )
        for field_name, inner in schema.get("properties", {}).items()
    ]
    choices = [linked for each in schema.get("oneOf", ()) if (linked := _linked(each))]
    return Shape(name, schema.get("description", ""), fields, choices)


def type_text(schema: Schema) -> str:
    """A schema's type in a few words: ``integer 1…1000, default 50``."""
    bounds = _bounds(schema)
    default = schema.get("default")
    words = [_kind(schema) + (f" {bounds}" if bounds else "")]
    if default not in (None, "", [], {}) and not isinstance(default, dict):
        words.append(f"default {json.dumps(default)}")
    return ", ".join(words)


def _kind(schema: Schema) -> str:
    kind = str(schema.get("type", "any"))
    values = schema.get("additionalProperties")
    if "$ref" in schema:
        kind = str(schema["$ref"]).rpartition("/")[2]
    elif "const" in schema:
        kind = json.dumps(schema["const"])
    elif "enum" in schema:
        kind = " | ".join(json.dumps(each) for each in schema["enum"])
    elif choices := schema.get("anyOf") or schema.get("oneOf"):
        kind = " | ".join(type_text(each) for each in choices)
    elif kind == "array":
        kind = f"list of {_kind(schema.get('items', {}))}"
    elif kind == "object" and isinstance(values, dict):
        kind = f"object of {_kind(values)}"
    elif "format" in schema:
        kind = f"{kind} ({schema['format']})"
    return kind


def _bounds(schema: Schema) -> str:
    low = schema.get("minimum", schema.get("exclusiveMinimum"))
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    if low is None and high is None:
        return ""
    return f"{'' if low is None else f'{low:g}'}…{'' if high is None else f'{high:g}'}"


def _linked(schema: Schema | None) -> str | None:
    """The first schema by name in this one."""
    if not schema:
        return None
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    if "items" in schema:
        inner.append(schema["items"])
    return next((found for each in inner if (found := _linked(each))), None)


def _curl(
    document: Schema, path: str, method: str, operation: Schema, media_types: list[str]
) -> str:
    for parameter in operation.get("parameters", ()):
        each = _resolve(document, parameter)
        if each["in"] == "path":
            word = "7" if each["name"] == "number" else _sample_path(each["name"])
            path = path.replace(f"{{{each['name']}}}", word)
    words = ["curl"]
    if method != "get":
        words.append(f"-X {method.upper()}")
    words.append(f'"$DARKROOM_URL{path}"')
    if operation.get("security"):
        words.append('\\\n  -H "Authorization: Bearer $DARKROOM_API_KEY"')
    if "application/json" in media_types:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = json.dumps(_example(document, schema))
        words.append(f"\\\n  --json {shlex.quote(body)}")
    elif media_types:
        words.append("\\\n  -H 'Content-Type: application/octet-stream' --data-binary @photos.zip")
    return " ".join(words)


def _sample_path(name: str) -> str:
    samples = {"upload_id": "upl", "job_id": "job", "artifact_id": "art", "key_id": "key"}
    samples |= {"webhook_id": "whk", "delivery_id": "dlv"}
    if name in samples:
        return f"{samples[name]}_01k8zj5w3v9q4t6y8b0d2f4h6k"
    return "production" if name == "alias" else "digits"


def _example(document: Schema, schema: Schema, name: str = "") -> Any:
    schema = _resolve(document, schema)
    choices = schema.get("oneOf") or schema.get("anyOf") or [{}]
    value: Any = schema.get("default", "word")
    if name in _WORDS and schema.get("type") != "object":
        value = _WORDS[name]
    elif choices[0]:
        value = _example(document, choices[0], name)
    elif "const" in schema:
        value = schema["const"]
    elif "enum" in schema:
        value = schema["enum"][0]
    elif "properties" in schema:
        value = {
            each: _example(document, inner, each)
            for each, inner in schema["properties"].items()
            if each in schema.get("required", ())
        }
    elif schema.get("type") == "array":
        value = [_example(document, schema.get("items", {}))]
    elif schema.get("type") in ("integer", "number"):
        value = schema.get("default", schema.get("minimum", 1))
    return value


def _resolve(document: Schema, schema: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Any = document
    for step in str(schema["$ref"]).removeprefix("#/").split("/"):
        found = found[step]
    return found  # type: ignore[no-any-return]
