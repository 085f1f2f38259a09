"""What a process checks before it works: that what it is built on keeps what it is given."""

from __future__ import annotations

from celery import Celery
from redis.exceptions import RedisError

from app.db.durable import durability_faults
from app.db.session import Database
from app.errors import SettingsError
from app.keyring import Keyring
from app.log import get_logger
from app.queues.keeps import eviction_fault, eviction_policy, message_faults
from app.settings import Settings

log = get_logger(__name__)


def check_start(settings: Settings, db: Database, celery: Celery) -> None:
    """Refuse to start on parts that would lose what they are given.

    Redis that is away is no reason to refuse: all of it may be lost at any moment.

    A sealing key must be there: what is sealed later would need one in the middle of work.

    Raises:
        SettingsError: setting, value and what to do, in a sentence for each.
        UnavailableError: the database does not answer.
    """
    Keyring.from_settings(settings)
    faults = message_faults(celery)
    with db.anonymous() as session:
        lost = durability_faults(session)
    lost += _redis_faults(settings)
    if settings.require_durable:
        faults += lost
        faults += (
            ["Where losing data does not matter, set DARKROOM_REQUIRE_DURABLE=false."]
            if lost
            else []
        )
    if faults:
        raise SettingsError(" ".join(faults), code="not_durable")


def _redis_faults(settings: Settings) -> list[str]:
    try:
        policy = eviction_policy(settings.redis_url.get_secret_value())
    except RedisError as error:
        log.warning("redis_not_checked", error=type(error).__name__)
        return []
    if policy is None:
        log.warning("redis_policy_unknown", advice="maxmemory-policy must be noeviction")
    fault = eviction_fault(policy)
    return [] if fault is None else [fault]
