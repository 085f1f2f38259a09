"""Recording what an ingest job has packed, shard by shard."""

from __future__ import annotations

from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from app.jobs.claim import Lease
from app.jobs.item_rows import ItemRow
from app.jobs.record import record_chunk, record_part
from app.jobs.states import ItemState
from app.uploads.pack import FailedMember, PackedShard, ShardEntry
from app.uploads.tables import Shard, Upload


def record_survey(session: Session, lease: Lease, item_count: int, *, lease_seconds: float) -> None:
    """Seal the job: the archive's headers told how many items there are.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    record_part(
        session,
        lease,
        cursor={"members": 0, "shards": 0},
        added=item_count,
        seal=True,
        lease_seconds=lease_seconds,
    )


def record_shard(
    session: Session, lease: Lease, shard: PackedShard, *, lease_seconds: float
) -> None:
    """Record a shard that lies in the object store already, and where to go on after it.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    rows = [_packed(entry) for entry in shard.entries]
    rows += [_failed(member) for member in shard.failures]
    record_part(
        session,
        lease,
        rows,
        cursor={"members": shard.hi, "shards": shard.number + 1},
        lease_seconds=lease_seconds,
    )
    upload_id = lease.input["upload"]
    if shard.entries:
        session.add(
            Shard(
                upload_id=upload_id,
                number=shard.number,
                tenant_id=lease.tenant_id,
                object_key=shard.key,
                size_bytes=len(shard.body),
                sha256=shard.sha256,
                entries=[entry.as_row() for entry in shard.entries],
                entry_count=len(shard.entries),
            )
        )
    session.execute(
        update(Upload)
        .where(Upload.id == upload_id, Upload.tenant_id == lease.tenant_id)
        .values(
            image_count=Upload.image_count + len(shard.entries),
            failed_count=Upload.failed_count + len(shard.failures),
            packed_bytes=Upload.packed_bytes + (len(shard.body) if shard.entries else 0),
        )
        .execution_options(synchronize_session=False)
    )


def record_ingested(
    session: Session,
    lease: Lease,
    *,
    archive_format: str,
    label_faults: list[dict[str, Any]],
    label_fault_count: int,
) -> None:
    """Close the job; bad lines of a labels.csv are told, their images have no label.

    Raises:
        FencedError: the lease was lost; nothing is written.
    """
    record_chunk(
        session,
        lease,
        result={
            "upload": lease.input["upload"],
            "format": archive_format,
            "label_faults": label_faults,
            "label_faults_total": label_fault_count,
        },
    )


def _packed(entry: ShardEntry) -> ItemRow:
    return ItemRow(
        ordinal=entry.ordinal,
        custom_id=entry.name,
        source=entry.name,
        state=ItemState.SUCCEEDED,
        label=entry.label,
        metadata={"format": entry.format, "width": entry.width, "height": entry.height},
    )


def _failed(member: FailedMember) -> ItemRow:
    return ItemRow(
        ordinal=member.ordinal,
        custom_id=member.name,
        source=member.name,
        state=ItemState.FAILED,
        error=member.error.as_dict(),
    )
