import pytest
from pydantic import SecretStr

from app.errors import SettingsError
from app.settings import Settings, load_settings


def test_copy_of_the_settings_derives_its_values_from_its_own_fields():
    first = Settings(
        DATABASE_URL="postgresql://api@one/darkroom",
        SYSTEM_DATABASE_URL="postgresql://system@one/darkroom",
        decode_processes=3,
        webhook_hosts="one.example",
    )
    before = (first.system_url, first.decode_process_count, first.webhook_host_list)
    second = first.model_copy(
        update={
            "system_database_url": SecretStr("postgresql://system@two/darkroom"),
            "decode_processes": 5,
            "webhook_hosts": "two.example",
        }
    )
    assert before == ("postgresql://system@one/darkroom", 3, ["one.example"])
    assert second.system_url == "postgresql://system@two/darkroom"
    assert second.decode_process_count == 5
    assert second.webhook_host_list == ["two.example"]


def test_secret_may_lie_in_a_file(monkeypatch, tmp_path):
    url, pepper = tmp_path / "url", tmp_path / "pepper"
    url.write_text("postgresql://api:word@one/darkroom\n")
    pepper.write_text("a pepper of 32 characters and more\r\n")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL_FILE", str(url))
    monkeypatch.setenv("DARKROOM_KEY_PEPPER_FILE", str(pepper))
    settings = load_settings()
    assert settings.database_url.get_secret_value() == "postgresql://api:word@one/darkroom"
    assert settings.key_pepper.get_secret_value() == "a pepper of 32 characters and more"


def test_secret_given_twice_or_in_no_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    monkeypatch.setenv("DARKROOM_KEY_PEPPER_FILE", str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"DARKROOM_KEY_PEPPER_FILE: .*none cannot be read"):
        load_settings()
    (tmp_path / "none").write_text("hidden words")
    monkeypatch.setenv("DARKROOM_KEY_PEPPER", "another")
    with pytest.raises(SettingsError, match="not both") as refused:
        load_settings()
    assert "hidden" not in str(refused.value)
