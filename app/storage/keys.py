"""Every object key in one place: tenant first, so that one prefix holds all a tenant owns."""

from __future__ import annotations

import re

#: One path segment of our own keys; ids and artifact names are made to fit.
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def tenant_prefix(tenant_id: str) -> str:
    """Where all objects of a tenant lie."""
    return f"tenants/{_segment(tenant_id)}/"


def upload_prefix(tenant_id: str, upload_id: str) -> str:
    """Where the archive and the shards of one upload lie."""
    return f"{tenant_prefix(tenant_id)}uploads/{_segment(upload_id)}/"


def upload_archive(tenant_id: str, upload_id: str) -> str:
    """The archive as the client sent it."""
    return f"{upload_prefix(tenant_id, upload_id)}archive"


def shard(tenant_id: str, upload_id: str, number: int) -> str:
    """Shard ``number`` of an upload; the same number always has the same bytes."""
    if number < 0:
        raise ValueError(f"shard number {number} is negative")
    return f"{upload_prefix(tenant_id, upload_id)}shards/{number:06d}.shard"


def weights(tenant_id: str, version_id: str) -> str:
    """The weights of a model version, as a sealed bundle."""
    return f"{tenant_prefix(tenant_id)}weights/{_segment(version_id)}.sealed"


def weights_prefix(tenant_id: str, version_id: str) -> str:
    """What the keys of all weights begin with that were stored for a model version."""
    return f"{tenant_prefix(tenant_id)}weights/{_segment(version_id)}."


def plain_weights(tenant_id: str, version_id: str) -> str:
    """The weights of a model version of the time before weights were sealed."""
    return f"{tenant_prefix(tenant_id)}weights/{_segment(version_id)}.safetensors"


def job_prefix(tenant_id: str, job_id: str) -> str:
    """Where everything a job made lies."""
    return f"{tenant_prefix(tenant_id)}jobs/{_segment(job_id)}/"


def artifact(tenant_id: str, job_id: str, name: str) -> str:
    """A file that a job made, such as ``results.jsonl``."""
    return f"{job_prefix(tenant_id, job_id)}artifacts/{_segment(name)}"


def scores(tenant_id: str, job_id: str, chunk_id: str, attempt: int) -> str:
    """The complete scores of the items that one attempt at a chunk of an evaluation recorded."""
    if attempt < 0:
        raise ValueError(f"attempt {attempt} is negative")
    return f"{job_prefix(tenant_id, job_id)}scores/{_segment(chunk_id)}.{attempt}.safetensors"


def checkpoint_prefix(tenant_id: str, job_id: str, trial: int | None = None) -> str:
    """Where the checkpoints of a training lie, whichever attempt wrote them.

    ``trial`` is its number where it is one of a search.
    """
    if trial is not None and trial < 0:
        raise ValueError(f"trial {trial} is negative")
    prefix = f"{job_prefix(tenant_id, job_id)}checkpoints/"
    return prefix if trial is None else f"{prefix}{trial:06d}/"


def checkpoint(
    tenant_id: str, job_id: str, attempt: int, steps: int, trial: int | None = None
) -> str:
    """The checkpoint that one attempt wrote after so many steps; another overwrites none of it."""
    if attempt < 0 or steps < 0:
        raise ValueError(f"attempt {attempt} or step {steps} is negative")
    return f"{checkpoint_prefix(tenant_id, job_id, trial)}{attempt:06d}-{steps:012d}.sealed"


def _segment(text: str) -> str:
    if not _SEGMENT.fullmatch(text):
        raise ValueError(f"{text!r} cannot be part of an object key")
    return text
