import json

from typer.testing import CliRunner

from app.cli.main import app
from app.cli.settings import mask, setting_rows
from app.settings import Settings

SECRET = "correct-horse-battery"
ENVIRON = {
    "DATABASE_URL": f"postgresql://darkroom_api:{SECRET}@db:5432/darkroom",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "DARKROOM_KEY_PEPPER": SECRET,
    "DARKROOM_API_PORT": "9000",
}


def test_every_setting_is_a_row_with_its_present_value():
    rows = {row.name: row for row in setting_rows(ENVIRON)}
    assert len(rows) == len(Settings.model_fields)
    assert rows["DARKROOM_API_PORT"].value == "9000"
    assert rows["DARKROOM_API_PORT"].is_set
    assert rows["DARKROOM_API_THREADS"].value == "16"
    assert not rows["DARKROOM_API_THREADS"].is_set
    assert all(row.description for row in rows.values())


def test_no_way_of_showing_settings_tells_a_secret(monkeypatch):
    for name, value in ENVIRON.items():
        monkeypatch.setenv(name, value)
    for words in ([], ["--json"], ["--markdown"]):
        shown = CliRunner().invoke(app, ["settings", *words])
        assert shown.exit_code == 0, shown.output
        assert SECRET not in shown.output
    assert json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)


def test_table_of_settings_says_whose_values_it_shows():
    shown = CliRunner().invoke(app, ["settings"])
    assert "the environment that it was started in" in shown.stderr
    assert not CliRunner().invoke(app, ["settings", "--json"]).stderr


def test_mask_leaves_of_a_url_all_but_its_password():
    assert mask(f"redis://:{SECRET}@host:6379/0") == "redis://:***@host:6379/0"
    assert mask("redis+socket:///run/valkey.sock") == "redis+socket:///run/valkey.sock"
    assert mask(f"postgresql://db/x?a=b&password={SECRET}") == "postgresql://db/x?a=b&password=***"
    assert mask(f"postgresql://u:12#{SECRET}@db/x") == "********"
    assert mask(f"postgresql://db/x?password=a&{SECRET}=b") == "********"
    assert mask("") == ""
    assert mask(SECRET) == "********"
    assert mask("user:with/odd@chars") == "********"


def test_heartbeat_that_no_lease_outlives_is_refused(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    monkeypatch.setenv("DARKROOM_LEASE_SECONDS", "5")
    shown = CliRunner().invoke(app, ["settings"])
    assert shown.exit_code == 1
    assert "DARKROOM_HEARTBEAT_SECONDS (10) must be below" in shown.stderr


def test_invalid_setting_is_named_and_fails_the_command(monkeypatch):
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    monkeypatch.setenv("DARKROOM_API_PORT", "many")
    shown = CliRunner().invoke(app, ["settings"])
    assert shown.exit_code == 1
    assert "DARKROOM_API_PORT" in shown.output
    assert "settings_invalid" in shown.stderr
