"""The audit log as it is asked for and shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from app.api.schemas.base import Answer, Moment, PageAnswer, PageQuery, free_text


class AuditQuery(PageQuery):
    """A page of the audit log."""

    action: Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,40}\.[a-z_]{1,40}$")] | None = (
        Field(None, description="Only this act, such as `key.created`.")
    )
    target: Annotated[str, free_text(200)] | None = Field(
        None, description="Only what was done to this: an id, or `model@alias`."
    )
    actor: Annotated[str, free_text(40)] | None = Field(
        None, description="Only what this key or other tenant (its id) did, or `operator`."
    )
    since: Moment | None = Field(None, description="Only from this moment on.")
    until: Moment | None = Field(None, description="Only before this moment.")


class AuditAnswer(Answer):
    """One act."""

    id: str
    at: datetime
    actor: str = Field(
        description="A key's id; the id of another tenant, that used what is shared with it; or "
        "`operator`: whoever runs the service."
    )
    action: str = Field(description="Stable word for programs.")
    outcome: Literal["done", "denied"]
    target: str | None = Field(description="Id or name of what was acted on.")
    request_id: str | None
    client_address: str | None = Field(description="Where the request came from.")
    details: dict[str, Any]
    seq: int | None = Field(
        description="Place in the chain; null for about a second, until it is chained."
    )
    hash: str | None = Field(description="The link of the chain, in hex.")


class AuditHeadAnswer(Answer):
    """The newest link of the chain: keep it elsewhere, and nothing before it can be rewritten."""

    seq: int
    hash: str


class AuditPage(PageAnswer):
    """A page of the audit log, newest first."""

    data: list[AuditAnswer]
    head: AuditHeadAnswer | None = Field(description="Null before the first entry is chained.")
