"""Answers: a schema's value as JSON, pages, and the headers that go with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from flask import Response
from pydantic import BaseModel

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it is bytes; what an Idempotency-Key stands for."""

    status: int
    body: dict[str, Any]
    location: str | None = None

    def response(self, **headers: str) -> Response:
        """The answer with further headers, underscores standing for hyphens."""
        response = json_response(json.dumps(self.body, ensure_ascii=False), self.status)
        if self.location is not None:
            response.headers["Location"] = self.location
        for name, value in headers.items():
            response.headers[name.replace("_", "-")] = value
        return response


def as_json(answer: BaseModel) -> dict[str, Any]:
    """Plain JSON values of an answer."""
    return answer.model_dump(mode="json", by_alias=True)


def send(answer: BaseModel, status: int = 200) -> Response:
    """An answer as bytes."""
    return json_response(answer.model_dump_json(by_alias=True), status)


def json_response(text: str, status: int = 200) -> Response:
    """JSON text as a response."""
    return Response(text, status, content_type="application/json")


def page_fields(
    rows: Sequence[T],
    has_more: bool,
    show: Callable[[T], Any],
    id_of: Callable[[T], str] = lambda row: row.id,  # type: ignore[attr-defined]
) -> dict[str, Any]:
    """The fields that every list has."""
    return {
        "data": [show(row) for row in rows],
        "first_id": id_of(rows[0]) if rows else None,
        "last_id": id_of(rows[-1]) if rows else None,
        "has_more": has_more,
    }
