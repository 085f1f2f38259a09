from __future__ import annotations

import pytest

from app.errors import InvalidInputError
from app.storage import keys


def test_every_key_begins_with_its_tenant() -> None:
    made = [
        keys.upload_archive("ten_1", "upl_1"),
        keys.shard("ten_1", "upl_1", 7),
        keys.weights("ten_1", "mdv_1"),
        keys.artifact("ten_1", "job_1", "results.jsonl"),
        keys.checkpoint("ten_1", "job_1", 1, 500),
        keys.checkpoint("ten_1", "job_1", 2, 500),
    ]
    assert all(key.startswith(keys.tenant_prefix("ten_1")) for key in made)
    assert len(set(made)) == len(made)
    assert made[1] == "tenants/ten_1/uploads/upl_1/shards/000007.shard"


@pytest.mark.parametrize("part", ["", "..", "a/b", "../x", "a\n", ".hidden"])
def test_a_part_that_could_leave_its_folder_is_refused(part: str) -> None:
    with pytest.raises(ValueError, match="object key"):
        keys.artifact("ten_1", "job_1", part)


def test_a_location_is_a_bucket_and_a_key() -> None:
    assert keys.parse_location("s3://photos/2026/cats/") == keys.Location("photos", "2026/cats/")
    assert keys.parse_location("s3://photos") == keys.Location("photos", "")
    assert str(keys.parse_location("s3://photos/a b")) == "s3://photos/a b"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("photos/cats", "begin with s3://"),
        ("https://photos/cats", "begin with s3://"),
        ("s3:///cats", "names no bucket"),
        ("s3://Photos/cats", "no bucket name"),
        ("s3://ph/cats", "no bucket name"),
        ("s3://photos/\n", "control"),
        ("s3://photos/\udc80", "Unicode"),
        ("s3://photos/" + "x" * 1025, "1025 bytes"),
    ],
)
def test_a_bad_location_says_why(text: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why) as caught:
        keys.parse_location(text)
    assert caught.value.code == "location_invalid"


def test_an_object_needs_a_key() -> None:
    with pytest.raises(InvalidInputError, match="no object"):
        keys.parse_location("s3://photos/", require_key=True)
