"""Gates: what a version must show before an alias may point at it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_args

from sqlalchemy import delete, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.errors import InvalidInputError, NotFoundError
from app.models.evaluations import NamedEvaluation, latest_common, latest_evaluation
from app.models.resolve import get_model
from app.models.states import GateMetric
from app.models.tables import Gate, ModelVersion
from app.names import check_alias

METRICS: tuple[str, ...] = get_args(GateMetric)
#: Scores are means of single-precision numbers: what differs by less does not differ.
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class GateRule:
    """What is compared, and by how much the new version must be better.

    ``margin`` below 0 says by how much it may be worse; ``minimum`` holds whatever is in place.
    Only evaluations on ``dataset`` (a name) count where one is given.
    """

    metric: str
    margin: float = 0.0
    minimum: float | None = None
    dataset: str | None = None

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InvalidInputError(
                f"a gate cannot compare {self.metric[:60]!r}; take one of {', '.join(METRICS)}",
                code="gate_invalid",
            )
        if not (math.isfinite(self.margin) and -1 <= self.margin <= 1):
            raise InvalidInputError("margin must be from -1 to 1", code="gate_invalid")
        if self.minimum is not None and not 0 <= self.minimum <= 1:
            raise InvalidInputError("minimum must be from 0 to 1", code="gate_invalid")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a gate found; ``reason`` is a sentence for people."""

    passed: bool
    #: ``evaluation_missing`` or ``gate_not_passed`` where it did not pass.
    code: str | None
    reason: str
    metric: str
    margin: float
    minimum: float | None
    #: The metric of the version that would come, and of the one in place.
    candidate: float | None = None
    incumbent: float | None = None
    #: ``digits@3 test``: the images that both answered.
    measured_on: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def set_gate(session: Session, tenant_id: str, model: str, alias: str, rule: GateRule) -> None:
    """Put a gate before an alias, or another one than there is.

    Raises:
        InvalidInputError: ``alias_name_invalid``.
        NotFoundError: ``model_not_found`` or ``dataset_not_found``.
    """
    values: dict[str, Any] = {
        "metric": rule.metric,
        "margin": rule.margin,
        "minimum": rule.minimum,
        "dataset_id": _dataset_id(session, tenant_id, rule.dataset),
    }
    session.execute(
        insert(Gate)
        .values(
            model_id=get_model(session, tenant_id, model).id,
            alias=check_alias(alias),
            tenant_id=tenant_id,
            **values,
        )
        .on_conflict_do_update(
            index_elements=[Gate.model_id, Gate.alias],
            set_={**values, "updated_at": func.now()},
        )
    )


def remove_gate(session: Session, tenant_id: str, model: str, alias: str) -> None:
    """Let the alias be moved without a gate from now on.

    Raises:
        NotFoundError: ``model_not_found`` or ``gate_not_found``.
    """
    found = get_model(session, tenant_id, model)
    gone = session.execute(
        delete(Gate)
        .where(Gate.tenant_id == tenant_id, Gate.model_id == found.id, Gate.alias == alias)
        .returning(Gate.alias)
    ).first()
    if gone is None:
        raise NotFoundError(f"there is no gate before {model}@{alias[:100]}", code="gate_not_found")


def find_gate(session: Session, tenant_id: str, model_id: str, alias: str) -> GateRule | None:
    """The gate before an alias, if there is one."""
    row = session.execute(
        select(Gate, Dataset.name)
        .outerjoin(Dataset, Dataset.id == Gate.dataset_id)
        .where(Gate.tenant_id == tenant_id, Gate.model_id == model_id, Gate.alias == alias)
    ).one_or_none()
    if row is None:
        return None
    gate, dataset = row
    return GateRule(gate.metric, gate.margin, gate.minimum, dataset)


def judge(
    session: Session,
    tenant_id: str,
    rule: GateRule,
    *,
    candidate: ModelVersion,
    incumbent: ModelVersion | None,
) -> Verdict:
    """Whether ``candidate`` may take the place of ``incumbent``, and why.

    Both are compared on the newest split of a dataset version that both were evaluated on. The
    candidate must have answered at least as many of its images: what a version cannot answer is in
    none of its scores, so that one which knows the easy classes alone would win. One that answers
    more may come, such as where a class was added. Without a version in place only ``minimum``
    counts.

    Raises:
        NotFoundError: ``dataset_not_found``.
    """
    dataset_id = _dataset_id(session, tenant_id, rule.dataset)
    ours: NamedEvaluation | None
    theirs: NamedEvaluation | None = None
    if incumbent is None:
        ours = latest_evaluation(session, tenant_id, candidate.id, rule.metric, dataset_id)
    else:
        pair = latest_common(
            session,
            tenant_id,
            candidate_id=candidate.id,
            incumbent_id=incumbent.id,
            metric=rule.metric,
            dataset_id=dataset_id,
        )
        ours, theirs = pair or (None, None)
    if ours is None:
        return _missing(rule, _not_evaluated(rule, incumbent))
    where = " ".join(filter(None, (ours.dataset, ours.split)))
    if theirs is not None and ours.items < theirs.items:
        return _missing(
            rule,
            f"on {where} it answered {ours.items} images and the version in place {theirs.items}: "
            "images that could not be read, or whose class a version does not know, are in no "
            "score; it must answer as many",
        )
    found = ours.metrics[rule.metric]
    place = theirs.metrics[rule.metric] if theirs is not None else None
    return _compare(rule, found, place, where)


def _compare(rule: GateRule, found: float, place: float | None, where: str) -> Verdict:
    wanted = [
        bound
        for bound in (rule.minimum, None if place is None else place + rule.margin)
        if bound is not None
    ]
    least = max(wanted, default=None)
    passed = least is None or found >= least - _TOLERANCE
    reason = f"{rule.metric} is {found:.4f} on {where}"
    if place is not None:
        reason += f"; the version in place has {place:.4f}"
    if least is not None:
        reason += f", and {'at least' if passed else 'the gate asks for'} {least:.4f}"
        reason += " was asked" if passed else ""
    return Verdict(
        passed=passed,
        code=None if passed else "gate_not_passed",
        reason=reason,
        metric=rule.metric,
        margin=rule.margin,
        minimum=rule.minimum,
        candidate=found,
        incumbent=place,
        measured_on=where,
    )


def _not_evaluated(rule: GateRule, incumbent: ModelVersion | None) -> str:
    where = f"dataset {rule.dataset!r}" if rule.dataset else "any dataset"
    both = "it and the version in place were not evaluated on the same images of"
    return (
        f"{'it was not evaluated on' if incumbent is None else both} {where}: evaluate "
        f"{'it' if incumbent is None else 'both'} on one dataset version first; `darkroom models "
        "promote` does so with --evaluate"
    )


def _missing(rule: GateRule, reason: str) -> Verdict:
    return Verdict(
        passed=False,
        code="evaluation_missing",
        reason=reason,
        metric=rule.metric,
        margin=rule.margin,
        minimum=rule.minimum,
    )


def _dataset_id(session: Session, tenant_id: str, name: str | None) -> str | None:
    if name is None:
        return None
    found = session.scalar(
        select(Dataset.id).where(Dataset.tenant_id == tenant_id, Dataset.name == name)
    )
    if found is None:
        raise NotFoundError(f"there is no dataset {name[:120]!r}", code="dataset_not_found")
    return found
