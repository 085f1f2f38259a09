"""How to call every route of the document, and what a route's bodies may name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.api_client import import_body, offline_document

#: A body that each operation takes, so that nothing but key, scope and ids decides the answer.
#: Where it is made of other ids, they stand in braces and are filled in by name.
BODIES: dict[str, Any] = {
    "submit_job": import_body(),
    "retry_job": {},
    "begin_multipart": {"filename": "x.zip", "size_bytes": 1},
    "complete_multipart": {"parts": [{"number": 1, "etag": "abc"}]},
    "freeze_dataset": {"name": "frozen", "input": {"upload": "{ready_upload_id}"}},
    "import_version": import_body()["options"],
    "move_alias": {"version": 1},
    "put_gate": {"metric": "accuracy"},
    "promote": {"version": 1, "gate": {"metric": "accuracy"}},
    "link_artifact": {},
    "create_key": {"name": "made", "scopes": ["jobs:read"]},
    "rotate_key": {},
    "give_grant": {"rights": ["run"]},
    "set_budget": {"max_items_per_day": 1000},
    # An address, so that no name is looked up.
    "rotate_webhook_secret": {},
    "create_webhook": {"url": "https://1.1.1.1/"},
}

#: One body of each kind of job, and the scope that it needs.
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "predict": (
        "jobs:write",
        {"kind": "predict", "model": "digits", "input": {"prefix": "s3://bucket/x"}},
    ),
    "evaluate": (
        "jobs:write",
        {
            "kind": "evaluate",
            "model": "digits",
            "input": {"items": [{"key": "s3://bucket/x", "label": "cat"}]},
        },
    ),
    "finetune": (
        "models:write",
        {"kind": "finetune", "model": "digits", "input": {"dataset": "digits"}},
    ),
    "search": (
        "models:write",
        {
            "kind": "search",
            "model": "digits",
            "input": {"dataset": "digits"},
            "options": {"space": {"learning_rate": {"low": 0.01, "high": 0.1}}},
        },
    ),
    "import": ("models:write", import_body()),
    "export": ("exports", {"kind": "export", "input": {"job": "{predict_job_id}"}}),
}

#: Operations that need no key: they tell nothing of any tenant.
OPEN = {
    "get_live",
    "get_ready",
    "get_metrics",
    "get_root",
    "get_openapi",
    "get_docs",
    "get_docs_style",
    # The token in the link stands for a key; tests/security/test_links.py attacks it.
    "download_linked",
}

#: Path parameters that are no ids of rows, but words within what stands before them.
WORDS = {"number", "alias", "tenant"}

#: Texts in bodies and queries that name no row of the tables, by their paths. Whatever else a
#: client may write freely is taken for an id or a name, and the matrix must attack it.
PLAIN = {
    # Where images lie; tests/security/test_object_keys.py attacks these.
    *("input.bucket", "input.prefix", "input.include", "input.exclude"),
    *("input.manifest", "input.items.key"),
    # Notes, and what becomes of files.
    *("input.items.custom_id", "input.items.label", "input.items.metadata", "metadata"),
    *("filename", "parts.etag"),
    # Names for what is made, or that point to it.
    *("alias", "options.alias"),
    # Words that the code knows, or that are compared with nothing.
    *("action", "arch", "options.arch", "options.arch_options", "classes", "options.classes"),
    *("labels", "options.recipe.arch", "options.recipe.arch_options", "options.space.choices"),
    # An address and a token; tests/security/test_webhook_guard.py and test_links.py attack these.
    *("url", "token"),
}

#: Names that only this operation may be given freely: for what it makes, and of a job's metric.
NEW_NAMES = {("create_key", "name"), ("freeze_dataset", "name"), ("list_metrics", "name")}

#: Names are a tenant's own: this route makes what it does not find.
MAKES = {"import_version"}


@dataclass(frozen=True, slots=True)
class Route:
    """One operation of the document."""

    name: str
    method: str
    path: str
    #: None where any key will do, or the body decides.
    scope: str | None
    parameters: tuple[str, ...] = ()
    media_type: str | None = None
    queries: frozenset[str] = field(default_factory=frozenset)
    #: Paths such as ``input.upload`` of the texts in its body, and names of those in its query,
    #: that a client writes freely; and which of them may name a row.
    texts: frozenset[str] = frozenset()
    naming_bodies: frozenset[str] = frozenset()
    naming_queries: frozenset[str] = frozenset()

    def call(self, api: Callable[..., Any], ids: Mapping[str, Any], **more: Any) -> Any:
        """The answer to a call with these ids and a body that is well formed."""
        words = {"json": fill(BODIES[self.name], ids)} if self.name in BODIES else {}
        if self.media_type is not None and not words:
            words = {"data": b"bytes", "content_type": self.media_type}
        headers = more.pop("headers", {})
        if self.path.endswith("/events"):
            # The stream is one long wait.
            headers = {"Accept": "application/json", **headers}
        return api(
            self.method.upper(), self.path.format(**ids), headers=headers, **{**words, **more}
        )


def fill(value: Any, ids: Mapping[str, Any]) -> Any:
    """``value`` with every ``{name}`` in its texts replaced by that id."""
    if isinstance(value, str):
        return value.format(**ids) if value.startswith("{") else value
    if isinstance(value, dict):
        return {name: fill(inner, ids) for name, inner in value.items()}
    return [fill(inner, ids) for inner in value] if isinstance(value, list) else value


def free_texts(schema: dict[str, Any], schemas: dict[str, Any], path: str = "") -> Iterator[str]:
    """The paths within a schema where any text of some form may stand; of a list's, the list's."""
    if "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    for kind in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(kind, ()):
            yield from free_texts(one, schemas, path)
    for name, inner in schema.get("properties", {}).items():
        yield from free_texts(inner, schemas, f"{path}.{name}" if path else name)
    for kind in ("items", "additionalProperties"):
        if isinstance(schema.get(kind), dict):
            yield from free_texts(schema[kind], schemas, path)
    for inner in schema.get("patternProperties", {}).values():
        yield from free_texts(inner, schemas, path)
    if schema.get("type") == "string" and not {"enum", "const", "format"} & schema.keys():
        yield path


def _naming(operation: str, paths: Iterable[str]) -> frozenset[str]:
    """Those of the paths that may name a row."""
    return frozenset(
        path for path in paths if path not in PLAIN and (operation, path) not in NEW_NAMES
    )


def routes() -> Iterator[Route]:
    """Every operation of the OpenAPI document."""
    found = offline_document()
    shared, schemas = found["components"]["parameters"], found["components"]["schemas"]
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            listed = [
                shared[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
                for one in operation.get("parameters", ())
            ]
            content = operation.get("requestBody", {}).get("content", {})
            media_types = list(content)
            body = content.get("application/json", {}).get("schema", {})
            queries = {one["name"]: one["schema"] for one in listed if one["in"] == "query"}
            written = set(free_texts(body, schemas))
            asked = {path for name in queries for path in free_texts(queries[name], schemas, name)}
            scopes = operation.get("security", [{"key": []}])[0]["key"]
            yield Route(
                operation["operationId"],
                method,
                path,
                scopes[0] if scopes else None,
                tuple(one["name"] for one in listed if one["in"] == "path"),
                media_types[0] if media_types else None,
                frozenset(queries),
                frozenset({*written, *asked}),
                _naming(operation["operationId"], written),
                _naming(operation["operationId"], asked),
            )
