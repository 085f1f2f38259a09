"""A resource: routes that each name their scope, and what the document says of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel
from werkzeug.routing import BaseConverter

from app.audit.actions import Action
from app.tenants.scopes import Scope

View = TypeVar("View", bound=Callable[..., Any])

#: What an answer is: a schema, the media type of raw bytes, or nothing.
Form = type[BaseModel] | str | None

#: Forms of answers that a client may take its time for.
_STREAMS = ("*/*", "application/octet-stream", "text/event-stream")

#: What any route may answer: to what is no request, or has too long a head; an outage, our fault.
_ALWAYS = frozenset({400, 414, 431, 500, 503})


@dataclass(frozen=True, slots=True)
class Operation:
    """One route, as the guard and the document see it."""

    method: str
    #: As the document writes it: ``/v1/jobs/{job_id}``.
    path: str
    #: Needs a key at all.
    guarded: bool
    #: The scope that the key must carry; None where the body decides, or any key will do.
    scope: Scope | None
    #: Status → form, or forms that the client chooses from by ``Accept``.
    answers: Mapping[int, Form | tuple[Form, ...]]
    problems: frozenset[int]
    #: Status → names of ``components.headers``.
    headers: Mapping[int, Sequence[str]]
    #: Names of ``components.parameters``: request headers.
    takes: Sequence[str]
    #: The schemas of path and query parameters and of a JSON body.
    parameters: Sequence[type[BaseModel]]
    body: type[BaseModel] | None
    #: Whether no body at all stands for an empty object.
    body_optional: bool
    #: Media types of a body that is no JSON.
    media_types: Sequence[str]
    #: Whether an Idempotency-Key brings the first answer again.
    replays: bool
    #: What the audit log calls it; None where it changes nothing and lets nothing out.
    audit: Action | None

    @property
    def is_long(self) -> bool:
        """Whether a file or a stream passes, which a client may take its time for."""
        forms = [form for each in self.answers.values() for form in _forms(each)]
        streams = any(form in _STREAMS for form in forms)
        return streams or bool(self.media_types)


def id_converter(operations: Iterable[Operation]) -> type[BaseConverter]:
    """What stands for an id in an address: anything but a word of our own addresses.

    So ``/v1/uploads/multipart`` is never the address of an upload, by whatever method, and what is
    merely no id still comes to its route, which asks for a key and says what an id looks like.
    """
    words = {word for each in operations for word in each.path.split("/") if "{" not in word}
    others = "|".join(re.escape(word) for word in sorted(words - {""}))

    class IdConverter(BaseConverter):
        regex = rf"(?!(?:{others})(?:/|\Z))[^/]+"

    return IdConverter


def _forms(answer: Form | tuple[Form, ...]) -> tuple[Form, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


class Resource(APIBlueprint):
    """A blueprint under ``/v1`` whose routes are closed unless they say otherwise."""

    def __init__(
        self, name: str, tag: str, description: str, *, prefix: str | None = "/v1"
    ) -> None:
        super().__init__(
            name,
            __name__,
            url_prefix=prefix,
            abp_tags=[Tag(name=tag, description=description)],
        )
        #: Endpoint → operation.
        self.operations: dict[str, Operation] = {}

    def route_as(
        self,
        method: str,
        rule: str,
        *,
        answers: Mapping[int, Form | tuple[Form, ...]],
        scope: Scope | None = None,
        guarded: bool = True,
        problems: Sequence[int] = (),
        headers: Mapping[int, Sequence[str]] | None = None,
        takes: Sequence[str] = (),
        media_types: Sequence[str] = (),
        body_optional: bool = False,
        replays: bool | None = None,
        audit: Action | None = None,
    ) -> Callable[[View], View]:
        """Register a view: its first docstring line is the summary, its name the operationId.

        Parameters and body are validated by the types of its arguments ``path``, ``query``
        and ``body`` before it runs. A POST ``replays`` unless it says otherwise. Whatever is no
        plain read names its ``audit`` action; see :mod:`app.api.audit` for who writes the entry.
        """

        def register(view: View) -> View:
            hints = get_type_hints(view)
            parameters = [hints[word] for word in ("path", "query") if word in hints]
            body = hints.get("body")
            expected = set(_ALWAYS) | set(problems)
            if guarded:
                expected |= {401, 403, 429}
            if "path" in hints:
                expected.add(404)
            if body is not None or media_types:
                expected |= {408, 413, 415}
            if body is not None or "query" in hints:
                expected.add(422)
            asked = list(takes)
            repeats = method == "post" if replays is None else replays
            if repeats:
                asked.append("IdempotencyKey")
                expected |= {409, 422, 413}
            path = (self.url_prefix or "") + rule.replace("<", "{").replace(">", "}")
            self.operations[f"{self.name}.{view.__name__}"] = Operation(
                method=method,
                path=path,
                guarded=guarded,
                scope=scope,
                answers=answers,
                problems=frozenset(expected),
                headers=headers or {},
                takes=asked,
                parameters=parameters,
                body=body,
                body_optional=body_optional,
                media_types=media_types,
                replays=repeats,
                audit=audit,
            )
            typed = re.sub(r"<(\w+_id)>", r"<id:\1>", rule)
            decorate = getattr(self, method)(typed, operation_id=view.__name__)
            decorate(view)
            return view

        return register
