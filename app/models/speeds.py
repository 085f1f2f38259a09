"""How fast versions are, as people read it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.models.tables import Speed


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """Images in a second on one kind of device."""

    device: str
    #: Of a whole worker, with reading and decoding.
    images_per_second: float | None
    #: Of the network alone.
    forward_images_per_second: float | None
    #: How many images these are measured on.
    images: int


def speeds_of(
    session: Session, tenant_id: str, version_ids: Collection[str]
) -> dict[str, list[DeviceSpeed]]:
    """The speeds of each version, on the device with most images first; none where it never ran."""
    found: dict[str, list[DeviceSpeed]] = defaultdict(list)
    rows = session.scalars(
        select(Speed)
        .where(Speed.tenant_id == tenant_id, Speed.model_version_id.in_(version_ids))
        .order_by(Speed.images.desc(), Speed.device)
    )
    for row in rows:
        found[row.model_version_id].append(
            DeviceSpeed(
                row.device,
                _rate(row.images, row.busy_seconds),
                _rate(row.images, row.forward_seconds),
                row.images,
            )
        )
    return found


def _rate(images: int, seconds: float) -> float | None:
    return images / seconds if seconds > 0 else None
