"""``darkroom workers``: for whoever runs the service, straight in its database."""

from __future__ import annotations

import typer

from app.cli.connect import JsonFlag
from app.cli.console import print_json, print_table
from app.cli.tenants import find_database
from app.cli.words import ago_text


def workers(context: typer.Context, as_json: JsonFlag = False) -> None:  # noqa: ARG001
    """List the workers with host and process id, newest first, gone ones too.

    Reads the database itself, as `darkroom tenants` does: a tenant's admin sees less over the API.
    """
    from app.db.session import Database
    from app.jobs.workers import list_workers
    from app.settings import load_settings

    settings = load_settings(**find_database())
    # Says which setting is missing, before anything is connected.
    assert settings.system_url
    db = Database.from_settings(settings)
    try:
        with db.system() as session:
            rows, _ = list_workers(session, limit=1000)
    finally:
        db.close()
    if as_json:
        print_json(
            [
                {
                    "id": row.id,
                    "name": row.name,
                    "host": row.host,
                    "pid": row.pid,
                    "device": row.device,
                    "queue": row.queue,
                    "slots": row.slots,
                    "warm_versions": row.warm_versions,
                    "started_at": row.started_at.isoformat(),
                    "last_seen_at": row.last_seen_at.isoformat(),
                    "gone_at": row.gone_at.isoformat() if row.gone_at else None,
                }
                for row in rows
            ]
        )
        return
    print_table(
        ("worker", "host", "pid", "queue", "device", "slots", "last seen", "state"),
        [
            (
                row.name,
                row.host,
                str(row.pid),
                row.queue,
                row.device,
                str(row.slots),
                ago_text(row.last_seen_at),
                "gone" if row.gone_at else "alive",
            )
            for row in rows
        ],
        spare=("host", "device"),
        empty="no workers",
    )
