"""One typed table of settings, read from the environment and checked at start.

Every field is one row: name, default, meaning. README's table is checked against it by a test.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.addresses import ADMIN_SCHEMES, DATABASE_SCHEMES, REDIS_SCHEMES, check_address
from app.errors import InvalidInputError, SettingsError
from app.locations import NOWHERE, Locations, parse_locations

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]

MIB = 1024 * 1024
_HOST_PATTERN = re.compile(r"(\*|(\*\.)?[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:([0-9]{1,5}|\*))?")


class Settings(BaseSettings):
    """What a Darkroom process needs to know; the same table for API, dispatcher and workers."""

    model_config = SettingsConfigDict(
        env_prefix="DARKROOM_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # The real parts
    database_url: SecretStr = Field(
        validation_alias="DATABASE_URL",
        description="PostgreSQL, as the role `darkroom_api` (row level security applies).",
    )
    system_database_url: SecretStr | None = Field(
        None,
        validation_alias="SYSTEM_DATABASE_URL",
        description="PostgreSQL, as `darkroom_system`: dispatcher, sweeper, migrations.",
    )
    admin_database_url: SecretStr | None = Field(
        None,
        validation_alias="ADMIN_DATABASE_URL",
        description="PostgreSQL superuser; only `darkroom migrate` uses it, to make the roles.",
    )
    redis_url: SecretStr = Field(
        SecretStr("redis://127.0.0.1:6379/0"),
        validation_alias="REDIS_URL",
        description="Redis or Valkey that carries the bells; a unix socket as `redis+socket://`.",
    )
    s3_endpoint_url: str | None = Field(
        None,
        validation_alias="S3_ENDPOINT_URL",
        description="S3-compatible endpoint; empty means AWS.",
    )
    aws_access_key_id: SecretStr | None = Field(
        None, validation_alias="AWS_ACCESS_KEY_ID", description="S3 access key."
    )
    aws_secret_access_key: SecretStr | None = Field(
        None, validation_alias="AWS_SECRET_ACCESS_KEY", description="S3 secret key."
    )
    aws_region: str = Field("us-east-1", validation_alias="AWS_REGION", description="S3 region.")
    bucket: str = Field(
        "darkroom", description="Bucket of our own objects: shards, weights, artifacts."
    )
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="Server-side secret mixed into the hash of API keys (32 characters or more).",
    )
    old_key_peppers: SecretStr = Field(
        SecretStr(""),
        description=(
            "Peppers of before, with commas: only to verify what the audit log was signed with "
            "under them."
        ),
    )
    sealing_keys: SecretStr = Field(
        SecretStr(""),
        description=(
            "Keys that seal weights and webhook secrets: `id:base64 of 32 bytes`, with commas; the "
            "first one seals, all of them open. `darkroom sealing new-key` makes one."
        ),
    )

    sealed_only: bool = Field(
        False,
        description=(
            "Refuse weights that lie in clear, as releases before sealing left them; "
            "`darkroom sealing status` counts them."
        ),
    )

    # API
    api_host: str = Field("127.0.0.1", description="Address the API listens on.")
    api_port: Positive = Field(8080, description="Port the API listens on.")
    api_threads: Positive = Field(16, description="Threads of the API process.")
    wait_max_seconds: Seconds = Field(30, description="Longest long poll (`?wait=`).")
    wait_slots: Positive = Field(
        8, description="Clients that may wait in long polls at once, per API process."
    )
    upload_max_bytes: Positive = Field(
        200 * 1024 * MIB, description="Largest archive or weights file, in bytes."
    )
    upload_slots: Positive = Field(
        6, description="Uploads that may stream through one API process at once."
    )
    upload_min_bytes_per_second: Positive = Field(
        1024, description="An upload that comes more slowly for over a minute is cut off."
    )
    download_slots: Positive = Field(
        6, description="Downloads that may stream through one API process at once."
    )
    upload_part_bytes: Positive = Field(
        8 * MIB, ge=5 * MIB, description="Part size of multipart uploads to S3, in bytes."
    )
    weights_upload_days: Annotated[float, Field(gt=0)] = Field(
        7, description="Days that a weights file which no import took is kept, in clear."
    )
    link_seconds: Annotated[int, Field(gt=0, le=7 * 24 * 3600)] = Field(
        900, description="Life of a download link or presigned link, in seconds; a week at most."
    )
    public_url: Annotated[str, Field(pattern=r"^(https?://[^\s/?#@]+(/[^\s?#@]*)?)?$")] = Field(
        "",
        description=(
            "Address of the API as clients see it, such as `https://darkroom.example.com`; links "
            "begin with it. Empty means the host that the request for the link was sent to."
        ),
    )

    # Quotas of a tenant that has none of its own
    max_open_jobs: Positive = Field(20_000, description="Jobs of a tenant that have not ended.")
    max_open_items: Positive = Field(
        20_000_000, description="Items of a tenant that have not ended; further plans wait."
    )
    max_stored_bytes: Positive = Field(
        1024 * 1024 * MIB, description="Bytes of a tenant's uploads, weights and artifacts."
    )
    max_submissions_per_minute: Positive = Field(
        12_000, description="Jobs that a tenant may submit within 60 seconds."
    )
    max_training_minutes: Positive = Field(
        200_000,
        description="Minutes that workers may fine-tune for a tenant within 30 days.",
    )

    input_locations: str = Field(
        "*",
        description=(
            "From where jobs may read, of a tenant without locations of its own: "
            "`s3://bucket/prefix/`, with commas; `*` is every bucket that the service's S3 access "
            "key reaches, `none` is none, so that images come by upload alone."
        ),
    )

    # Rates, counted in Redis
    max_requests_per_minute: Positive = Field(
        120_000, description="Requests that a tenant may make within a minute."
    )
    max_failed_authentications_per_minute: Positive = Field(
        60,
        description=(
            "Requests without a valid key that an address may make within a minute; further keys "
            "from there are not looked at."
        ),
    )
    trusted_proxies: int = Field(
        0,
        ge=0,
        le=10,
        description=(
            "Proxies before the API that each add to `X-Forwarded-For`; with 0 that header is "
            "ignored."
        ),
    )

    # Delivery
    lease_seconds: Seconds = Field(30, description="Life of a lease without a heartbeat.")
    heartbeat_seconds: Seconds = Field(10, description="Time between heartbeats of a lease.")
    sweep_seconds: Seconds = Field(2, description="Time between sweeps.")
    ring_again_seconds: Seconds = Field(5, description="A bell this old is rung again.")
    dispatch_seconds: Seconds = Field(0.2, description="Time between looks for runnable chunks.")
    drain_seconds: Seconds = Field(25, description="Time a stopping worker has to let go.")
    stall_seconds: Seconds = Field(
        120, description="A worker in which nothing finishes for so long ends itself."
    )
    deaf_seconds: Seconds = Field(
        30,
        description="A worker with a free slot that hears none of the waiting bells ends itself.",
    )
    max_kills: Positive = Field(
        5,
        description=(
            "Tries of one chunk that may fail before its job fails; of a chunk without items, "
            "such as an ingest, also tries that end without a word."
        ),
    )
    outage_seconds: float = Field(
        3600,
        ge=0,
        description="How long chunks wait for an object store that is away before they fail.",
    )
    chunk_items: int | None = Field(
        None, gt=0, description="Fixed items per chunk; empty means sized by measured rate."
    )
    io_turn_seconds: Seconds = Field(
        5,
        description="Time after which a plan or ingest lets other work that waits go first.",
    )
    database_pool: Positive = Field(10, description="Database connections per process, at most.")
    require_durable: bool = Field(
        True,
        description=(
            "Refuse to start where PostgreSQL or Redis may lose what they were given; only for "
            "tests is this `false`."
        ),
    )

    # Notifications
    webhooks: bool = Field(
        True, description="Whether webhooks may be made and are sent: `on` or `off`."
    )
    webhook_hosts: str = Field(
        "",
        description=(
            "The only hosts that webhooks may go to, with commas: `host`, `*.domain`, `host:port` "
            "or `host:*`; empty means any public one, by https on port 443 or 8443."
        ),
    )
    webhook_private_networks: str = Field(
        "",
        description=(
            "Networks that webhooks may reach although they are not public, with commas, such as "
            "`10.1.0.0/16`."
        ),
    )
    webhook_slots: Positive = Field(
        16, description="Webhooks that one dispatcher may have under way at once."
    )
    webhook_failing_days: Annotated[float, Field(gt=0)] = Field(
        5, description="Days without a success after which a webhook that fails is disabled."
    )
    event_days: Annotated[float, Field(gt=0)] = Field(
        7, description="Days that events and ended webhook deliveries are kept."
    )

    # Images and archives
    max_image_pixels: Positive = Field(40_000_000, description="Largest image, in pixels.")
    max_image_bytes: Positive = Field(64 * MIB, description="Largest image file, in bytes.")
    max_image_aspect: Positive = Field(
        1000, description="Most elongated image, longer side by shorter."
    )
    max_image_frames: Positive = Field(
        1000, description="Most frames or pages of an image; the first is recognised."
    )
    archive_max_entries: Positive = Field(2_000_000, description="Most members of an archive.")
    archive_max_ratio: Positive = Field(
        200, description="Largest expansion of an archive, uncompressed to compressed."
    )
    archive_max_directory_bytes: Positive = Field(
        256 * MIB, description="Longest directory of a zip, in bytes; it is held in memory."
    )
    shard_bytes: Positive = Field(64 * MIB, description="Largest shard, in bytes.")
    shard_items: Positive = Field(8192, description="Most items in a shard.")

    # Recognition
    device: str = Field("auto", description="`auto`, `cpu`, `cuda` or `cuda:N`.")
    image_batch_size: Positive = Field(32, description="Images in one ImageBatch.")
    decode_processes: int = Field(
        0, ge=0, description="Decode children per worker process; 0 means one per core."
    )
    decode_memory_bytes: int = Field(
        1024 * MIB,
        ge=128 * MIB,
        description="Memory of a decode child beyond what it starts with, in bytes.",
    )
    decode_cpu_seconds: Seconds = Field(
        8, description="Processor time that decoding one image may take."
    )
    decode_seconds: Seconds = Field(
        30, description="Time by the clock that decoding one image may take."
    )
    torch_threads: int = Field(
        0, ge=0, description="Threads of one forward on the CPU; 0 leaves it to torch."
    )

    # Training
    checkpoint_seconds: Seconds = Field(
        60,
        description="Longest time within an epoch of fine-tuning without a checkpoint.",
    )
    training_cache_bytes: int = Field(
        4096 * MIB,
        ge=0,
        description=(
            "Memory for the decoded pixels of a training's images, in bytes; splits that do not "
            "fit are decoded again in each epoch."
        ),
    )
    train_devices: Annotated[str, Field(pattern=r"^(all|[1-9][0-9]?)$")] = Field(
        "1",
        description=(
            "GPUs of a worker that one training uses: a number, or `all`. Without a GPU, processes."
        ),
    )

    # This process
    worker_name: str | None = Field(
        None, description="Name of this worker on its host; stays the same over restarts."
    )
    niceness: int = Field(
        0,
        ge=0,
        le=19,
        description="Kernel niceness of this worker; `darkroom up` lets its workers have 10.",
    )
    cache_dir: Path = Field(
        Path("~/.cache/darkroom"), description="Where a worker keeps weights it fetched."
    )
    alive_file: Path | None = Field(
        None, description="File that dispatcher and workers touch while they do their work."
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description=(
            "Port on which dispatcher or worker serve `/metrics` at the API's address; 0 is off."
        ),
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least level that is logged."
    )
    log_format: Literal["json", "console"] = Field("json", description="How a log line looks.")

    @field_validator("database_url", "system_database_url", "admin_database_url", "redis_url")
    @classmethod
    def _check_addresses(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        name = str(info.field_name)
        # What is empty is as good as not set, but for the one that must be.
        if value is not None and (value.get_secret_value() or name == "database_url"):
            schemes = {"redis_url": REDIS_SCHEMES, "admin_database_url": ADMIN_SCHEMES}
            check_address(value.get_secret_value(), schemes.get(name, DATABASE_SCHEMES))
        return value

    @field_validator("webhook_hosts")
    @classmethod
    def _check_webhook_hosts(cls, value: str) -> str:
        for pattern in _split(value):
            if not _HOST_PATTERN.fullmatch(pattern):
                raise ValueError(f"{pattern!r} is no host, *.domain, host:port or host:*")
            if pattern.startswith("["):
                IPv6Address(pattern[1:].partition("]")[0])
        return value

    @field_validator("webhook_private_networks")
    @classmethod
    def _check_webhook_private_networks(cls, value: str) -> str:
        for word in _split(value):
            try:
                network = ip_network(word)
            except ValueError as error:
                raise ValueError(f"{word!r} is no network such as 10.1.0.0/16: {error}") from None
            if network.prefixlen == 0:
                raise ValueError(f"{word} is every address there is; name the networks themselves")
        return value

    @field_validator("input_locations")
    @classmethod
    def _check_input_locations(cls, value: str) -> str:
        try:
            _read_locations(value)
        except InvalidInputError as error:
            raise ValueError(error.detail) from None
        return value

    @model_validator(mode="after")
    def _check_heartbeat(self) -> Self:
        if self.heartbeat_seconds >= self.lease_seconds:
            raise ValueError(
                f"DARKROOM_HEARTBEAT_SECONDS ({self.heartbeat_seconds:g}) must be below "
                f"DARKROOM_LEASE_SECONDS ({self.lease_seconds:g}), or every lease ends under work"
            )
        return self

    @property
    def webhook_host_list(self) -> list[str]:
        """The patterns of hosts that webhooks may go to."""
        return _split(self.webhook_hosts)

    @property
    def webhook_private_network_list(self) -> list[str]:
        """The networks that webhooks may reach although they are not public."""
        return _split(self.webhook_private_networks)

    @property
    def default_locations(self) -> Locations:
        """From where the jobs of a tenant may read that has no locations of its own."""
        return _read_locations(self.input_locations)

    @property
    def system_url(self) -> str:
        """The system role's database URL; raises where this process was not given one."""
        if self.system_database_url is None:
            raise SettingsError(
                "SYSTEM_DATABASE_URL is not set; the dispatcher and migrations need the "
                "role darkroom_system"
            )
        return self.system_database_url.get_secret_value()

    @property
    def decode_process_count(self) -> int:
        """Decode children to start: the setting, or one per core this process may use."""
        return self.decode_processes or len(os.sched_getaffinity(0))


def _split(value: str) -> list[str]:
    """The words of a comma list."""
    return [word.strip() for word in value.split(",") if word.strip()]


def _read_locations(value: str) -> Locations:
    words = _split(value)
    if not words:
        # Whoever left it empty by mistake would open, or close, more than they know.
        raise InvalidInputError("name locations, `*` for any, or `none`")
    return parse_locations([] if words == [NOWHERE] else words)


def _variable(where: str) -> str:
    """The environment variable of a field that is named by itself or by its alias."""
    return f"DARKROOM_{where.upper()}" if where in Settings.model_fields else where


def variable_of(field_name: str) -> str:
    """The environment variable that a field is read from."""
    alias = Settings.model_fields[field_name].validation_alias
    return alias if isinstance(alias, str) else f"DARKROOM_{field_name.upper()}"


def is_secret(field_name: str) -> bool:
    """Whether a setting must never be shown."""
    return "SecretStr" in str(Settings.model_fields[field_name].annotation)


def read_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment (this process's where none is given), with secrets that lie in files.

    For each secret ``NAME``, ``NAME_FILE`` may name a file that holds it, as the secrets of
    Docker and Kubernetes do; a newline at its end is no part of it.

    Raises:
        SettingsError: both are set, or the file cannot be read.
    """
    found = dict(os.environ if environ is None else environ)
    for name in filter(is_secret, Settings.model_fields):
        variable = variable_of(name)
        path = found.pop(f"{variable}_FILE", "")
        if not path:
            continue
        if found.get(variable):
            raise SettingsError(f"set {variable} or {variable}_FILE, not both")
        try:
            found[variable] = Path(path).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            # Without its path, which is the secret itself where somebody took NAME_FILE for NAME.
            raise SettingsError(f"{variable}_FILE names no file to be read: {reason}") from None
    return found


def load_settings(**overrides: Any) -> Settings:
    """Read and check the settings; a wrong one is named in a sentence.

    Raises:
        SettingsError: a setting is missing or not valid.
    """
    found = read_environment()
    for name in filter(is_secret, Settings.model_fields):
        variable = variable_of(name)
        if os.environ.get(f"{variable}_FILE"):
            # The word by which the model takes it, as an argument and not from the environment.
            word = variable if Settings.model_fields[name].validation_alias else name
            overrides.setdefault(word, found[variable])
    try:
        return Settings(**overrides)
    except ValidationError as error:
        faults = [
            {
                "pointer": _variable(str(fault["loc"][0])) if fault["loc"] else "",
                "detail": fault["msg"].removeprefix("Value error, "),
            }
            for fault in error.errors()
        ]
        # A rule that joins two settings points at neither and names both.
        names = "; ".join(f"{fault['pointer']}: {fault['detail']}".lstrip(": ") for fault in faults)
        raise SettingsError(f"settings are not valid: {names}", errors=faults) from None
