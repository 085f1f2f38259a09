"""The states of a model version, how its aliases move, and what gates compare: all words."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Literal


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
    #: Given up by its owner, and used by no open job: the weights are gone or go next, number,
    #: scores and lineage stay. The dispatcher's clean-up moves it here, or its owner where there
    #: never were weights.
    DELETED = "deleted"


VERSION_SOURCES: Mapping[VersionState, frozenset[VersionState]] = {
    VersionState.READY: frozenset({VersionState.PENDING, VersionState.ARCHIVED}),
    VersionState.FAILED: frozenset({VersionState.PENDING}),
    VersionState.ARCHIVED: frozenset({VersionState.READY}),
    VersionState.DELETED: frozenset({VersionState.ARCHIVED, VersionState.FAILED}),
}


class MoveKind(enum.StrEnum):
    """How an alias came to point where it points."""

    #: Set by hand, or by the job that made the version, where no gate stands before the alias.
    MOVED = "moved"
    #: Let through by a gate.
    PROMOTED = "promoted"
    #: Put back to the version before.
    ROLLED_BACK = "rolled_back"


#: What gates compare: shares of right answers, all of them better the higher.
GateMetric = Literal["accuracy", "precision", "recall", "f1"]
