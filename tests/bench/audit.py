"""What the audit log costs: ``make bench ONLY=audit [ENTRIES=1000000]``.

A submission with its entry and without, taken in turns in one process; entries chained as a
dispatcher does it; and so many of one tenant verified as `darkroom audit verify` does it.
"""

from __future__ import annotations

import os
import resource
import statistics
import time
from unittest.mock import patch

import psycopg

from app.audit.chain import chain_entries
from app.audit.entries import CONTENT, NO_LINK, sign_entry, sign_head, sign_link
from app.audit.keys import AuditKey, AuditKeys
from app.audit.verify import begin_verification, verify_chain
from app.clock import utc_now
from app.db.session import Database
from app.ids import AUDIT_ENTRY, new_id
from app.storage.s3 import ObjectStore
from tests.api_client import Api, import_body, make_app, make_key
from tests.bench.service import local_parts, say
from tests.factories import make_tenant
from tests.local_parts import scratch_folder

ENTRIES = int(os.environ.get("ENTRIES") or 1_000_000)
#: Entries that one dispatcher chains.
CHAINED = min(ENTRIES, 50_000)
SUBMISSIONS = int(os.environ.get("SUBMISSIONS") or 2000)


def measure_submissions(api: Api) -> tuple[float, float]:
    """Medians of a submission with its entry and without one, in milliseconds."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for number in range(SUBMISSIONS * 2):
        audited = number % 2 == 0
        skipped = patch("app.api.idempotency.record_reply", lambda *_: None)
        noted = patch("app.api.app.check_noted", lambda *_, **__: None)
        with noted:
            if not audited:
                skipped.start()
            began = time.perf_counter()
            answer = api("POST", "/v1/jobs", json=import_body())
            times[audited].append((time.perf_counter() - began) * 1000)
            if not audited:
                skipped.stop()
        if answer.status_code != 202:
            raise AssertionError(answer.get_data(as_text=True))
    return statistics.median(times[True]), statistics.median(times[False])


def write_entries(system_url: str, keys: AuditKeys, tenant_id: str, *, chained: bool) -> None:
    """Many entries of one tenant, as the API writes them, or as the dispatcher leaves them."""
    columns = [*CONTENT, "at", "mac_key", "mac"]
    columns += ["seq", "chained_at", "hash_key", "hash"] if chained else []
    with psycopg.connect(system_url) as connection, connection.cursor() as cursor:
        cursor.execute("SET statement_timeout = 0")
        with cursor.copy(f"COPY audit_entries ({', '.join(columns)}) FROM STDIN") as rows:
            link = NO_LINK
            for seq in range(1, (ENTRIES if chained else CHAINED) + 1):
                row, at = make_entry(keys.active, tenant_id, seq), utc_now()
                mac = sign_entry(keys.active, row)
                values = [*(row[name] for name in CONTENT), at, keys.active.id, mac]
                if chained:
                    link = sign_link(keys.active, link, seq, row, at=at, chained_at=at, mac=mac)
                    values += [seq, at, keys.active.id, link]
                rows.write_row(values)
        if chained:
            head = (tenant_id, ENTRIES, link, keys.active.id)
            mac = sign_head(keys.active, tenant_id, ENTRIES, link)
            cursor.execute("INSERT INTO audit_heads VALUES (%s, %s, %s, %s, %s)", (*head, mac))


def make_entry(key: AuditKey, tenant_id: str, number: int) -> dict[str, str]:
    """What the API says of a submission."""
    return {
        "tenant_id": tenant_id,
        "id": new_id(AUDIT_ENTRY),
        "actor": "key_01k8zq6x0v3m8r5w2t9y4b7c1d",
        "action": "job.submitted",
        "outcome": "done",
        "target": f"job_{number:026}",
        "request_id": f"req_{number:026}",
        "client_address": "192.0.2.17",
        "details": '{"kind":"predict","model":"digits@production"}',
    }


def measure_chaining(db: Database, system_url: str, keys: AuditKeys) -> float:
    """Entries a second that one dispatcher chains."""
    write_entries(system_url, keys, make_tenant(db), chained=False)
    began, total = time.perf_counter(), 0
    while done := chain_entries(db, keys).count:
        total += done
    return total / (time.perf_counter() - began)


def measure_verification(db: Database, system_url: str, keys: AuditKeys) -> float:
    """Entries a second that are verified."""
    tenant_id = make_tenant(db)
    write_entries(system_url, keys, tenant_id, chained=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, own = time.perf_counter(), time.process_time()
    with db.system() as session:
        begin_verification(session)
        verdict = verify_chain(session, keys, tenant_id)
    seconds, own = time.perf_counter() - began, time.process_time() - own
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    if verdict.fault is not None or verdict.good != ENTRIES:
        raise AssertionError(verdict)
    say(
        f"verification of {ENTRIES:,} entries took {seconds:.1f} s ({own:.1f} s of its processor), "
        f"and its memory grew by {grown:.1f} MiB at most"
    )
    return ENTRIES / seconds


def main() -> None:
    """Run the bench."""
    with (
        scratch_folder() as folder,
        local_parts(folder, max_submissions_per_minute=10**6) as parts,
    ):
        settings = parts.settings
        db = Database.from_settings(settings)
        app = make_app(settings, ObjectStore.from_settings(settings))
        api = Api(app, make_key(db, settings, make_tenant(db)))
        measure_submissions(api)
        audited, bare = measure_submissions(api)
        say(
            f"a submission: {audited:.2f} ms with its entry, {bare:.2f} ms without "
            f"(medians of {SUBMISSIONS}, load {os.getloadavg()[0]:.1f})"
        )
        keys = AuditKeys.from_settings(settings)
        chained = measure_chaining(db, settings.system_url, keys)
        verified = measure_verification(db, settings.system_url, keys)
        db.close()
    say(
        f"audit submit_ms={audited:.2f} bare_ms={bare:.2f} added_ms={audited - bare:.3f} "
        f"ratio={audited / bare:.3f} entries={ENTRIES} chained_per_s={chained:.0f} "
        f"verified_per_s={verified:.0f}"
    )


if __name__ == "__main__":
    main()
