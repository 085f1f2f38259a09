"""Everything real that a fault run needs, on this machine, started once for all families."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from app.db.roles import API_ROLE, SYSTEM_ROLE
from app.db.session import Database
from app.ids import new_id
from app.settings import Settings, load_settings
from app.stack.postgres import LocalPostgres
from app.stack.s3 import LocalS3
from app.stack.valkey import LocalValkey
from app.storage.s3 import ObjectStore
from app.tenants.keys import create_key, create_tenant
from app.tenants.scopes import Scope
from tests.faults.audit import install_audit
from tests.faults.crew import ApiServer, Crew
from tests.faults.journal import Caller, Client, Journal
from tests.faults.library import BUCKET, register_model
from tests.faults.plan import Ledger
from tests.faults.s3_proxy import S3Proxy
from tests.local_parts import build_database, scratch_folder
from tests.nursery import shared_nursery

LEASE_SECONDS = 2.0
CHUNK_ITEMS = 128


@dataclass(slots=True)
class Stage:
    """The running parts and processes; families break them and wait until they are well again."""

    folder: Path
    postgres: LocalPostgres
    valkey: LocalValkey
    s3: LocalS3
    proxy: S3Proxy
    settings: Settings
    db: Database
    store: ObjectStore
    crew: Crew
    api: ApiServer
    journal: Journal
    client: Client
    ledger: Ledger
    #: Commands that no fault may touch go here, past the proxy and as superuser.
    admin_url: str = field(repr=False, default="")

    def redis(self) -> redis.Redis:
        """A connection of our own to Valkey."""
        return redis.Redis.from_url(self.valkey.client_url, decode_responses=True)

    def new_caller(self) -> Caller:
        """A fresh tenant with a key and the model of the fault runs."""
        with self.db.system() as session:
            tenant_id = create_tenant(session, new_id("faults").replace("_", "-")).id
        pepper = self.settings.key_pepper.get_secret_value()
        with self.db.tenant(tenant_id) as session:
            key = create_key(session, tenant_id, name="faults", scopes=[Scope.ADMIN], pepper=pepper)
        register_model(self.db, self.store, self.settings.bucket, tenant_id)
        return Caller(tenant_id, key.text)


def _settings(
    stage_folder: Path,
    postgres: LocalPostgres,
    valkey: LocalValkey,
    s3: LocalS3,
    s3_url: str,
    **more: Any,
) -> Settings:
    secrets = postgres.secrets
    system_url = postgres.url(SYSTEM_ROLE, secrets.system_password)
    fields: dict[str, Any] = {
        "DATABASE_URL": postgres.url(API_ROLE, secrets.api_password),
        "SYSTEM_DATABASE_URL": system_url,
        "REDIS_URL": valkey.url,
        "S3_ENDPOINT_URL": s3_url,
        "AWS_ACCESS_KEY_ID": s3.access_key_id,
        "AWS_SECRET_ACCESS_KEY": s3.secret_access_key,
        "key_pepper": secrets.key_pepper,
        "sealing_keys": secrets.sealing_keys,
        "cache_dir": stage_folder / "cache",
        "lease_seconds": LEASE_SECONDS,
        "heartbeat_seconds": 0.5,
        "sweep_seconds": 0.2,
        "ring_again_seconds": 1,
        "dispatch_seconds": 0.05,
        "drain_seconds": 10,
        "chunk_items": CHUNK_ITEMS,
        "decode_processes": 1,
        "torch_threads": 1,
        "device": "cpu",
        "database_pool": 5,
        # Faults strike by chance here; what kills again and again has families of its own.
        "max_kills": 20,
    }
    return load_settings(**fields, **more)


@contextmanager
def open_stage(seed: int) -> Iterator[Stage]:
    """Start durable PostgreSQL, Valkey, S3 behind its proxy, the API and the crew; end them all."""
    with ExitStack() as cleanup:
        folder = cleanup.enter_context(scratch_folder("darkroom-faults-"))
        logs = folder / "processes"
        logs.mkdir()
        parts = LocalPostgres(folder), LocalValkey(folder), LocalS3(folder)
        for part in parts:
            cleanup.callback(part.stop)
            part.start()
        postgres, valkey, s3 = parts
        proxy = S3Proxy(s3.endpoint_url)
        cleanup.callback(proxy.close)
        settings = _settings(folder, postgres, valkey, s3, proxy.url)
        build_database(postgres)
        install_audit(settings.system_url)
        db = Database.from_settings(settings)
        cleanup.callback(db.close)
        store = ObjectStore.from_settings(_settings(folder, postgres, valkey, s3, s3.endpoint_url))
        store.ensure_bucket(BUCKET)
        ledger = Ledger(folder / "ledger")
        crew = Crew(shared_nursery(), settings, logs, ledger.path, random.Random(seed))
        cleanup.callback(crew.close)
        api = ApiServer(settings, logs)
        cleanup.callback(api.kill)
        api.start()
        journal = Journal(folder / "journal.jsonl")
        cleanup.callback(journal.close)
        yield Stage(
            folder=folder,
            postgres=postgres,
            valkey=valkey,
            s3=s3,
            proxy=proxy,
            settings=settings,
            db=db,
            store=store,
            crew=crew,
            api=api,
            journal=journal,
            client=Client(lambda: api.port, journal),
            ledger=ledger,
            admin_url=postgres.url("postgres", postgres.secrets.admin_password, "darkroom"),
        )
