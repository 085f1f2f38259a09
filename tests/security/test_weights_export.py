"""Weights leave by one door, to whom the right was granted, and nobody else gets them any way."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from sqlalchemy import text

from app.audit.read import list_entries
from app.audit.tables import AuditEntry
from app.db.session import Database
from app.keyring import Keyring
from app.models.resolve import get_version
from app.models.spec import ModelSpec
from app.models.weights import version_data_key
from app.sealing.bundle import Subject, seal
from app.settings import Settings
from app.storage.s3 import ObjectStore
from app.tenants.scopes import Scope
from tests.api_client import Api, import_body, make_app, make_key
from tests.sharing import CLASSES, Side, add_network, make_side, predict_body, put_pictures
from worker.recognisers.load import load_recogniser

WEIGHTS = "/v1/models/shapes/versions/1/weights"
SPEC = "/v1/models/shapes/versions/1/spec"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def owner(
    app: Any, settings: Settings, database: Database, objects: ObjectStore, folder: Path
) -> Side:
    """A tenant with the model ``shapes``, whose weights lie sealed."""
    side = make_side(app, settings, database)
    version_id = add_network(database, objects, settings, side.tenant_id, folder)
    seal_weights(database, objects, settings, side.tenant_id, version_id)
    return side


@pytest.fixture(scope="module")
def plain(folder: Path, owner: Side) -> bytes:
    """The file that was registered."""
    return (folder / "shapes.safetensors").read_bytes()


@pytest.fixture
def guest(app: Any, settings: Settings, database: Database) -> Side:
    return make_side(app, settings, database)


def seal_weights(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, version_id: str
) -> None:
    """Let the version's weights lie sealed in small frames, as a worker stores them."""
    keyring = Keyring.from_settings(settings)
    with database.tenant(tenant_id) as session:
        version = get_version(session, tenant_id, version_id)
        key, sha256 = str(version.weights_key), str(version.weights_sha256)
        data_key, _ = version_data_key(session, keyring, tenant_id, version_id)
        with objects.open(settings.bucket, key) as stream:
            content = stream.read()
        subject = Subject(tenant_id, version_id, sha256)
        sealed = b"".join(seal(io.BytesIO(content), data_key, subject, frame_bytes=4096))
        objects.put(settings.bucket, key, sealed)
        session.execute(
            text("UPDATE model_versions SET sealed_sha256 = :digest WHERE id = :id"),
            {"digest": hashlib.sha256(sealed).hexdigest(), "id": version_id},
        )


def share(owner: Side, guest: Side, *rights: str) -> None:
    answer = owner.api(
        "PUT", f"/v1/models/shapes/grants/{guest.name}", json={"rights": list(rights)}
    )
    assert answer.status_code == 200, answer.text


def test_owner_takes_its_sealed_weights_out_in_clear(
    owner: Side, plain: bytes, settings: Settings, database: Database, objects: ObjectStore
) -> None:
    answer = owner.api("GET", WEIGHTS)
    assert answer.status_code == 200, answer.text
    assert answer.data == plain
    digest = hashlib.sha256(plain).hexdigest()
    assert answer.headers["ETag"] == f'"{digest}"'
    assert answer.headers["Content-Disposition"] == "attachment; filename=shapes-1.safetensors"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Length"] == str(len(plain))
    again = owner.api("GET", WEIGHTS, headers={"If-None-Match": f'"{digest}"'})
    assert (again.status_code, again.data) == (304, b"")
    head = owner.api("HEAD", WEIGHTS)
    assert (head.status_code, head.data) == (200, b"")
    with database.tenant(owner.tenant_id) as session:
        (entry,) = session.query(AuditEntry).filter_by(action="weights.exported")
        assert entry.details["sha256"] == digest
        # Whoever reads the store finds no such file.
        version = get_version(session, owner.tenant_id, "shapes@1")
    with objects.open(settings.bucket, str(version.weights_key)) as stream:
        assert stream.read(6) == b"DRSEAL"


def test_what_is_exported_serves_elsewhere(owner: Side, plain: bytes, tmp_path: Path) -> None:
    spec = owner.api("GET", SPEC).json
    file = tmp_path / spec["weights"]["filename"]
    file.write_bytes(owner.api("GET", WEIGHTS).data)
    assert file.stat().st_size == spec["weights"]["size_bytes"]
    with safe_open(file, "pt") as weights:
        assert list(weights.keys())
    read = ModelSpec.from_dict({name: spec[name] for name in ("arch", "classes", "preprocess")})
    assert load_recogniser(read, file, "cpu", sha256=spec["weights"]["sha256"])
    assert read.classes == CLASSES


def test_export_needs_the_scope_and_the_right(
    app: Any, owner: Side, guest: Side, plain: bytes, settings: Settings, database: Database
) -> None:
    theirs = {"owner": owner.name}
    for address in (WEIGHTS, SPEC):
        unknown = guest.api("GET", address, query_string={"owner": "nobody"})
        hidden = guest.api("GET", address, query_string=theirs)
        assert hidden.status_code == unknown.status_code == 404
        assert hidden.json["detail"] == unknown.json["detail"].replace("nobody", owner.name)
        # And without an owner it is one of its own that does not exist.
        assert guest.api("GET", address).status_code == 404
    share(owner, guest, "run", "evaluate")
    for address in (WEIGHTS, SPEC):
        refused = guest.api("GET", address, query_string=theirs)
        assert (refused.status_code, refused.json["code"]) == (403, "export_not_granted")
        assert CLASSES[0] not in refused.text
    with database.tenant(guest.tenant_id) as session:
        denied, _ = list_entries(session, guest.tenant_id, action="access.denied")
    assert [each.details["code"] for each in denied] == ["export_not_granted"] * 2
    assert {each.details["model"] for each in denied} == {f"{owner.name}/shapes"}
    assert {each.target for each in denied} == {f"GET {WEIGHTS}", f"GET {SPEC}"}
    share(owner, guest, "export")
    assert guest.api("GET", WEIGHTS, query_string=theirs).data == plain
    with database.tenant(owner.tenant_id) as session:
        taken, _ = list_entries(session, owner.tenant_id, actor=guest.tenant_id)
        version = get_version(session, owner.tenant_id, "shapes@1")
    (entry,) = taken
    assert (entry.action, entry.target) == ("weights.exported", version.id)
    assert (entry.details["tenant"], entry.details["model"]) == (guest.name, "shapes")
    # From where and by which key is the other tenant's own affair.
    assert (entry.client_address, entry.request_id) == (None, None)
    assert guest.api("GET", SPEC, query_string=theirs).json["model"] == f"{owner.name}/shapes"
    every_other = [scope for scope in Scope if scope not in (Scope.EXPORTS, Scope.ADMIN)]
    narrow = Api(app, make_key(database, settings, guest.tenant_id, *every_other))
    refused = narrow("GET", WEIGHTS, query_string=theirs)
    assert (refused.status_code, refused.json["code"]) == (403, "scope_missing")
    gone = owner.api("DELETE", f"/v1/models/shapes/grants/{guest.name}")
    assert gone.status_code == 204
    assert guest.api("GET", WEIGHTS, query_string=theirs).status_code == 404


def test_who_may_only_run_gets_the_weights_by_no_other_road(
    owner: Side, guest: Side, objects: ObjectStore, settings: Settings, database: Database
) -> None:
    share(owner, guest, "run")
    model = f"{owner.name}/shapes"
    with database.tenant(owner.tenant_id) as session:
        version = get_version(session, owner.tenant_id, "shapes@1")
    items = put_pictures(objects, guest.tenant_id, 1)
    job = guest.api("POST", "/v1/jobs", json=predict_body(model, items)).json
    key = f"s3://{settings.bucket}/{version.weights_key}"
    bodies = [
        # As something to train on, to import, or to read as an image.
        {"kind": "finetune", "model": model, "input": {"dataset": "x"}},
        {**import_body(model)},
        {**import_body(), "options": {**import_body()["options"], "weights": version.id}},
        {**import_body(), "options": {**import_body()["options"], "weights": key}},
        predict_body(model, [{"key": key}]),
        {"kind": "predict", "model": model, "input": {"manifest": key}},
        {"kind": "predict", "model": model, "input": {"prefix": key}},
    ]
    for body in bodies:
        assert guest.api("POST", "/v1/jobs", json=body).status_code in (404, 422), body
    calls: list[tuple[str, str, Any]] = [
        ("GET", "/v1/models/shapes/versions/1", None),
        ("GET", WEIGHTS, None),
        ("GET", SPEC, None),
        ("PUT", "/v1/models/shapes/aliases/mine", {"version": 1}),
        ("PUT", f"/v1/models/shapes/grants/{guest.name}", {"rights": ["export"]}),
    ]
    for method, address, asked in calls:
        assert guest.api(method, address, json=asked).status_code == 404
    # Nothing that it can read of its job tells where they lie, or what opens them.
    for address in ("", "/results", "/events", "/artifacts", "/metrics"):
        seen = guest.api(
            "GET", f"/v1/jobs/{job['id']}{address}", headers={"Accept": "application/json"}
        ).text
        for secret in (version.weights_key, version.sealed_key, owner.tenant_id):
            assert str(secret) not in seen


def test_weights_in_clear_are_not_handed_out_where_only_sealed_ones_may_be_used(
    app: Any, settings: Settings, database: Database, objects: ObjectStore, tmp_path: Path
) -> None:
    side = make_side(app, settings, database)
    version_id = add_network(database, objects, settings, side.tenant_id, tmp_path)
    strict = make_app(settings.model_copy(update={"sealed_only": True}), objects)
    api = Api(strict, side.api.key)
    refused = api("GET", WEIGHTS)
    assert (refused.status_code, refused.json["code"]) == (409, "weights_not_sealed")
    seal_weights(database, objects, settings, side.tenant_id, version_id)
    assert api("GET", WEIGHTS).data == (tmp_path / "shapes.safetensors").read_bytes()


@pytest.mark.parametrize("cut", [10, 40, 5000, -1])
def test_damaged_weights_are_never_handed_out_whole(
    app: Any,
    settings: Settings,
    database: Database,
    objects: ObjectStore,
    tmp_path: Path,
    cut: int,
) -> None:
    side = make_side(app, settings, database)
    version_id = add_network(database, objects, settings, side.tenant_id, tmp_path)
    seal_weights(database, objects, settings, side.tenant_id, version_id)
    with database.tenant(side.tenant_id) as session:
        key = str(get_version(session, side.tenant_id, version_id).weights_key)
    with objects.open(settings.bucket, key) as stream:
        sealed = stream.read()
    objects.put(settings.bucket, key, sealed[:cut])
    if cut < 4096 and cut > 0:
        # Nothing of the first frame opens: it is told before any byte.
        refused = side.api("GET", WEIGHTS)
        assert (refused.status_code, refused.json["code"]) == (409, "weights_sealed_damaged")
    else:
        with pytest.raises(Exception, match="does not open"):
            # The connection breaks off; its length says that the file is not whole.
            side.api("GET", WEIGHTS, buffered=True)
    objects.delete(settings.bucket, [key])
    gone = side.api("GET", WEIGHTS)
    assert (gone.status_code, gone.json["code"]) == (404, "weights_gone")
