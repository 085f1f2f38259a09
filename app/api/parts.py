"""What a request needs of the process it runs in, and who is asking."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from flask import current_app, g

from app.api.places import Places
from app.api.rates import Rates
from app.api.wait import WaitSlots
from app.audit.keys import AuditKey
from app.audit.repeats import Repeats
from app.db.session import Database
from app.jobs.admit import Admission
from app.keyring import Keyring
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.known_keys import KnownKeys
from app.tenants.scopes import Principal
from app.webhooks.guard import Guard


@dataclass(frozen=True, slots=True)
class Parts:
    """The process's settings and its doors to database and object store."""

    settings: Settings
    db: Database
    store: ObjectStore
    slots: WaitSlots
    #: Places for uploads that stream through: each holds a thread and the memory of a part.
    upload_places: Places
    #: Places for downloads: each holds a thread while its client reads.
    download_places: Places
    #: Places for looking up the names of webhooks: each holds a thread for seconds.
    look_up_places: Places
    #: Keeps tenants within their quotas.
    admission: Admission
    #: How often tenants ask, and strangers try.
    rates: Rates
    #: Who asks.
    keys: KnownKeys
    #: Signs the entries of the audit log.
    audit_key: Callable[[], AuditKey]
    #: Keeps a loop from filling the audit log.
    repeats: Repeats
    #: Seals what is secret.
    keyring: Callable[[], Keyring]
    #: What webhooks may reach.
    guard: Guard


def parts() -> Parts:
    """The parts of the application that serves this request."""
    return cast(Parts, current_app.extensions["darkroom"])


def principal() -> Principal:
    """Who is asking; set before any route that needs a key runs."""
    return cast(Principal, g.principal)


def request_id() -> str:
    """The id of this request, for answers and logs."""
    return cast(str, g.get("request_id", ""))
