"""The catalogue: gates before aliases, promotion and roll-back, versions in and out of use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from flask import Response
from sqlalchemy.orm import Session

from app.api.audit import describe, record
from app.api.idempotency import once
from app.api.models import show_version
from app.api.parts import parts, principal
from app.api.replies import Reply, as_json, page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.catalogue import (
    AliasAnswer,
    AliasMoveAnswer,
    AliasMovePage,
    EvaluationAnswer,
    EvaluationPage,
    GateAnswer,
    PromoteVersion,
    SetGate,
    VerdictAnswer,
)
from app.api.schemas.library import AliasPath, ModelVersionAnswer, MoveAlias, VersionPath
from app.audit.actions import Action
from app.models.evaluations import list_evaluations
from app.models.gate import GateRule, find_gate, remove_gate, set_gate
from app.models.promote import Move, list_moves, promote_version, roll_back
from app.models.promote import move_alias as point_alias
from app.models.resolve import find_alias, get_version
from app.models.retire import archive_version, restore_version
from app.tenants.scopes import Scope

resource = Resource(
    "catalogue", "Catalogue", "Which version serves, why, and how good the others are."
)


@resource.route_as(
    "get",
    "/models/<name>/aliases/<alias>",
    answers={200: AliasAnswer},
    scope=Scope.MODELS_READ,
)
def get_alias(path: AliasPath) -> Response:
    """Read where an alias points, and the gate before it."""
    with parts().db.tenant(principal().tenant_id) as session:
        return send(_show_alias(session, path))


@resource.route_as(
    "put",
    "/models/<name>/aliases/<alias>",
    answers={200: ModelVersionAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[409],
    audit=Action.MODEL_ALIAS_MOVED,
)
def move_alias(path: AliasPath, body: MoveAlias) -> Response:
    """Point an alias at a ready version of the model.

    Jobs took their version when they were submitted: those that run do not change. Where a gate
    stands before the alias, promote the version instead.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, f"{path.name}@{body.version}")
        point_alias(session, tenant_id, path.name, path.alias, version.id)
        record(
            session,
            target=f"{path.name}@{path.alias}",
            version=body.version,
            version_id=version.id,
        )
        return send(show_version(session, path.name, body.version))


@resource.route_as(
    "get",
    "/models/<name>/aliases/<alias>/moves",
    answers={200: AliasMovePage},
    scope=Scope.MODELS_READ,
)
def list_alias_moves(path: AliasPath, query: PageQuery) -> Response:
    """List every move of an alias, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = list_moves(
            session, tenant_id, path.name, path.alias, after=query.after, limit=query.limit
        )
    return send(AliasMovePage(**page_fields(rows, has_more, _show_move)))


@resource.route_as(
    "put",
    "/models/<name>/aliases/<alias>/gate",
    answers={200: GateAnswer},
    scope=Scope.ADMIN,
    audit=Action.GATE_SET,
)
def put_gate(path: AliasPath, body: SetGate) -> Response:
    """Put a gate before an alias.

    From now on only a promotion moves the alias, and only to a version that is good enough; a
    job that makes a version and wants the alias for it is asked the same.
    """
    tenant_id = principal().tenant_id
    rule = GateRule(**body.model_dump())
    with parts().db.tenant(tenant_id) as session:
        set_gate(session, tenant_id, path.name, path.alias, rule)
        record(session, target=f"{path.name}@{path.alias}", **body.model_dump())
    return send(GateAnswer(**asdict(rule)))


@resource.route_as(
    "delete",
    "/models/<name>/aliases/<alias>/gate",
    answers={204: None},
    scope=Scope.ADMIN,
    audit=Action.GATE_REMOVED,
)
def delete_gate(path: AliasPath) -> Response:
    """Take the gate before an alias away."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        remove_gate(session, tenant_id, path.name, path.alias)
        record(session, target=f"{path.name}@{path.alias}")
    return Response(status=204)


@resource.route_as(
    "post",
    "/models/<name>/aliases/<alias>/promote",
    answers={200: AliasAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[409],
    audit=Action.MODEL_PROMOTED,
)
def promote(path: AliasPath, body: PromoteVersion) -> Response:
    """Point an alias at a version that is good enough.

    It is compared with the version in place on the newest images that both were evaluated on;
    `gate_not_passed` and `evaluation_missing` say what was found, and the alias stays.
    """

    def work(session: Session) -> Reply:
        tenant_id = principal().tenant_id
        rule = None if body.gate is None else GateRule(**body.gate.model_dump())
        verdict = promote_version(
            session, tenant_id, path.name, path.alias, number=body.version, rule=rule
        )
        describe(
            target=f"{path.name}@{path.alias}",
            version=body.version,
            metric=verdict.metric,
            candidate=verdict.candidate,
            incumbent=verdict.incumbent,
        )
        return Reply(200, as_json(_show_alias(session, path)))

    return once(work)


@resource.route_as(
    "post",
    "/models/<name>/aliases/<alias>/rollback",
    answers={200: AliasMoveAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[409],
    audit=Action.MODEL_ROLLED_BACK,
)
def rollback(path: AliasPath) -> Response:
    """Point an alias at the version that it pointed to before; no gate is asked."""

    def work(session: Session) -> Reply:
        move = roll_back(session, principal().tenant_id, path.name, path.alias)
        describe(target=f"{path.name}@{path.alias}", version=move.to_number)
        return Reply(200, as_json(_show_move(move)))

    return once(work)


@resource.route_as(
    "post",
    "/models/<name>/versions/<number>/archive",
    answers={200: ModelVersionAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[409],
    audit=Action.MODEL_ARCHIVED,
)
def archive(path: VersionPath) -> Response:
    """Let a version take no new jobs; those under way go on."""
    return _retire(path, archive_version)


@resource.route_as(
    "post",
    "/models/<name>/versions/<number>/restore",
    answers={200: ModelVersionAnswer},
    scope=Scope.MODELS_WRITE,
    problems=[409],
    audit=Action.MODEL_RESTORED,
)
def restore(path: VersionPath) -> Response:
    """Let an archived version take jobs again, also one that is about to be deleted."""
    return _retire(path, restore_version)


@resource.route_as(
    "get",
    "/models/<name>/versions/<number>/evaluations",
    answers={200: EvaluationPage},
    scope=Scope.MODELS_READ,
)
def list_model_evaluations(path: VersionPath, query: PageQuery) -> Response:
    """List how good a version was on which images, newest first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, f"{path.name}@{path.number}")
        rows, has_more = list_evaluations(
            session, tenant_id, version.id, after=query.after, limit=query.limit
        )
    return send(EvaluationPage(**page_fields(rows, has_more, EvaluationAnswer.model_validate)))


def _retire(path: VersionPath, act: Callable[[Session, str, str, int], None]) -> Response:
    def work(session: Session) -> Reply:
        act(session, principal().tenant_id, path.name, path.number)
        describe(target=f"{path.name}@{path.number}")
        return Reply(200, as_json(show_version(session, path.name, path.number)))

    return once(work)


def _show_alias(session: Session, path: AliasPath) -> AliasAnswer:
    tenant_id = principal().tenant_id
    alias, version = find_alias(session, tenant_id, path.name, path.alias)
    gate = find_gate(session, tenant_id, version.model_id, path.alias)
    moves, _ = list_moves(session, tenant_id, path.name, path.alias, limit=1)
    verdict = moves[0].verdict if moves else None
    return AliasAnswer(
        model=path.name,
        alias=path.alias,
        version=version.number,
        version_id=version.id,
        gate=None if gate is None else GateAnswer(**asdict(gate)),
        verdict=None if verdict is None else VerdictAnswer.model_validate(verdict),
        updated_at=alias.updated_at,
    )


def _show_move(move: Move) -> AliasMoveAnswer:
    return AliasMoveAnswer.model_validate(
        {
            "id": move.id,
            "alias": move.alias,
            "kind": move.kind,
            "from_version": move.from_number,
            "to_version": move.to_number,
            "verdict": move.verdict,
            "created_at": move.created_at,
        }
    )
