"""The secrets of a data folder: made once, completed by a later version, and safe on the disk."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.keyring import Keyring, SealError
from app.settings import Settings
from app.stack.processes import StackError
from app.stack.secrets import FILE, LocalSecrets, load_secrets


def keyring(secrets: LocalSecrets) -> Keyring:
    return Keyring.from_settings(
        Settings(DATABASE_URL="postgresql://x", sealing_keys=secrets.sealing_keys)
    )


@pytest.fixture
def earlier(tmp_path: Path) -> dict[str, str]:
    """What the folder of a version without sealing holds."""
    load_secrets(tmp_path)
    kept: dict[str, str] = json.loads((tmp_path / FILE).read_text())
    del kept["sealing_keys"]
    (tmp_path / FILE).write_text(json.dumps(kept))
    return kept


def test_folder_of_an_earlier_version_gets_a_sealing_key_once_and_keeps_the_rest(
    tmp_path: Path, earlier: dict[str, str]
) -> None:
    secrets = load_secrets(tmp_path)
    assert {name: getattr(secrets, name) for name in earlier} == earlier
    token = keyring(secrets).seal(b"secret", "here")
    assert keyring(load_secrets(tmp_path)).open(token, "here") == b"secret"
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


@pytest.mark.usefixtures("earlier")
def test_all_who_begin_at_once_in_an_earlier_folder_have_one_sealing_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(load_secrets, [tmp_path] * 16))
    assert {each.sealing_keys for each in found} == {load_secrets(tmp_path).sealing_keys}


def test_what_a_lost_key_sealed_is_said_to_lack_its_key_and_not_to_be_altered(
    tmp_path: Path, earlier: dict[str, str]
) -> None:
    """The file came back from a backup of before there was sealing, the database did not."""
    token = keyring(load_secrets(tmp_path)).seal(b"secret", "here")
    (tmp_path / FILE).write_text(json.dumps(earlier))
    with pytest.raises(SealError) as refused:
        keyring(load_secrets(tmp_path)).open(token, "here")
    assert refused.value.code == "sealing_key_missing"


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was made safe on the disk, and which files stood in its folder then."""
    synced: list[str] = []
    real = os.fsync

    def note(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir() and (path / FILE).exists():
            synced.append((path / FILE).read_text())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    return synced


def test_new_secrets_are_safe_on_the_disk_under_their_name_before_they_are_used(
    tmp_path: Path, synced: list[str]
) -> None:
    secrets = load_secrets(tmp_path)
    assert [json.loads(text)["sealing_keys"] for text in synced] == [secrets.sealing_keys]
    kept = json.loads((tmp_path / FILE).read_text())
    del kept["sealing_keys"]
    (tmp_path / FILE).write_text(json.dumps(kept))
    secrets = load_secrets(tmp_path)
    assert json.loads(synced[-1])["sealing_keys"] == secrets.sealing_keys
    assert len(synced) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"key_pepper": "x"}', "{"])
def test_damaged_file_is_refused_and_left_as_it_is(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(StackError, match="is damaged"):
        load_secrets(tmp_path)
    assert (tmp_path / FILE).read_text() == text
