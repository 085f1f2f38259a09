"""How the S3 client is made: signatures, retries and limits that suit every store we met."""

from __future__ import annotations

import ipaddress
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config

if TYPE_CHECKING:
    from app.settings import Settings

#: Enough for the 16 API threads or a worker's fetchers, with room for a prefetch each.
_POOL_CONNECTIONS = 32
_MAKING = Lock()


def make_client(settings: Settings) -> Any:
    """A client with the endpoint and keys of the settings; nothing is contacted yet."""
    access, secret = settings.aws_access_key_id, settings.aws_secret_access_key
    # One session for all: it keeps the descriptions of the service, half a second of JSON to
    # read. Clients are safe to share between threads, the making of them is not.
    with _MAKING:
        return _session().client(
            "s3",
            endpoint_url=settings.s3_endpoint_url,
            region_name=settings.aws_region,
            aws_access_key_id=access.get_secret_value() if access else None,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                # Stores other than AWS do not know the newer checksum headers.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                max_pool_connections=_POOL_CONNECTIONS,
                connect_timeout=5,
                read_timeout=30,
                # Together below the time after which a worker is taken for hanging.
                retries={"mode": "standard", "total_max_attempts": 3},
                tcp_keepalive=True,
                # A proxy of the environment cannot reach this machine's own addresses.
                proxies={} if _is_loopback(settings.s3_endpoint_url) else None,
            ),
        )


@cache
def _session() -> boto3.session.Session:
    return boto3.session.Session()


def _is_loopback(url: str | None) -> bool:
    host = urlsplit(url or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
