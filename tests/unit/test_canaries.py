from tests.canaries import Canaries

PASSWORD = "aB3-_xYz" * 4
KEY = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst"


def leaks(text: str) -> list[str]:
    canaries = Canaries()
    canaries.add(PASSWORD, "a password")
    canaries.add(KEY, "a key")
    canaries.look(text, "here")
    return canaries.leaks


def test_secret_is_found_wherever_it_stands():
    for text in (
        PASSWORD,
        f"postgresql://darkroom_api:{PASSWORD}@127.0.0.1:5432/darkroom",
        f'{{"event": "x", "exception": "… password={PASSWORD}\\n"}}',
        f"(1,{PASSWORD},t)",
        f"/v1/jobs?token={PASSWORD}&x=1",
    ):
        assert leaks(text) == ["a password stands in here"], text
    assert leaks(f"Authorization: Bearer dk_01m88cy7r27rjwh2q2z8vq1m23_{KEY}_12ab34cd")


def test_nothing_is_found_where_there_is_none():
    assert not leaks(f"{PASSWORD[:-1]} {KEY[1:]} job_01m88cy7r27rjwh2q2z8vq1m23 {'0' * 64}")


def test_short_words_are_no_secrets():
    canaries = Canaries()
    canaries.add("darkroom", "a name")
    canaries.look("darkroom", "here")
    assert not canaries.leaks
