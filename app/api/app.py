"""The WSGI application: ``gunicorn 'app.api.app:create_app()'``."""

from __future__ import annotations

import signal
import threading
from functools import cache
from types import FrameType

import structlog
from flask import Response, g, request
from flask_openapi.models.info import Info
from flask_openapi.openapi import OpenAPI
from werkzeug.middleware.proxy_fix import ProxyFix

from app.api import (
    artifacts,
    audit_log,
    catalogue,
    control,
    datasets,
    docs,
    events,
    grants,
    health,
    jobs,
    keys,
    metrics,
    models,
    multipart,
    quotas,
    results,
    uploads,
    webhooks,
    weights,
    workers,
)
from app.api.audit import begin_note, check_noted
from app.api.auth import check_key
from app.api.document import build_document
from app.api.headers import SECURITY_HEADERS, TRANSPORT_POLICY
from app.api.idempotency import REPLAYED
from app.api.parts import Parts
from app.api.places import Places, held_threads
from app.api.problems import raise_invalid, register_problems
from app.api.rates import Rates
from app.api.release import release
from app.api.requests import JSON_MAX_BYTES, StrictRequest, refuse_encodings, refuse_repeated
from app.api.resource import Operation, id_converter
from app.api.schemas.base import Problem
from app.api.wait import WaitSlots
from app.audit.keys import AuditKey
from app.audit.repeats import Repeats
from app.clock import monotonic_seconds
from app.collector import spare_the_collector
from app.db.schema import require_schema
from app.db.session import Database
from app.errors import UnavailableError
from app.ids import REQUEST, new_id
from app.jobs.admit import Admission
from app.keyring import Keyring
from app.log import configure_logging, get_logger
from app.settings import Settings, load_settings
from app.storage.s3 import ObjectStore
from app.tenants.keys import check_pepper
from app.tenants.known_keys import KnownKeys
from app.tenants.quotas import Quotas
from app.webhooks.guard import Guard

_RESOURCES = (
    jobs.resource,
    control.resource,
    results.resource,
    events.resource,
    uploads.resource,
    multipart.resource,
    datasets.resource,
    models.resource,
    catalogue.resource,
    grants.resource,
    weights.resource,
    artifacts.resource,
    keys.resource,
    webhooks.resource,
    audit_log.resource,
    quotas.resource,
    workers.resource,
    health.resource,
    metrics.resource,
    docs.resource,
)
#: Names of webhooks that are looked up at once.
_LOOK_UPS = 4
#: A client that sends or takes nothing for so long gives its thread back; of files it is more.
_IDLE_SECONDS, _FILE_IDLE_SECONDS = 20.0, 60.0

log = get_logger(__name__)


def create_app(settings: Settings | None = None) -> OpenAPI:
    """The application; given ``settings``, it contacts nothing until it is asked something.

    Raises:
        SettingsError: ``settings`` was left out and the environment's are not valid, or name
            no pepper, no sealing key, or a database whose schema is of another version.
    """
    serving = settings is None
    if settings is None:
        settings = load_settings()
        configure_logging(settings.log_level, json=settings.log_format == "json")
        check_pepper(settings.key_pepper.get_secret_value())
        Keyring.from_settings(settings)
    app = OpenAPI(
        __name__,
        info=Info(
            title="Darkroom",
            version=release(),
            summary="Hand over a batch of images, walk away, get labelled results.",
        ),
        doc_ui=False,
        validation_error_model=Problem,
        validation_error_callback=raise_invalid,
        static_folder=None,
    )
    app.openapi_version = "3.1.1"
    app.request_class = StrictRequest
    # `//` is no other way to write `/`, and no redirect is made of it.
    app.url_map.merge_slashes = False
    app.config["MAX_CONTENT_LENGTH"] = JSON_MAX_BYTES
    # OPTIONS without a key would tell which addresses exist; no browser script of others calls us.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    # Threads are left to those who do not wait, whatever the settings say.
    held = held_threads(settings.api_threads)
    here = Parts(
        settings=settings,
        db=Database.from_settings(settings),
        store=ObjectStore.from_settings(settings),
        slots=WaitSlots(Places(settings.wait_slots, held)),
        upload_places=Places(settings.upload_slots, held),
        download_places=Places(settings.download_slots, held),
        look_up_places=Places(_LOOK_UPS, held),
        admission=Admission(Quotas.from_settings(settings)),
        audit_key=cache(lambda: AuditKey.derive(settings.key_pepper.get_secret_value())),
        repeats=Repeats(),
        rates=Rates.from_settings(settings),
        keys=KnownKeys(settings.key_pepper.get_secret_value()),
        keyring=cache(lambda: Keyring.from_settings(settings)),
        guard=Guard.from_settings(settings),
    )
    app.extensions["darkroom"] = here
    if settings.trusted_proxies:
        app.wsgi_app = ProxyFix(  # type: ignore[method-assign]
            app.wsgi_app, x_for=settings.trusted_proxies, x_proto=0
        )
    if serving:
        _check_schema(here.db)
        _end_waits_at_stop(here.slots)
    register_problems(app)
    operations: dict[str, Operation] = {}
    for resource in _RESOURCES:
        operations.update(resource.operations)
    app.url_map.converters["id"] = id_converter(operations.values())
    for resource in _RESOURCES:
        app.register_api(resource)
    app.extensions["darkroom.resources"] = _RESOURCES
    app.extensions["darkroom.openapi"] = build_document(app, operations.values())

    def begin() -> None:
        _begin(operations.get(request.endpoint or ""))

    app.before_request(begin)
    app.after_request(_end)
    if serving:
        spare_the_collector()
    return app


def _check_schema(db: Database) -> None:
    """Refuse to serve a schema of another version; one that is away is checked by nobody yet."""
    try:
        require_schema(db)
    except UnavailableError as error:
        # `/readyz` says so until it answers; to start without it is allowed.
        log.warning("schema_not_checked", code=error.code, detail=error.detail)


def _begin(operation: Operation | None) -> None:
    """Name the request, bound its silence, and let it in."""
    g.began = monotonic_seconds()
    g.request_id = new_id(REQUEST)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=g.request_id)
    connection = request.environ.get("gunicorn.socket")
    if connection is not None:
        long = operation is not None and operation.is_long
        connection.settimeout(_FILE_IDLE_SECONDS if long else _IDLE_SECONDS)
    begin_note(operation.audit if operation is not None else None)
    # Without an operation there is no route: the 404 or 405 is on its way already.
    if operation is not None and operation.guarded:
        check_key(operation.scope)
    if operation is not None:
        refuse_encodings()
        refuse_repeated()
    if operation is not None and operation.body_optional:
        request.body_optional = True  # type: ignore[attr-defined]


def _end(response: Response) -> Response:
    """Set what every answer carries, and log the request."""
    headers = response.headers
    headers["X-Request-Id"] = g.get("request_id", "")
    for name, value in SECURITY_HEADERS.items():
        headers.setdefault(name, value)
    if request.is_secure:
        headers["Strict-Transport-Security"] = TRANSPORT_POLICY
    headers.setdefault("Cache-Control", "no-store")
    if "audit" in g:
        check_noted(response, replayed=REPLAYED in headers)
    log.info(
        "request",
        method=request.method,
        path=request.path,
        status=response.status_code,
        milliseconds=round((monotonic_seconds() - g.get("began", monotonic_seconds())) * 1000, 1),
    )
    return response


def _end_waits_at_stop(slots: WaitSlots) -> None:
    """Answer long polls as soon as the server is told to stop, instead of holding it up.

    gunicorn sets its own handler first and loads the application afterwards, in the main
    thread of the worker; its handler still runs.
    """
    drain = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(drain):
        return

    def stop(number: int, frame: FrameType | None) -> None:
        slots.close()
        drain(number, frame)

    signal.signal(signal.SIGTERM, stop)
