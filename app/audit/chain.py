"""Chains what was appended: each entry gets its place and a link over all that came before it.

Not in the transaction of the act: that would let a tenant's submissions pass one by one. Any
number of dispatchers may run; one at a time chains.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session

from app.audit.entries import COLUMNS, NO_LINK, sign_head, sign_link
from app.audit.keys import AuditKey, AuditKeys
from app.db.session import Database
from app.log import get_logger

log = get_logger(__name__)

#: Entries chained in one transaction.
BATCH = 1000

_LOCK = text("SELECT pg_try_advisory_xact_lock(hashtext('darkroom.audit_chain'))")
_UNCHAINED = text(
    f"SELECT now() AS moment, {COLUMNS} FROM audit_entries WHERE seq IS NULL "  # noqa: S608
    "ORDER BY at, id LIMIT :batch"
)
#: Of each tenant the newest link that stands, and the one that its head tells of.
_NEWEST = text(
    """
    SELECT wanted.tenant_id, newest.seq, newest.hash,
           head.seq AS head_seq, head.hash AS head_hash, head.mac_key, head.mac
    FROM unnest(CAST(:tenants AS text[])) AS wanted (tenant_id)
    LEFT JOIN LATERAL (
        SELECT seq, hash FROM audit_entries
        WHERE tenant_id = wanted.tenant_id AND seq IS NOT NULL ORDER BY seq DESC LIMIT 1
    ) AS newest ON true
    LEFT JOIN audit_heads AS head ON head.tenant_id = wanted.tenant_id
    """
)
_CHAIN = """
    UPDATE audit_entries AS entry
    SET seq = link.seq, hash = link.hash, hash_key = %(key)s, chained_at = %(moment)s
    FROM unnest(%(tenants)s::text[], %(ids)s::text[], %(seqs)s::bigint[], %(hashes)s::bytea[])
         AS link (tenant_id, id, seq, hash)
    WHERE entry.tenant_id = link.tenant_id AND entry.id = link.id AND entry.seq IS NULL
"""
_MOVE_HEADS = """
    INSERT INTO audit_heads (tenant_id, seq, hash, mac_key, mac)
    SELECT tenant_id, seq, hash, %(key)s, mac
    FROM unnest(%(tenants)s::text[], %(seqs)s::bigint[], %(hashes)s::bytea[], %(macs)s::bytea[])
         AS moved (tenant_id, seq, hash, mac)
    ON CONFLICT (tenant_id) DO UPDATE
    SET seq = excluded.seq, hash = excluded.hash, mac_key = excluded.mac_key, mac = excluded.mac
"""


@dataclass(frozen=True, slots=True)
class Head:
    """The newest link of a tenant's chain."""

    seq: int
    link: bytes

    def __str__(self) -> str:
        return f"{self.seq}:{self.link.hex()}"


@dataclass(frozen=True, slots=True)
class Chained:
    """What one step did."""

    count: int
    #: Tenant → its chain's head now.
    heads: dict[str, Head]


def chain_entries(db: Database, keys: AuditKeys) -> Chained:
    """Chain the oldest entries that are not, :data:`BATCH` at most; nothing where another does.

    Raises:
        UnavailableError: the database does not answer.
    """
    with db.system() as session:
        if not session.scalar(_LOCK):
            return Chained(0, {})
        found = session.execute(_UNCHAINED, {"batch": BATCH}).mappings()
        rows = [dict[str, Any](row) for row in found]
        if not rows:
            return Chained(0, {})
        heads = _find_heads(session, keys, sorted({row["tenant_id"] for row in rows}))
        moment, key = rows[0]["moment"], keys.active
        tenants, ids, seqs, links = list[str](), list[str](), list[int](), list[bytes]()
        for row in rows:
            tenant_id = row["tenant_id"]
            before = heads[tenant_id]
            seq = before.seq + 1
            link = sign_link(
                key, before.link, seq, row, at=row["at"], chained_at=moment, mac=row["mac"]
            )
            heads[tenant_id] = Head(seq, link)
            tenants.append(tenant_id)
            ids.append(row["id"])
            seqs.append(seq)
            links.append(link)
        connection = session.connection()
        changed = connection.exec_driver_sql(
            _CHAIN,
            {
                "key": key.id,
                "moment": moment,
                "tenants": tenants,
                "ids": ids,
                "seqs": seqs,
                "hashes": links,
            },
        ).rowcount
        if changed != len(rows):
            raise RuntimeError(f"{len(rows)} audit entries to chain, {changed} were there")
        _move_heads(session, key, heads)
    return Chained(len(rows), heads)


def _find_heads(session: Session, keys: AuditKeys, tenants: list[str]) -> dict[str, Head]:
    """Where each chain goes on.

    After the link that the head tells of, even where entries before it are gone: then the hole
    stays in the chain for good, instead of being closed over.
    """
    heads = dict[str, Head]()
    for row in session.execute(_NEWEST, {"tenants": tenants}):
        newest = Head(row.seq or 0, row.hash or NO_LINK)
        told = _told(keys, row)
        if told != (newest if row.seq else None):
            log.error(
                "audit_chain_broken",
                tenant=row.tenant_id,
                newest=str(newest),
                head=str(told) if told else None,
                advice="run `darkroom audit verify`",
            )
        heads[row.tenant_id] = max(newest, told or newest, key=lambda head: head.seq)
    return heads


def _told(keys: AuditKeys, row: Any) -> Head | None:
    """The head that the row tells of; None where there is none, or it is not ours."""
    key = keys.known.get(row.mac_key or "")
    if key is None or row.mac != sign_head(key, row.tenant_id, row.head_seq, row.head_hash):
        return None
    return Head(row.head_seq, row.head_hash)


def _move_heads(session: Session, key: AuditKey, heads: dict[str, Head]) -> None:
    session.connection().exec_driver_sql(
        _MOVE_HEADS,
        {
            "key": key.id,
            "tenants": list(heads),
            "seqs": [head.seq for head in heads.values()],
            "hashes": [head.link for head in heads.values()],
            "macs": [
                sign_head(key, tenant_id, head.seq, head.link) for tenant_id, head in heads.items()
            ],
        },
    )
