"""What all schemas share: strict requests, honest answers, bounded words."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

#: One id of any kind, such as ``job_01k8…``.
ID_PATTERN = r"^[a-z]{3}_[0-9a-hjkmnp-tv-z]{26}$"
_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
S3_PATTERN = r"^s3://[^/\x00-\x1f\x7f]+(/[^\x00-\x1f\x7f]*)?$"
_BIGGEST = 2**63 - 1
#: What to tell a client whose text does not match.
_PATTERN_WORDS = {
    ID_PATTERN: "is no id, such as job_… with 26 letters and digits",
    _NAME_PATTERN: "is no name: use 1 to 100 letters, digits, '.', '_' or '-', and begin with a "
    "letter or digit",
    S3_PATTERN: "is not of the form s3://bucket/key",
}


def id_of(prefix: str) -> StringConstraints:
    """What ids with this prefix look like."""
    return StringConstraints(pattern=ID_PATTERN.replace("[a-z]{3}", prefix, 1), max_length=30)


def pattern_words(pattern: str) -> str | None:
    """What is wrong with a text that does not match, or None where only the pattern says it."""
    if pattern.endswith(ID_PATTERN.removeprefix("^[a-z]{3}")) and pattern != ID_PATTERN:
        return f"is no id of the form {pattern[1:4]}_… with 26 letters and digits"
    return _PATTERN_WORDS.get(pattern)


def free_text(max_length: int, *, min_length: int = 1) -> StringConstraints:
    """Any text without NUL, which PostgreSQL cannot store."""
    return StringConstraints(pattern=r"^[^\x00]*$", min_length=min_length, max_length=max_length)


def _written_out(value: Any) -> Any:
    """Refuse a number where a moment is meant: the library takes it for seconds since 1970."""
    if isinstance(value, str) and value[4:5] != "-":
        raise ValueError("write it as RFC 3339 does, such as 2026-01-31T12:00:00Z")
    return value


#: A moment in a query.
Moment = Annotated[AwareDatetime, BeforeValidator(_written_out)]

AnyId = Annotated[str, StringConstraints(pattern=ID_PATTERN, max_length=30)]
JobId = Annotated[str, id_of("job")]
UploadId = Annotated[str, id_of("upl")]
ArtifactId = Annotated[str, id_of("art")]
KeyId = Annotated[str, id_of("key")]
WebhookId = Annotated[str, id_of("whk")]
DeliveryId = Annotated[str, id_of("dlv")]

#: Names that clients choose; :mod:`app.names` holds the rule.
Name = Annotated[str, StringConstraints(pattern=_NAME_PATTERN, max_length=100)]
Number = Annotated[int, Field(ge=1, le=2**31 - 1)]
#: ``name``, ``name@alias``, ``name@3`` or an id.
Reference = Annotated[
    str,
    StringConstraints(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[A-Za-z0-9][A-Za-z0-9._-]{0,99})?$",
        max_length=201,
    ),
]
Arch = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_]{0,99}$", max_length=100)]


#: Key-value pairs of the client's own that are kept and given back.
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[^\x00]+$", max_length=64)],
        Annotated[str, free_text(1024, min_length=0)]
        | bool
        | Annotated[int, Field(ge=-_BIGGEST, le=_BIGGEST)]
        | Annotated[float, Field(allow_inf_nan=False)]
        | None,
    ],
    Field(
        max_length=64,
        # Their pattern alone would allow other names beside those that match.
        json_schema_extra={"propertyNames": {"minLength": 1, "maxLength": 64}},
    ),
]


class Request(BaseModel):
    """A request body: nothing unknown, nothing converted, only finite numbers."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Parameters(BaseModel):
    """Query or path parameters: nothing unknown; words become numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    @classmethod
    def model_json_schema(cls, *args: Any, **words: Any) -> dict[str, Any]:
        """The schema, made once: flask-openapi asks for it with every request."""
        if not args and not words:
            return _plain_schema(cls)
        return super().model_json_schema(*args, **words)


@cache
def _plain_schema(parameters: type[Parameters]) -> dict[str, Any]:
    return super(Parameters, parameters).model_json_schema()


class Answer(BaseModel):
    """A response body."""

    model_config = ConfigDict(extra="forbid", from_attributes=True, ser_json_inf_nan="null")


class PageQuery(Parameters):
    """Where a page of a list begins, and how long it is."""

    after: AnyId | None = Field(
        None, description="The `last_id` of the page before; leave it out for the first page."
    )
    limit: int = Field(50, ge=1, le=1000, description="At most so many entries.")


class PageAnswer(Answer):
    """A page of a list, by keyset."""

    first_id: str | None = Field(description="Id of the first entry; null on an empty page.")
    last_id: str | None = Field(description="Id of the last entry: the next page's `after`.")
    has_more: bool = Field(description="Whether more entries follow.")


class Fault(Answer):
    """One fault inside one input."""

    model_config = ConfigDict(extra="allow")

    detail: str = Field(description="What is wrong.")
    pointer: str | None = Field(
        None, description="Where, as a JSON pointer (RFC 6901) or the name of a parameter."
    )
    line: int | None = Field(None, description="Line of a manifest or a labels file.")


class JobError(Answer):
    """Why a job or an item failed."""

    model_config = ConfigDict(extra="allow")

    code: str = Field(description="Stable word for programs.")
    detail: str = Field(description="A sentence for people.")
    errors: list[Fault] | None = Field(None, description="Single faults, at most 100.")
    errors_total: int | None = Field(None, description="How many there are in all.")


class Problem(Answer):
    """Why a request was refused (RFC 9457)."""

    type: str = Field(description="Always `about:blank`: `code` tells problems apart.")
    title: str = Field(description="The status in words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="A sentence for people: what is wrong and what to do.")
    code: str = Field(description="Stable word for programs.")
    request_id: str = Field(description="Name it when you report a fault; the log has it too.")
    errors: list[Fault] | None = Field(None, description="Single faults inside the input.")
    errors_total: int | None = Field(None, description="How many there are in all.")
