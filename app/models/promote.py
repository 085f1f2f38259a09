"""Moves the aliases of a model: which of its versions a name means."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from app.errors import ConflictError, InvalidInputError, NotFoundError
from app.ids import ALIAS_MOVE, id_at
from app.models.gate import GateRule, Verdict, find_gate, judge
from app.models.resolve import get_model, get_version
from app.models.states import MoveKind, VersionState
from app.models.tables import Alias, AliasMove, Model, ModelVersion
from app.names import check_alias


@dataclass(frozen=True, slots=True)
class Move:
    """A move of an alias as people read it; numbers are those of versions."""

    id: str
    alias: str
    kind: str
    from_number: int | None
    to_number: int
    verdict: dict[str, object] | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class _Aim:
    """Which alias shall point where."""

    model: Model
    alias: str
    version: ModelVersion


def move_alias(session: Session, tenant_id: str, model: str, alias: str, version_id: str) -> None:
    """Point ``model@alias`` at a ready version of that model, from the next job on.

    Jobs resolved their version when they were submitted, so those that run do not change.

    Raises:
        InvalidInputError: ``alias_name_invalid``.
        NotFoundError: ``model_not_found``: no such model, or it has no such version.
        ConflictError: ``model_not_ready``, or ``alias_gated`` where a gate stands before it.
    """
    check_alias(alias)
    found = _lock_model(session, tenant_id, model)
    version = _ready_version(session, tenant_id, found, version_id)
    gate = find_gate(session, tenant_id, found.id, alias)
    if gate is not None:
        raise ConflictError(
            f"{model}@{alias} has a gate that compares {gate.metric}: promote version "
            f"{version.number}, and it moves where the gate lets it through",
            code="alias_gated",
        )
    _point(session, _Aim(found, alias, version), MoveKind.MOVED)


def promote_version(
    session: Session,
    tenant_id: str,
    model: str,
    alias: str,
    *,
    number: int,
    rule: GateRule | None = None,
) -> Verdict:
    """Point ``model@alias`` at version ``number`` if the gate lets it through.

    ``rule`` counts where no gate stands before the alias; where one does, it counts alone.

    Raises:
        InvalidInputError: ``alias_name_invalid``; ``gate_missing``: there is neither gate nor rule.
        NotFoundError: ``model_not_found`` or ``dataset_not_found``.
        ConflictError: ``model_not_ready``, ``gate_not_passed`` or ``evaluation_missing``.
    """
    check_alias(alias)
    found = _lock_model(session, tenant_id, model)
    wanted = get_version(session, tenant_id, f"{model}@{number}")
    version = _ready_version(session, tenant_id, found, wanted.id)
    rule = find_gate(session, tenant_id, found.id, alias) or rule
    if rule is None:
        raise InvalidInputError(
            f"{model}@{alias} has no gate: name a metric and a margin, or set a gate first",
            code="gate_missing",
        )
    aim = _Aim(found, alias, version)
    verdict = _judge(session, aim, rule)
    if not verdict.passed:
        assert verdict.code is not None
        raise ConflictError(
            f"{model}@{number} does not become @{alias}: {verdict.reason}", code=verdict.code
        )
    _point(session, aim, MoveKind.PROMOTED, verdict)
    return verdict


def settle_alias(
    session: Session, tenant_id: str, model: str, alias: str, version_id: str
) -> Verdict | None:
    """What a job does with the version it made: move the alias, or ask its gate.

    The answer is the gate's verdict, None where no gate stands before the alias.

    Raises:
        NotFoundError: ``model_not_found``.
        ConflictError: ``model_not_ready``.
    """
    found = _lock_model(session, tenant_id, model)
    aim = _Aim(found, alias, _ready_version(session, tenant_id, found, version_id))
    rule = find_gate(session, tenant_id, found.id, alias)
    if rule is None:
        _point(session, aim, MoveKind.MOVED)
        return None
    verdict = _judge(session, aim, rule)
    if verdict.passed:
        _point(session, aim, MoveKind.PROMOTED, verdict)
    return verdict


def roll_back(session: Session, tenant_id: str, model: str, alias: str) -> Move:
    """Point an alias where it pointed before the version that it points to now.

    Asked again it goes a step further back. No gate is asked: what is taken back served before.

    Raises:
        NotFoundError: ``model_not_found``; there is no such alias.
        ConflictError: ``nothing_to_roll_back``; ``model_not_ready``: the version before is
            archived or deleted.
    """
    found = _lock_model(session, tenant_id, model)
    current = get_version(session, tenant_id, f"{model}@{check_alias(alias)}")
    before = _before(session, found, alias, current)
    if before is None:
        raise ConflictError(
            f"{model}@{alias} pointed nowhere before version {current.number}",
            code="nothing_to_roll_back",
        )
    version = _ready_version(session, tenant_id, found, before)
    _point(session, _Aim(found, alias, version), MoveKind.ROLLED_BACK)
    return list_moves(session, tenant_id, model, alias, limit=1)[0][0]


def list_moves(
    session: Session,
    tenant_id: str,
    model: str,
    alias: str,
    *,
    after: str | None = None,
    limit: int = 100,
) -> tuple[list[Move], bool]:
    """A page of an alias's moves, newest first, and whether more follow.

    Raises:
        NotFoundError: ``model_not_found``.
    """
    found = get_model(session, tenant_id, model)
    was, now = aliased(ModelVersion), aliased(ModelVersion)
    statement = (
        select(AliasMove, was.number, now.number)
        .outerjoin(was, was.id == AliasMove.from_version_id)
        .join(now, now.id == AliasMove.to_version_id)
        .where(
            AliasMove.tenant_id == tenant_id,
            AliasMove.model_id == found.id,
            AliasMove.alias == alias,
        )
    )
    if after is not None:
        statement = statement.where(AliasMove.id < after)
    rows = session.execute(statement.order_by(AliasMove.id.desc()).limit(limit + 1)).all()
    moves = [
        Move(row.id, row.alias, row.kind, was_number, now_number, row.verdict, row.created_at)
        for row, was_number, now_number in rows[:limit]
    ]
    return moves, len(rows) > limit


def _lock_model(session: Session, tenant_id: str, name: str) -> Model:
    """The model, its row locked: two moves of its aliases come one after the other."""
    found = get_model(session, tenant_id, name)
    # Not against the key: a job that fills a version and makes it ready in one transaction holds
    # its model's key, since PostgreSQL checks anew the links of what the transaction has written.
    lock = select(Model.id).where(Model.id == found.id).with_for_update(key_share=True)
    session.execute(lock)
    return found


def _before(session: Session, model: Model, alias: str, current: ModelVersion) -> str | None:
    """Where an alias pointed before the last move to ``current`` that was not taken back."""
    is_back = AliasMove.kind == MoveKind.ROLLED_BACK
    # From the newest on, each roll-back takes back one move; the first that none took stands.
    depth = func.sum(case((is_back, 1), else_=-1)).over(order_by=AliasMove.id.desc())
    moves = (
        select(AliasMove.id, AliasMove.from_version_id, AliasMove.to_version_id, depth.label("at"))
        .where(
            AliasMove.tenant_id == model.tenant_id,
            AliasMove.model_id == model.id,
            AliasMove.alias == alias,
        )
        .subquery()
    )
    move = session.execute(
        select(moves).where(moves.c.at == -1).order_by(moves.c.id.desc()).limit(1)
    ).one_or_none()
    # A release from before moves were kept may have moved it since.
    return move.from_version_id if move is not None and move.to_version_id == current.id else None


def _ready_version(session: Session, tenant_id: str, model: Model, version_id: str) -> ModelVersion:
    version = session.scalar(
        select(ModelVersion)
        .where(
            ModelVersion.tenant_id == tenant_id,
            ModelVersion.model_id == model.id,
            ModelVersion.id == version_id,
        )
        .execution_options(populate_existing=True)
    )
    if version is None:
        raise NotFoundError(
            f"model {model.name!r} has no version {version_id[:60]!r}", code="model_not_found"
        )
    # Before the lock: a job that just makes it ready holds the row, and waits for the model next.
    _require_ready(model, version)
    # The version must not be archived between this look and the move.
    session.refresh(version, with_for_update={"read": True})
    _require_ready(model, version)
    return version


def _require_ready(model: Model, version: ModelVersion) -> None:
    if version.state != VersionState.READY:
        raise ConflictError(
            f"model version {model.name}@{version.number} is {version.state}; an alias points "
            "only at a ready one",
            code="model_not_ready",
        )


def _judge(session: Session, aim: _Aim, rule: GateRule) -> Verdict:
    incumbent = session.scalar(
        select(ModelVersion)
        .join(Alias, Alias.version_id == ModelVersion.id)
        .where(*_is(aim), ModelVersion.id != aim.version.id)
    )
    return judge(session, aim.version.tenant_id, rule, candidate=aim.version, incumbent=incumbent)


def _point(session: Session, aim: _Aim, kind: MoveKind, verdict: Verdict | None = None) -> None:
    before = session.scalar(select(Alias.version_id).where(*_is(aim)))
    if before == aim.version.id:
        return
    target = {"model_id": aim.model.id, "tenant_id": aim.version.tenant_id}
    fresh = insert(Alias).values(name=aim.alias, version_id=aim.version.id, **target)
    session.execute(
        fresh.on_conflict_do_update(
            index_elements=[Alias.model_id, Alias.name],
            set_={"version_id": fresh.excluded.version_id, "updated_at": func.now()},
        )
    )
    # One clock for the moves of all machines, since their ids say which came last.
    now = session.scalars(select(func.extract("epoch", func.clock_timestamp()))).one()
    session.add(
        AliasMove(
            id=id_at(ALIAS_MOVE, float(now)),
            alias=aim.alias,
            kind=kind,
            from_version_id=before,
            to_version_id=aim.version.id,
            verdict=None if verdict is None else verdict.as_dict(),
            **target,
        )
    )
    session.flush()


def _is(aim: _Aim) -> list[ColumnElement[bool]]:
    return [
        Alias.tenant_id == aim.version.tenant_id,
        Alias.model_id == aim.model.id,
        Alias.name == aim.alias,
    ]
