"""Imports weights, lists versions, moves aliases, shares models, takes weights out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from app.client.download import Download, OnProgress
from app.client.errors import LOCAL_FILE, ApiError
from app.client.transport import Transport, road
from app.client.values import Grant, Job, Model, ModelVersion, SharedModel

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
        if "/" in name:
            raise ApiError(
                f"{name!r} is a model of another tenant, which alone sees its versions; what it "
                "shares stands in the list of shared models",
                code="model_not_found",
                status=404,
            )
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

    def grant(
        self,
        model: str,
        tenant: str,
        rights: Sequence[str],
        *,
        answers: str = "rounded",
        max_items_per_day: int | None = None,
    ) -> Grant:
        """Let another tenant do this and nothing else with a model; needs the scope ``admin``."""
        body = {
            "rights": [*rights],
            "answers": answers,
            "max_items_per_day": max_items_per_day,
        }
        answer = self._transport.call("PUT", road("models", model, "grants", tenant), json=body)
        return Grant.from_dict(answer.json())

    def revoke(self, model: str, tenant: str) -> None:
        """Take every right on a model back from a tenant."""
        self._transport.call("DELETE", road("models", model, "grants", tenant))

    def grants(self, model: str) -> Iterator[Grant]:
        """Who else may use a model."""
        return map(Grant.from_dict, self._transport.pages(road("models", model, "grants")))

    def shared(self) -> Iterator[SharedModel]:
        """The models that other tenants share with this one."""
        return map(SharedModel.from_dict, self._transport.pages("/v1/shared-models"))

    def export(
        self,
        model: str,
        number: int,
        path: str | Path,
        on_progress: OnProgress | None = None,
    ) -> Path:
        """Write a version's weights to ``path``, a file or folder, and a ``.json`` beside.

        ``model`` is an own one, or ``owner/name``. The file is plain safetensors; the other one
        says what it takes to use it: architecture, preprocessing, classes.

        Raises:
            ApiError: ``export_not_granted``, ``model_not_found``; or as for any download.
        """
        owner, _, name = model.rpartition("/")
        query = {"owner": owner} if owner else None
        version = ("models", name, "versions", number)
        spec = self._transport.call("GET", road(*version, "spec"), query=query).json()
        file = spec["weights"]
        written = Download(
            road(*version, "weights"),
            file["filename"],
            file["size_bytes"],
            file["sha256"],
            file["sha256"][:16],
            query,
        ).save(self._transport, path, on_progress)
        beside = written.with_suffix(".json")
        try:
            beside.write_text(json.dumps(spec, indent=2, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise ApiError(
                f"{beside} cannot be written: {error.strerror}", code=LOCAL_FILE
            ) from error
        return written
