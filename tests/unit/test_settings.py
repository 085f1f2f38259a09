import pytest
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from app.cli.main import app
from app.cli.settings import setting_rows
from app.errors import SettingsError
from app.settings import Settings, load_settings

CANARY = "w0rdcanary"
#: An address that is malformed, and what must be said of it; CANARY is a password or part of one.
MALFORMED = {
    "at in the password": ("redis://:p@{}:word@host:6379/0", "an @"),
    "port is a word": ("redis://:{}@host:abc/0", "a port is a number"),
    "at and a word as port": ("redis://:p@{}:word@host:abc/0", "an @"),
    "port too large": ("redis://:{}@host:65536/0", "a port is a number"),
    "port nought": ("redis://:{}@host:0/0", "no host and port"),
    "password in the place of the port": ("redis://host:{}/0", "a port is a number"),
    "password without its at": ("redis://:{}/0", "a port is a number"),
    "digits without their at": ("redis://:12345?password={}", "a port and no host"),
    "password as the user": ("redis://{}@host/0", "a user and no password"),
    "slash in the password": ("redis://:12/{}@host:6379/0", "an @"),
    "question mark in the password": ("redis://:12?{}@host:6379/0", "an @"),
    "hash in the password": ("redis://:12#{}@host:6379/0", "a #"),
    "bracket in the password": ("redis://:[{}]@host:6379/0", "a bracket"),
    "one bracket in the host": ("redis://:{}@[::1/0", "no host and port"),
    "no address in brackets": ("redis://:x@[{}]:6379/0", "no host and port"),
    "dollar and no at": ("redis://$w{}:6379/0", "no host and port"),
    "space in the password": ("redis://:a {}@host/0", "a space"),
    "line break in the password": ("redis://:a\n{}@host/0", "a line break"),
    "sign that becomes a slash": ("redis://:a\u2100{}@host/0", "no host and port"),
    "no database": ("redis://:12345@host/{}", "number of a database"),
    "no scheme": (":{}@host:6379/0", "does not begin with"),
    "scheme alone": ("redis:{}", "does not begin with"),
    "scheme of the web": ("https://:{}@host", "does not begin with"),
    "scheme in capitals": ("REDIS://:{}@host", "does not begin with"),
    "scheme of the other part": ("postgresql://u:{}@host/db", "does not begin with"),
    "socket with a host": ("unix://:{}@host/run/redis.sock", "path of a socket"),
    "socket without a path": ("redis+socket://:{}@", "path of a socket"),
    "percent without digits": ("redis://:p%zz{}@host/0", "a % without"),
    "percent at the end": ("redis://:{}%@host/0", "a % without"),
    "nought byte": ("redis://:{}%00@host/0", "%00"),
    "no UTF-8": ("redis://:{}%ff@host/0", "not UTF-8"),
    "ampersand in the query": ("redis://host/0?password=a&{}", "NAME=VALUE"),
    "more behind the query's": ("redis://host/0?password=a&{}=b", "put that last"),
    "plus in the query": ("redis://host/0?password=a+{}", "a +"),
    "at in the query": ("redis://host/0?password=a@{}", "an @"),
}
DATABASE_MALFORMED = {
    "percent without digits": ("postgresql://u:p%zz{}@h", "a % without"),
    "at in the password": ("postgresql://u:p@{}@h/db", "an @"),
    "slash in the password": ("postgresql://u:12/{}@h/db", "an @"),
    "hash in the password": ("postgresql://u:12#{}@h/db", "a #"),
    "bracket in the password": ("postgresql://u:[{}@h/db", "a bracket"),
    "port is a word": ("postgresql://u:{}@h:port/db", "a port is a number"),
    "two ports": ("postgresql://u:{}@h:1,i:2/db", "a port is a number"),
    "words of libpq": ("host=h user=u password={}", "does not begin with"),
    "scheme of another database": ("mysql://u:{}@h/db", "does not begin with"),
    "driver that is not here": ("postgresql+asyncpg://u:{}@h/db", "does not begin with"),
    "no scheme": ("u:{}@h/db", "does not begin with"),
    "nothing behind a name": ("postgresql://h/db?{}", "NAME=VALUE"),
}
DATABASES = ("DATABASE_URL", "SYSTEM_DATABASE_URL", "ADMIN_DATABASE_URL")
CASES = [
    *(("REDIS_URL", shape) for shape in MALFORMED),
    *((name, shape) for name in DATABASES for shape in DATABASE_MALFORMED),
]


def malformed(name: str, shape: str) -> tuple[str, str]:
    """The address with the canary in it, and words that its refusal must hold."""
    text, words = (MALFORMED if name == "REDIS_URL" else DATABASE_MALFORMED)[shape]
    return text.format(CANARY), words


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
    with pytest.raises(SettingsError, match="DARKROOM_KEY_PEPPER_FILE names no file"):
        load_settings()
    (tmp_path / "none").write_text("hidden words")
    monkeypatch.setenv("DARKROOM_KEY_PEPPER", "another")
    with pytest.raises(SettingsError, match="not both") as refused:
        load_settings()
    assert "hidden" not in str(refused.value)
    assert "none" not in str(refused.value)


@pytest.mark.parametrize(("name", "shape"), CASES)
def test_malformed_address_is_refused_by_its_name_and_never_shown(
    monkeypatch, tmp_path, name, shape
):
    address, words = malformed(name, shape)
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    monkeypatch.setenv(name, address)
    with pytest.raises(ValidationError) as raw:
        Settings()
    assert CANARY not in f"{raw.value} {raw.value!r}"
    with pytest.raises(SettingsError) as refused:
        load_settings()
    (tmp_path / "address").write_text(f"{address}\n")
    monkeypatch.delenv(name)
    monkeypatch.setenv(f"{name}_FILE", str(tmp_path / "address"))
    with pytest.raises(SettingsError) as refused_in_file:
        load_settings()
    for error in (refused.value, refused_in_file.value):
        assert f"{name}: " in error.detail
        assert words in error.detail
        assert [fault["pointer"] for fault in error.errors] == [name]
        assert CANARY not in f"{error!r} {error.as_dict()}"


def test_table_of_settings_shows_no_malformed_address():
    for name, shape in CASES:
        rows = setting_rows({name: malformed(name, shape)[0]})
        (shown,) = [row.value for row in rows if row.is_set]
        assert "**" in shown, shape
        assert CANARY not in shown, shape


@pytest.mark.parametrize(
    ("words", "suffix"),
    [(["settings"], ""), (["settings", "--json"], "_FILE"), (["doctor", "--security"], "")],
)
def test_no_command_shows_a_malformed_address(monkeypatch, tmp_path, words, suffix):
    address, told = malformed("REDIS_URL", "at and a word as port")
    (tmp_path / "address").write_text(address)
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    monkeypatch.setenv(f"REDIS_URL{suffix}", str(tmp_path / "address") if suffix else address)
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 1
    assert f"REDIS_URL: holds {told}" in shown.stderr
    assert CANARY not in shown.output


def test_address_that_stands_where_its_file_belongs_is_not_shown(monkeypatch):
    monkeypatch.setenv("REDIS_URL_FILE", f"redis://:{CANARY}@host/0")
    monkeypatch.setenv("DATABASE_URL", "postgresql://x")
    with pytest.raises(SettingsError, match="REDIS_URL_FILE names no file") as refused:
        load_settings()
    assert CANARY not in str(refused.value)


def test_address_that_is_empty_is_as_good_as_not_set_but_for_the_database(monkeypatch):
    for name in ("SYSTEM_DATABASE_URL", "ADMIN_DATABASE_URL", "REDIS_URL"):
        monkeypatch.setenv(name, "")
    load_settings(DATABASE_URL="postgresql://x")
    with pytest.raises(SettingsError, match="valid: DATABASE_URL: does not begin"):
        load_settings(DATABASE_URL="")
