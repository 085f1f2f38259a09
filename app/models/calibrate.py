"""Keeps what an evaluation fitted for a version: the second thing about it that ever changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.models.tables import ModelVersion


def keep_calibration(
    session: Session, tenant_id: str, version_id: str, calibration: Mapping[str, Any]
) -> None:
    """Keep a fitted temperature with its version, in the place of an earlier one.

    Answers are not changed by it: whoever wants calibrated scores divides logits by it. Of a
    version of another tenant nothing is kept.
    """
    session.execute(
        update(ModelVersion)
        .where(ModelVersion.id == version_id, ModelVersion.tenant_id == tenant_id)
        .values(calibration=dict(calibration))
        .execution_options(synchronize_session=False)
    )
