from pydantic import SecretStr

from app.settings import Settings


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
