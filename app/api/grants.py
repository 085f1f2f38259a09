"""Sharing: who else may use a model, and what others share with this tenant."""

from __future__ import annotations

from typing import TypeVar

from flask import Response

from app.api.audit import record
from app.api.parts import parts, principal
from app.api.replies import page_fields, send
from app.api.resource import Resource
from app.api.schemas.base import PageQuery
from app.api.schemas.grants import (
    BudgetAnswer,
    GiveGrant,
    GrantAnswer,
    GrantPage,
    GrantPath,
    SetBudget,
    SharedModelAnswer,
    SharedModelPage,
)
from app.api.schemas.library import NamePath
from app.api.schemas.service import KeyPath
from app.audit.actions import Action
from app.models import grants
from app.models.shared import SharedModel, list_shared
from app.tenants import budgets
from app.tenants.scopes import Scope

_Answer = TypeVar("_Answer", GrantAnswer, SharedModelAnswer)

resource = Resource("grants", "Sharing", "Models used by other tenants, and how much is asked.")


@resource.route_as(
    "put",
    "/models/<name>/grants/<tenant>",
    answers={200: GrantAnswer},
    scope=Scope.ADMIN,
    audit=Action.GRANT_GIVEN,
)
def give_grant(path: GrantPath, body: GiveGrant) -> Response:
    """Give another tenant rights on a model.

    These and no others from now on, whatever it might before. It names the model
    `owner/name`, and sees of it name, versions, classes and architecture.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        given = grants.give_grant(
            session,
            tenant_id,
            path.name,
            path.tenant,
            rights=body.rights,
            answers=body.answers,
            max_items_per_day=body.max_items_per_day,
        )
        record(session, target=given.id, model=path.name, tenant=path.tenant, **body.model_dump())
    return send(_show(path.name, given))


@resource.route_as(
    "delete",
    "/models/<name>/grants/<tenant>",
    answers={204: None},
    scope=Scope.ADMIN,
    audit=Action.GRANT_REVOKED,
)
def revoke_grant(path: GrantPath) -> Response:
    """Take every right on a model back from a tenant.

    Its new jobs are refused at once, those under way fail with `model_grant_revoked` when their
    next chunk begins. What was answered, or exported, stays with it.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        grant_id = grants.revoke_grant(session, tenant_id, path.name, path.tenant)
        record(session, target=grant_id, model=path.name, tenant=path.tenant)
    return Response(status=204)


@resource.route_as("get", "/models/<name>/grants", answers={200: GrantPage}, scope=Scope.ADMIN)
def list_grants(path: NamePath, query: PageQuery) -> Response:
    """List who else may use a model, newest grant first."""
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        rows, has_more = grants.list_grants(
            session, tenant_id, path.name, after=query.after, limit=query.limit
        )
    return send(GrantPage(**page_fields(rows, has_more, lambda row: _show(path.name, row))))


@resource.route_as("get", "/shared-models", answers={200: SharedModelPage}, scope=Scope.MODELS_READ)
def list_shared_models(query: PageQuery) -> Response:
    """List the models that other tenants share with this one, newest grant first."""
    with parts().db.tenant(principal().tenant_id) as session:
        rows, has_more = list_shared(session, after=query.after, limit=query.limit)
    return send(SharedModelPage(**page_fields(rows, has_more, _show_shared)))


@resource.route_as("get", "/keys/<key_id>/budget", answers={200: BudgetAnswer}, scope=Scope.ADMIN)
def get_budget(path: KeyPath) -> Response:
    """Read how many images a key may have answered in a day.

    Keys that succeed each other by rotation share one budget.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        budget = budgets.budget_of(session, tenant_id, path.key_id)
    return send(_show_budget(budget))


@resource.route_as(
    "put",
    "/keys/<key_id>/budget",
    answers={200: BudgetAnswer},
    scope=Scope.ADMIN,
    audit=Action.KEY_BUDGET_SET,
)
def set_budget(path: KeyPath, body: SetBudget) -> Response:
    """Say how many images a key may have answered in a day.

    Images are counted when their job is planned, retries too, and never given back. A job
    that exceeds the budget is refused, or fails before anything of it is answered, with
    `query_budget_spent`.
    """
    tenant_id = principal().tenant_id
    with parts().db.tenant(tenant_id) as session:
        budget = budgets.set_budget(session, tenant_id, path.key_id, body.max_items_per_day)
        record(session, target=path.key_id, max_items_per_day=body.max_items_per_day)
    return send(_show_budget(budget))


def _show(model: str, grant: grants.GivenGrant) -> GrantAnswer:
    return _as_answer(GrantAnswer, grant, model=model)


def _show_shared(model: SharedModel) -> SharedModelAnswer:
    return _as_answer(SharedModelAnswer, model, model=f"{model.owner}/{model.name}")


def _as_answer(kind: type[_Answer], row: object, *, model: str) -> _Answer:
    """The answer's fields from the row's of the same names, all but the name of the model."""
    read = {field: getattr(row, field) for field in kind.model_fields if field != "model"}
    return kind.model_validate({"model": model, **read})


def _show_budget(budget: budgets.Budget) -> BudgetAnswer:
    return BudgetAnswer(max_items_per_day=budget.max_items_per_day, items_today=budget.items_today)
