"""Models of other tenants, as far as their owners share them: ``owner/name``, ``owner/name@3``.

Row level security shows no tenant a row of another. What was granted is read through functions of
the database that run as its owner, take the tenant from the transaction, and leave out all that is
the owner's own business: lineage, scores, jobs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.errors import ConflictError, ForbiddenError, NotFoundError
from app.ids import MODEL_VERSION
from app.models.registered import registered_spec
from app.models.resolve import PRODUCTION, resolve_version
from app.models.rights import Answers, Right
from app.models.spec import ModelSpec
from app.models.states import VersionState
from app.models.weights import StoredWeights

_COLUMNS = """owner_id, owner, model_id, model, rights, answers, max_items_per_day, items_today,
    id, number, state, aliases, arch, arch_options, classes, preprocess, preprocess_sha256,
    weights_key, weights_sha256, weights_bytes, parameter_count, sealed_key,
    sealed_sha256"""
_VERSIONS = text(
    f"""
    SELECT {_COLUMNS} FROM shared_versions(:owner, :model, :id)
    WHERE (CAST(:number AS integer) IS NULL OR number = :number)
      AND (CAST(:alias AS text) IS NULL OR CAST(:alias AS text) = ANY(aliases))
    """  # noqa: S608  our own constant
)
_MODELS = text(
    """
    SELECT id, owner, name, rights, answers, max_items_per_day, items_today, aliases,
           version_numbers, created_at
    FROM shared_models()
    WHERE CAST(:after AS text) IS NULL OR id < :after
    ORDER BY id DESC
    LIMIT :limit
    """
)


@dataclass(frozen=True, slots=True)
class SharedModel:
    """A model of another tenant that may be used; ``id`` is the grant's."""

    id: str
    owner: str
    name: str
    rights: list[str]
    answers: str
    max_items_per_day: int | None
    items_today: int
    #: Alias → number of the version it points to.
    aliases: dict[str, int]
    version_numbers: list[int]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class SharedVersion:
    """A version of another tenant's model, and what may be done with it."""

    owner_id: str
    owner: str
    model_id: str
    model: str
    rights: list[str]
    answers: str
    max_items_per_day: int | None
    #: Items that were planned for this tenant today (UTC).
    items_today: int
    id: str
    number: int
    state: str
    aliases: list[str]
    arch: str
    arch_options: dict[str, Any]
    classes: list[str]
    preprocess: dict[str, Any]
    preprocess_sha256: str
    weights_key: str
    weights_sha256: str
    weights_bytes: int
    parameter_count: int | None
    #: As in :class:`app.models.tables.ModelVersion`.
    sealed_key: str | None
    sealed_sha256: str | None

    @property
    def reference(self) -> str:
        """``owner/name@3``."""
        return f"{self.owner}/{self.model}@{self.number}"

    @property
    def spec(self) -> ModelSpec:
        """What the version is apart from its weights.

        Raises:
            ConflictError: ``preprocess_changed``.
        """
        return registered_spec(
            {
                "arch": self.arch,
                "arch_options": self.arch_options,
                "classes": self.classes,
                "preprocess": self.preprocess,
            },
            self.preprocess_sha256,
            self.id,
        )

    @property
    def weights(self) -> StoredWeights:
        """Where its weights lie, among the objects of their owner, and what opens them."""
        return StoredWeights(
            self.owner_id,
            self.id,
            self.weights_key,
            self.weights_bytes,
            self.weights_sha256,
            self.sealed_key,
            self.sealed_sha256,
        )

    def may(self, right: Right) -> bool:
        """Whether the owner has granted the right."""
        return right.value in self.rights

    def may_answer(self, *, labelled: bool) -> bool:
        """Whether images may be recognised with it; ``labelled`` ones come from a dataset."""
        return self.may(Right.RUN) or (labelled and self.may(Right.EVALUATE))

    def blurs(self) -> Answers:
        """How exactly it answers; a word of a newer release is taken for the strictest."""
        return Answers(self.answers) if self.answers in set(Answers) else Answers.TOP1

    def as_kept(self) -> dict[str, Any]:
        """What a job keeps of it, to say which model answered also when the grant has gone."""
        return {
            "owner": self.owner,
            "reference": self.reference,
            "weights_sha256": self.weights_sha256,
            "preprocess_sha256": self.preprocess_sha256,
        }


@dataclass(frozen=True, slots=True)
class Chosen:
    """The version that a job is to run, an own one or a shared one."""

    id: str
    shared: SharedVersion | None = None

    @property
    def columns(self) -> dict[str, Any]:
        """Columns of the job that runs it."""
        if self.shared is None:
            return {"model_version_id": self.id}
        return {"shared_version_id": self.id, "shared_version": self.shared.as_kept()}


def choose_version(
    session: Session, tenant_id: str, reference: str, *, labelled: bool = False
) -> Chosen:
    """The ready version that a predict job names, as it may be run now.

    ``owner/name…`` is a model of another tenant, everything else an own one; an id may be
    either. ``labelled`` images may be recognised by a version granted for ``evaluate``.

    Raises:
        NotFoundError: ``model_not_found``: also where it exists and nothing on it was granted.
        ForbiddenError: ``run_not_granted``.
        ConflictError: ``model_not_ready``.
    """
    if "/" in reference:
        shared = find_shared(session, reference)
    else:
        try:
            return Chosen(resolve_version(session, tenant_id, reference).id)
        except NotFoundError:
            found = shared_version(session, reference)
            if found is None:
                raise
            shared = found
    if not shared.may_answer(labelled=labelled):
        raise not_granted(shared, Right.RUN)
    if shared.state != VersionState.READY:
        raise ConflictError(
            f"model version {reference[:250]!r} is {shared.state}: it takes no new jobs",
            code="model_not_ready",
        )
    return Chosen(shared.id, shared)


def find_shared(session: Session, reference: str) -> SharedVersion:
    """The version of another tenant's model that ``owner/name``, ``…@alias`` or ``…@3`` means.

    Raises:
        NotFoundError: ``model_not_found``, alike whether there is no such model or nothing on it
            was granted.
    """
    owner, _, rest = reference.partition("/")
    name, _, selector = rest.partition("@")
    selector = selector or PRODUCTION
    words: dict[str, Any] = {"owner": owner, "model": name}
    if not (selector.isascii() and selector.isdigit()):
        words["alias"] = selector
    # Longer numbers than PostgreSQL's integer exist nowhere.
    elif len(selector) < 10:
        words["number"] = int(selector)
    else:
        words["number"] = 0
    found = _versions(session, **words)
    if not found:
        raise NotFoundError(
            f"no model {reference[:250]!r} is shared with this tenant", code="model_not_found"
        )
    return found[0]


def shared_version(session: Session, version_id: str) -> SharedVersion | None:
    """The version of this id, if another tenant shares it with this one now."""
    if not version_id.startswith(f"{MODEL_VERSION}_"):
        return None
    return next(iter(_versions(session, id=version_id)), None)


def require_answers(session: Session, version_id: str, *, labelled: bool) -> SharedVersion:
    """The shared version that a job runs, as it is granted now.

    Raises:
        ForbiddenError: ``model_grant_revoked``.
    """
    shared = shared_version(session, version_id)
    if shared is None or not shared.may_answer(labelled=labelled):
        raise ForbiddenError(
            "the owner of the model has taken back the right to run it; what it had answered "
            "before stays",
            code="model_grant_revoked",
        )
    return shared


def list_shared(
    session: Session, *, after: str | None = None, limit: int = 100
) -> tuple[list[SharedModel], bool]:
    """A page of the models that others share with this tenant, and whether more follow."""
    rows = session.execute(_MODELS, {"after": after, "limit": limit + 1}).all()
    return [SharedModel(**row._mapping) for row in rows[:limit]], len(rows) > limit


def not_granted(shared: SharedVersion, right: Right) -> ForbiddenError:
    """The refusal of what a tenant may not do with a model that it may use otherwise."""
    return ForbiddenError(
        f"{shared.owner!r} has not granted {right.value!r} on model {shared.model!r}, only "
        f"{_listed(shared.rights)}",
        code=f"{right.value}_not_granted",
    )


def _versions(session: Session, **words: Any) -> list[SharedVersion]:
    asked = {"owner": None, "model": None, "id": None, "number": None, "alias": None, **words}
    return [SharedVersion(**row._mapping) for row in session.execute(_VERSIONS, asked)]


def _listed(rights: Collection[str]) -> str:
    return " and ".join(rights)
