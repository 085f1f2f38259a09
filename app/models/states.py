"""The states of a model version: what each means, and who moves a row out of it."""

from __future__ import annotations

import enum
from collections.abc import Mapping


class VersionState(enum.StrEnum):
    """Where a model version stands."""

    #: Announced by an import or fine-tune job that is not done yet; that job moves it on.
    PENDING = "pending"
    #: Weights checked and stored; may serve.
    READY = "ready"
    #: Kept for its lineage, takes no new jobs.
    ARCHIVED = "archived"
    #: Its job failed; never served.
    FAILED = "failed"


VERSION_SOURCES: Mapping[VersionState, frozenset[VersionState]] = {
    VersionState.READY: frozenset({VersionState.PENDING}),
    VersionState.FAILED: frozenset({VersionState.PENDING}),
    VersionState.ARCHIVED: frozenset({VersionState.READY}),
}
