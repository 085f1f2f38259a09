"""How to call every route of the document, and what a route's bodies may name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    "finetune": (
        "models:write",
        {"kind": "finetune", "model": "digits", "input": {"dataset": "digits"}},
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


def routes() -> Iterator[Route]:
    """Every operation of the OpenAPI document."""
    found = offline_document()
    shared = found["components"]["parameters"]
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            listed = [
                shared[one["$ref"].rpartition("/")[2]] if "$ref" in one else one
                for one in operation.get("parameters", ())
            ]
            media_types = list(operation.get("requestBody", {}).get("content", {}))
            scopes = operation.get("security", [{"key": []}])[0]["key"]
            yield Route(
                operation["operationId"],
                method,
                path,
                scopes[0] if scopes else None,
                tuple(one["name"] for one in listed if one["in"] == "path"),
                media_types[0] if media_types else None,
                frozenset(one["name"] for one in listed if one["in"] == "query"),
            )
