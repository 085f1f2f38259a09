import io

import pytest
from rich.console import Console
from typer.testing import CliRunner

from app.cli.main import app
from app.cli.tenants import _show, find_database
from app.stack.secrets import load_secrets


@pytest.fixture(autouse=True)
def no_database_is_named(monkeypatch):
    for name in ("DATABASE_URL", "SYSTEM_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)


def test_database_of_a_data_folder_is_found_where_the_environment_names_none(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_DATA", str(tmp_path))
    password = load_secrets(tmp_path).system_password
    (tmp_path / "postgres.port").write_text("5555")
    system = f"postgresql://darkroom_system:{password}@127.0.0.1:5555/darkroom"
    assert find_database()["SYSTEM_DATABASE_URL"] == system
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere")
    assert find_database() == {}


def test_without_any_database_both_ways_to_name_one_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("DARKROOM_DATA", str(tmp_path / "none"))
    done = CliRunner().invoke(app, ["tenants", "list"])
    assert done.exit_code == 1
    assert "SYSTEM_DATABASE_URL, or DARKROOM_DATA" in done.stderr
    assert not (tmp_path / "none").exists()


def test_all_quotas_of_a_tenant_are_shown_in_80_columns(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, width=80, force_terminal=True, color_system=None)
    monkeypatch.setattr("app.cli.console.stdout", lambda: terminal)
    quotas = {
        "max_open_jobs": 20_000,
        "max_open_items": 20_000_000,
        "max_stored_bytes": 2**40,
        "max_submissions_per_minute": 12_000,
        "max_training_minutes": 200_000,
    }
    _show([{"name": "default", "id": "ten_1", "own": [], **quotas}], as_json=False)
    shown = screen.getvalue().splitlines()[-1].split()
    assert shown == ["default", *(f"{limit:,}*" for limit in quotas.values())]
