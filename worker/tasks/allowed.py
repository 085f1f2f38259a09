"""Items of a chunk that its tenant's jobs may not read: they fail, and are never asked for."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import ItemError
from app.jobs.claim import Lease
from app.jobs.items import JobItem
from app.storage.keys import tenant_prefix
from app.tenants.locations import item_not_allowed, locations_of
from worker.pipeline.values import ItemResult
from worker.process import WorkerProcess


def refuse_items(
    process: WorkerProcess, lease: Lease, items: Sequence[JobItem]
) -> dict[int, ItemError]:
    """The errors of the items that may not be read, by their index in the chunk.

    Looked at where the bytes would be read, whoever planned the chunk and when: a manifest's
    lines, a retry's old references, and what was allowed yesterday all come by here.
    """
    own_bucket, own_prefix = process.settings.bucket, tenant_prefix(lease.tenant_id)
    refused = {
        index: item_not_allowed(item.source)
        for index, item in enumerate(items)
        if item.bucket == own_bucket and not item.key.startswith(own_prefix)
    }
    foreign = [(index, item) for index, item in enumerate(items) if item.bucket != own_bucket]
    if foreign:
        with process.db.tenant(lease.tenant_id) as session:
            allowed = locations_of(session, lease.tenant_id, process.settings.default_locations)
        refused |= {
            index: item_not_allowed(item.source)
            for index, item in foreign
            if not allowed.allows(item.bucket, item.key)
        }
    return refused


def put_between(
    lease: Lease, count: int, refused: dict[int, ItemError], results: Sequence[ItemResult]
) -> list[ItemResult]:
    """The results of a chunk of ``count`` items, refused ones in their places.

    Where the others were stopped, it ends with the last item before the first without a result.
    """
    answers = iter(results)
    merged: list[ItemResult] = []
    for index in range(count):
        if index in refused:
            merged.append(ItemResult(lease.lo + index, error=refused[index]))
            continue
        answer = next(answers, None)
        if answer is None:
            break
        merged.append(answer)
    return merged
