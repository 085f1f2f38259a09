"""What must hold of the house as a whole, whatever is built in it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from app.cli.settings import markdown_table
from app.db.schema import known_revisions

ROOT = Path(__file__).parents[2]
LOCK_FILES = ("requirements.lock", "deploy/api.lock", "deploy/bootstrap.lock")
PIN = re.compile(r"^([a-z0-9][a-z0-9._-]*)==(\S+)", re.MULTILINE)
TORCH_WORLD = {"torch", "torchvision", "triton", "safetensors"}


def modules_after(*statements: str) -> list[set[str]]:
    """Top-level modules that a fresh Python has loaded after each of the statements."""
    listing = "print(*{name.partition('.')[0] for name in sys.modules})"
    program = "\n".join(["import sys", *(f"{each}\n{listing}" for each in statements)])
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        # No setting is in the environment: importing may read none of them.
        env={"PATH": "/usr/bin:/bin"},
        timeout=60,
    )
    return [set(line.split()) for line in done.stdout.splitlines()]


def pins(lock_file: str) -> dict[str, str]:
    return dict(PIN.findall((ROOT / lock_file).read_text()))


def test_what_runs_in_the_slim_image_loads_no_torch_and_no_tool_for_migrations() -> None:
    # One process imports them all: what any of them loads is still there at the end.
    for loaded in modules_after(
        "from app.api.app import create_app",
        "import app.cli.main",
        "import app.dispatch.run",
        "import worker.tasks.plan, worker.tasks.ingest, worker.tasks.export, worker.main",
    ):
        assert not loaded & {*TORCH_WORLD, "alembic"}


def test_recognition_loads_no_service_and_training_no_key_either() -> None:
    recognition, training = modules_after(
        "import worker.pipeline.run, worker.recognisers.load",
        "import worker.training.checkpoint",
    )
    assert not recognition & {"flask", "sqlalchemy", "psycopg", "celery", "redis", "boto3"}
    # A bare GPU machine runs them; whoever opens sealed weights brings the library.
    assert "cryptography" not in training


def test_decode_children_load_no_torch() -> None:
    (loaded,) = modules_after("import worker.pipeline.decode_child")
    assert not loaded & TORCH_WORLD


def test_slim_image_installs_no_torch() -> None:
    assert not pins("deploy/api.lock").keys() & TORCH_WORLD


def test_slim_image_has_the_versions_that_the_tests_ran_with() -> None:
    assert pins("deploy/api.lock").items() <= pins("requirements.lock").items()


@pytest.mark.parametrize("lock_file", LOCK_FILES)
def test_lock_file_holds_hashes_and_no_address(lock_file: str) -> None:
    text = (ROOT / lock_file).read_text()
    assert pins(lock_file)
    assert text.count("--hash=sha256:") >= len(pins(lock_file))
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_every_package_of_the_service_has_its_layer() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (layers,) = (
        contract["layers"]
        for contract in config["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    )
    placed = set(re.findall(r"app\.(\w+)", " ".join(layers)))
    there = {
        path.stem
        for path in (ROOT / "app").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert there - placed == {"__init__"}


def test_migrations_are_named_in_the_order_they_are_made_in() -> None:
    # A process that starts reads the names alone.
    scripts = ScriptDirectory(str(ROOT / "migrations")).walk_revisions()
    assert known_revisions() == tuple(script.revision for script in scripts)


def test_readme_shows_the_settings_as_they_are() -> None:
    # `darkroom settings --markdown` prints the table to paste.
    assert markdown_table() in (ROOT / "README.md").read_text()
