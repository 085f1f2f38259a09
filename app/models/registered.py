"""The spec of a registered version, read back from its row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from app.errors import ConflictError
from app.models.spec import ModelSpec


def registered_spec(
    body: Mapping[str, Any], preprocess_sha256: str | None, version_id: str
) -> ModelSpec:
    """The spec of a version's columns, if its preprocessing is still the registered one.

    Other preprocessing gives other answers without a word. It differs where a row was edited,
    or where this release reads the same fields differently.

    Raises:
        ConflictError: ``preprocess_changed``.
    """
    try:
        spec = ModelSpec.from_dict(body)
        found = spec.preprocess.digest
    except (TypeError, ValueError) as error:
        raise _preprocess_changed(version_id, str(error)) from error
    if preprocess_sha256 is not None and found != preprocess_sha256:
        raise _preprocess_changed(
            version_id, f"its digest is {found}, and {preprocess_sha256} was registered"
        )
    return spec


def _preprocess_changed(version_id: str, why: str) -> ConflictError:
    return ConflictError(
        f"the preprocessing of model version {version_id!r} is not the one that it was registered "
        f"with ({why}); register the version anew, or run a release that knows its preprocessing",
        code="preprocess_changed",
    )
