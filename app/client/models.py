"""Imports weights, lists versions, moves aliases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.client.errors import ApiError
from app.client.transport import Transport, road
from app.client.values import Job, Model, ModelVersion

#: What a name alone means.
_PRODUCTION = "production"


class Models:
    """``darkroom.models``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def import_weights(
        self,
        model: str,
        *,
        arch: str,
        weights: str,
        classes: Sequence[str] | str,
        alias: str | None = "production",
        preprocess: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Check weights (``upl_…`` or ``torchvision:NAME``) and register them: the import job."""
        body: dict[str, Any] = {
            "arch": arch,
            "weights": weights,
            "classes": classes if isinstance(classes, str) else list(classes),
            "alias": alias,
        }
        if preprocess is not None:
            body["preprocess"] = dict(preprocess)
        answer = self._transport.call(
            "POST", road("models", model, "versions"), json=body, idempotency_key=idempotency_key
        )
        return Job.from_dict(answer.json())

    def list(self) -> Iterator[Model]:
        """Every model."""
        return map(Model.from_dict, self._transport.pages("/v1/models"))

    def versions(self, model: str) -> Iterator[ModelVersion]:
        """The versions of a model."""
        return map(ModelVersion.from_dict, self._transport.pages(road("models", model, "versions")))

    def get(self, model: str, number: int) -> ModelVersion:
        """One version of a model."""
        return ModelVersion.from_dict(
            self._transport.call("GET", road("models", model, "versions", number)).json()
        )

    def find(self, reference: str) -> ModelVersion:
        """The version that ``name`` (its alias ``production``), ``name@alias`` or ``name@3`` means.

        Raises:
            ApiError: ``model_not_found``, as for a job that names it.
        """
        name, _, selector = reference.partition("@")
        if selector.isascii() and selector.isdigit():
            return self.get(name, int(selector))
        alias = selector or _PRODUCTION
        known: list[str] = []
        for version in self.versions(name):
            if alias in version.aliases:
                return version
            known += (f"@{each} (version {version.number})" for each in version.aliases)
        raise ApiError(
            f"model {name!r} has no alias {alias!r}; its aliases are {', '.join(known) or 'none'}",
            code="model_not_found",
            status=404,
        )

    def set_alias(self, model: str, alias: str, number: int) -> ModelVersion:
        """Point ``model@alias`` at version ``number``."""
        answer = self._transport.call(
            "PUT", road("models", model, "aliases", alias), json={"version": number}
        )
        return ModelVersion.from_dict(answer.json())
