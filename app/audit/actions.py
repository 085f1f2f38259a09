"""What the audit log knows to tell: one stable word for each act."""

from __future__ import annotations

import enum


class Action(enum.StrEnum):
    """An act that changes state, takes data out, or was refused."""

    TENANT_CREATED = "tenant.created"
    QUOTA_CHANGED = "quota.changed"
    LOCATIONS_CHANGED = "tenant.locations_changed"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    KEY_BUDGET_SET = "key.budget_set"
    JOB_SUBMITTED = "job.submitted"
    JOB_CANCELLED = "job.cancelled"
    JOB_PAUSED = "job.paused"
    JOB_RESUMED = "job.resumed"
    JOB_RETRIED = "job.retried"
    UPLOAD_BEGUN = "upload.begun"
    UPLOAD_RECEIVED = "upload.received"
    UPLOAD_ABORTED = "upload.aborted"
    DATASET_FROZEN = "dataset.frozen"
    MODEL_ALIAS_MOVED = "model.alias_moved"
    MODEL_PROMOTED = "model.promoted"
    MODEL_ROLLED_BACK = "model.rolled_back"
    MODEL_ARCHIVED = "model.archived"
    MODEL_RESTORED = "model.restored"
    MODEL_DELETED = "model.deleted"
    GATE_SET = "gate.set"
    GATE_REMOVED = "gate.removed"
    GRANT_GIVEN = "grant.given"
    GRANT_REVOKED = "grant.revoked"
    WEIGHTS_EXPORTED = "weights.exported"
    ARTIFACT_DOWNLOADED = "artifact.downloaded"
    ARTIFACT_LINKED = "artifact.linked"
    WEBHOOK_CREATED = "webhook.created"
    WEBHOOK_DELETED = "webhook.deleted"
    WEBHOOK_ENABLED = "webhook.enabled"
    WEBHOOK_SECRET_ROTATED = "webhook.secret_rotated"  # noqa: S105  a word, and none
    WEBHOOK_TESTED = "webhook.tested"
    WEBHOOK_REPLAYED = "webhook.replayed"
    SEALING_ROTATED = "sealing.rotated"
    ACCESS_DENIED = "access.denied"


class Outcome(enum.StrEnum):
    """How the act ended; one that failed changed nothing and has no entry."""

    DONE = "done"
    DENIED = "denied"


#: Who acts where no API key does: a command that works straight in the database.
OPERATOR = "operator"
