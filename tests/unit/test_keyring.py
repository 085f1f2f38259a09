import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import SettingsError
from app.keyring import Keyring, SealError, key_id_of, new_key_text
from app.settings import Settings

GOOD = f"good:{base64.b64encode(bytes(range(32))).decode()}"
OLD, NEW = (bytes([number]) * 32 for number in (1, 2))


def from_text(text: str) -> Keyring:
    return Keyring.from_settings(Settings(DATABASE_URL="postgresql://x", sealing_keys=text))


@given(secret=st.binary(max_size=200), about=st.text(max_size=40))
def test_what_is_sealed_opens_to_the_same_under_the_same_words(secret, about):
    keys = Keyring({"old": OLD})
    assert keys.open(keys.seal(secret, about), about) == secret


def test_token_opens_for_nothing_else_and_never_altered():
    keys = Keyring({"old": OLD})
    token = keys.seal(b"secret", "webhook:1")
    with pytest.raises(SealError, match="altered, or belongs"):
        keys.open(token, "webhook:2")
    head, _, text = token.rpartition(".")
    raw = base64.urlsafe_b64decode(text)
    for place in range(len(raw)):
        bent = bytearray(raw)
        bent[place] ^= 1
        with pytest.raises(SealError):
            keys.open(f"{head}.{base64.urlsafe_b64encode(bent).decode()}", "webhook:1")
    for other in (token[:-4], token + "A", f"{head}.", "", "k1", "k2.old.AAAA", token + "é"):
        with pytest.raises(SealError):
            keys.open(other, "webhook:1")


def test_same_secret_is_never_sealed_to_the_same_token():
    keys = Keyring({"old": OLD})
    assert keys.seal(b"secret", "x") != keys.seal(b"secret", "x")


def test_token_under_the_name_of_another_key_does_not_open():
    keys = Keyring({"old": OLD, "new": NEW})
    token = keys.seal(b"secret", "x")
    with pytest.raises(SealError):
        keys.open(token.replace("k1.old.", "k1.new."), "x")


def test_rotation_seals_under_the_first_key_and_opens_under_all():
    before = Keyring({"old": OLD})
    token = before.seal(b"secret", "x")
    between = Keyring({"new": NEW, "old": OLD})
    moved = between.reseal(token, "x")
    assert key_id_of(moved) == "new"
    assert between.reseal(moved, "x") == moved
    after = Keyring({"new": NEW})
    assert after.open(moved, "x") == b"secret"
    with pytest.raises(SealError) as refused:
        after.open(token, "x")
    assert refused.value.code == "sealing_key_missing"
    assert "'old'" in refused.value.detail


def test_keys_for_other_purposes_differ_and_stay():
    keys = Keyring({"new": NEW, "old": OLD})
    assert len(keys.derive("audit")) == 32
    assert keys.derive("audit") != keys.derive("links")
    assert keys.derive("audit", "old") == Keyring({"old": OLD}).derive("audit")
    with pytest.raises(SealError):
        keys.derive("audit", "gone")


def test_setting_takes_both_alphabets_of_base64_and_lines():
    odd = b"\xfb\xff" * 16
    plain, url = base64.b64encode(odd).decode(), base64.urlsafe_b64encode(odd).decode()
    for text in (f"a:{plain}", f"a:{url}", f" a:{url.rstrip('=')} ,\n{new_key_text('b')}\n"):
        keys = from_text(text)
        assert keys.active_id == "a"
        assert keys.derive("x") == Keyring({"a": odd}).derive("x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no sealing key is set"),
        (" , ", "no sealing key is set"),
        ("first", "number 1 is not valid"),
        ("first:c2hvcnQ=", "number 1 is not valid"),
        (f"{GOOD},b:***", "number 2 is not valid"),
        (GOOD.replace("good", "not a name"), "number 1 is not valid"),
        (f"{GOOD},{GOOD}", "two sealing keys are called 'good'"),
    ],
)
def test_setting_that_is_not_valid_is_told_without_its_secret(text, words):
    with pytest.raises(SettingsError, match=words) as refused:
        from_text(text)
    for word in text.replace(",", ":").split(":"):
        assert len(word) < 8 or word not in str(refused.value)
