"""Freezes labelled uploads into dataset versions, and lists them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from app.client.transport import Transport, road
from app.client.values import Dataset, DatasetVersion


class Datasets:
    """``darkroom.datasets``."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def freeze(
        self,
        name: str,
        upload_id: str,
        *,
        fractions: tuple[float, float, float] | None = None,
        seed: int | None = None,
        skip_unlabelled: bool = False,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
    ) -> DatasetVersion:
        """Make a version of ``name`` from an upload; ``fractions`` of train, validation, test.

        ``labels`` gives labels of the upload other names; two of one name become one class.
        The same images, labels and splits give the version that holds them already.
        """
        body: dict[str, Any] = {"name": name, "input": {"upload": upload_id}}
        if fractions is not None:
            body["fractions"] = dict(zip(("train", "validation", "test"), fractions, strict=True))
        if seed is not None:
            body["seed"] = seed
        if skip_unlabelled:
            body["skip_unlabelled"] = True
        if labels:
            body["labels"] = dict(labels)
        answer = self._transport.call(
            "POST",
            "/v1/datasets",
            json=body,
            idempotency_key=idempotency_key,
            # A million samples are inserted before the answer.
            timeout_seconds=300,
        )
        return _version(answer.json())

    def list(self) -> Iterator[Dataset]:
        """Every dataset."""
        return map(Dataset.from_dict, self._transport.pages("/v1/datasets"))

    def versions(self, name: str) -> Iterator[DatasetVersion]:
        """The versions of a dataset."""
        return map(_version, self._transport.pages(road("datasets", name, "versions")))

    def get(self, name: str, number: int) -> DatasetVersion:
        """One version of a dataset."""
        return _version(
            self._transport.call("GET", road("datasets", name, "versions", number)).json()
        )


def _version(body: Mapping[str, Any]) -> DatasetVersion:
    return DatasetVersion.from_dict(body)
