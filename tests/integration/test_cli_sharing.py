"""Sharing and exporting by the command line, against the real API, and the memory that it takes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from httpx2 import WSGITransport
from sqlalchemy import text
from typer.testing import CliRunner

from app.cli.connect import Service
from app.cli.exits import Exit
from app.cli.main import app as command_line
from app.client import Darkroom
from app.db.session import Database
from app.keyring import Keyring
from app.models.weights import version_data_key
from app.sealing.bundle import Subject, seal
from app.settings import Settings
from app.storage.s3 import ObjectStore
from tests.api_client import make_key
from tests.factories import add_version
from tests.http_server import peak_kib, running_api
from tests.sharing import Side, add_network, make_side

URL = "http://darkroom.test"
MIB = 1024 * 1024


@pytest.fixture
def owner(
    app: Any, settings: Settings, database: Database, objects: ObjectStore, tmp_path: Path
) -> Side:
    side = make_side(app, settings, database)
    add_network(database, objects, settings, side.tenant_id, tmp_path)
    return side


@pytest.fixture
def guest(app: Any, settings: Settings, database: Database) -> Side:
    return make_side(app, settings, database)


def run(side: Side, *words: object, code: Exit = Exit.DONE) -> str:
    """What the command printed, asked with the key of this side."""
    transport = WSGITransport(side.api.app, raise_app_exceptions=False)
    done = CliRunner().invoke(
        command_line,
        [str(word) for word in words],
        obj=Service(url=URL, http=transport),
        env={"DARKROOM_API_KEY": side.api.key},
    )
    assert done.exit_code == code, done.output
    return done.output


def test_model_is_shared_exported_and_taken_back_by_the_command_line(
    owner: Side, guest: Side, tmp_path: Path
) -> None:
    words = ("models", "grant", "shapes", guest.name, "--right", "run", "--items-per-day", 500)
    assert "may run shapes, answers rounded, at most 500 images a day" in run(owner, *words)
    model = f"{owner.name}/shapes"
    (shared,) = json.loads(run(guest, "models", "shared", "--json"))
    assert (shared["model"], shared["max_items_per_day"]) == (model, 500)
    # Versions are their owner's to see; the refusal says where to look instead.
    for reference in (model, f"{model}@1"):
        assert "shared models" in run(guest, "models", "show", reference, code=Exit.REFUSED)
    file = tmp_path / "taken.safetensors"
    refused = run(guest, "models", "export", f"{model}@1", "-o", file, code=Exit.REFUSED)
    assert "export_not_granted" in refused
    run(owner, "models", "grant", "shapes", guest.name, "--right", "export", "--right", "run")
    assert "export" in run(owner, "models", "grants", "shapes")
    for reference in (f"{model}@1", model):
        run(guest, "models", "export", reference, "-o", file)
        assert file.read_bytes() == (tmp_path / "shapes.safetensors").read_bytes()
        spec = json.loads(file.with_suffix(".json").read_text())
        assert spec["classes"] == ["disc", "ring", "square"]
        again = ("models", "export", reference, "-o", file)
        assert "--force" in run(guest, *again, code=Exit.USAGE)
        run(guest, *again, "--force")
        file.unlink()
        # The other file would be replaced as well.
        assert "--force" in run(guest, *again, code=Exit.USAGE)
        file.with_suffix(".json").unlink()
    into = tmp_path / "into"
    into.mkdir()
    done = json.loads(run(owner, "models", "export", "shapes@1", "-o", into, "--json"))
    assert done["file"] == str(into / "shapes-1.safetensors")
    run(owner, "models", "revoke", "shapes", guest.name)
    assert "nobody else" in run(owner, "models", "grants", "shapes")
    run(guest, "models", "export", f"{model}@1", "-o", file, code=Exit.REFUSED)
    assert not file.exists()


def test_budget_of_a_key_is_shown_and_set_by_the_command_line(owner: Side) -> None:
    key = f"key_{owner.api.key.split('_')[1]}"
    assert "any number" in run(owner, "keys", "budget", key)
    assert "1,000 images a day, 0 today" in run(
        owner, "keys", "budget", key, "--items-per-day", 1000
    )
    assert json.loads(run(owner, "keys", "budget", key, "--json"))["max_items_per_day"] == 1000
    assert "any number" in run(owner, "keys", "budget", key, "--items-per-day", 0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_export_of_200_mb_takes_little_memory_of_server_and_client(
    settings: Settings, database: Database, objects: ObjectStore, tenant_id: str, tmp_path: Path
) -> None:
    sizes = {1: 10 * MIB, 2: 200 * MIB}
    for size in sizes.values():
        add_sealed(database, objects, settings, tenant_id, os.urandom(MIB) * (size // MIB))
    with (
        running_api(settings, objects) as server,
        Darkroom(
            f"http://127.0.0.1:{server.port}", make_key(database, settings, tenant_id)
        ) as darkroom,
    ):
        # The first one loads what exports need.
        darkroom.models.export("pets", 1, tmp_path)
        before = peak_kib(server.pid)
        tracemalloc.start()
        written = darkroom.models.export("pets", 2, tmp_path)
        client = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        grown = peak_kib(server.pid) - before
    print(f"export bytes={sizes[2]} grown_kib server={grown} client={client // 1024}")  # noqa: T201
    assert written.stat().st_size == sizes[2]
    assert grown < 40 * 1024
    assert client < 10 * MIB


def add_sealed(
    database: Database, objects: ObjectStore, settings: Settings, tenant_id: str, content: bytes
) -> None:
    """A ready version of ``pets`` whose weights are these bytes, sealed."""
    keyring = Keyring.from_settings(settings)
    objects.ensure_bucket(settings.bucket)
    sha256 = hashlib.sha256(content).hexdigest()
    with database.tenant(tenant_id) as session:
        version = add_version(session, tenant_id)
        data_key, _ = version_data_key(session, keyring, tenant_id, version.id)
        key, digest = str(version.weights_key), hashlib.sha256()
        with objects.writer(settings.bucket, key) as writer:
            for piece in seal(
                io.BytesIO(content), data_key, Subject(tenant_id, version.id, sha256)
            ):
                digest.update(piece)
                writer.write(piece)
        session.execute(
            text(
                "UPDATE model_versions SET weights_sha256 = :sha256, weights_bytes = :size, "
                "sealed_sha256 = :sealed WHERE id = :id"
            ),
            {
                "sha256": sha256,
                "size": len(content),
                "sealed": digest.hexdigest(),
                "id": version.id,
            },
        )
