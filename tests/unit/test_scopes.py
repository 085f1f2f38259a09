import pytest

from app.errors import ForbiddenError
from app.tenants.scopes import Principal, Scope, require


def principal(*scopes: Scope) -> Principal:
    return Principal("ten_1", "key_1", frozenset(scopes))


def test_key_passes_where_it_has_the_scope() -> None:
    require(principal(Scope.JOBS_READ, Scope.EXPORTS), Scope.EXPORTS)


def test_key_without_the_scope_is_told_which_one_it_lacks() -> None:
    with pytest.raises(ForbiddenError, match="'jobs:write'") as caught:
        require(principal(Scope.JOBS_READ), Scope.JOBS_WRITE)
    assert caught.value.code == "scope_missing"


@pytest.mark.parametrize("scope", list(Scope))
def test_admin_has_every_scope(scope: Scope) -> None:
    require(principal(Scope.ADMIN), scope)


@pytest.mark.parametrize("scope", [scope for scope in Scope if scope is not Scope.ADMIN])
def test_no_other_scope_makes_an_admin(scope: Scope) -> None:
    with pytest.raises(ForbiddenError):
        require(principal(scope), Scope.ADMIN)
