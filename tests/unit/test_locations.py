from __future__ import annotations

import pytest

from app.errors import InvalidInputError
from app.locations import ANYWHERE, Location, Locations, parse_location, parse_locations
from app.settings import Settings


def test_a_location_is_a_bucket_and_a_key() -> None:
    assert parse_location("s3://photos/2026/cats/") == Location("photos", "2026/cats/")
    assert parse_location("s3://photos") == Location("photos", "")
    assert str(parse_location("s3://photos/a b")) == "s3://photos/a b"


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
        parse_location(text)
    assert caught.value.code == "location_invalid"


def test_an_object_needs_a_key() -> None:
    with pytest.raises(InvalidInputError, match="no object"):
        parse_location("s3://photos/", require_key=True)


@pytest.mark.parametrize(
    "text",
    [
        "s3://Photos/",
        "photos/",
        "s3://",
        "s3://photos/*",
        "s3://*/",
        "s3://photos/../other/",
        "s3://photos-x-s3alias/",
        "s3://photos--ol-s3/",
        "s3://photos.mrap/",
        "s3://photos--use1-az4--x-s3/",
        "s3://photos--op-s3/",
        "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/photos/",
        "arn:aws:s3:::photos/",
        "s3://photos/a\x00b/",
        "none",
    ],
)
def test_location_that_means_nothing_or_two_things_cannot_be_allowed(text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_locations([text])
    assert caught.value.code == "location_invalid"


@pytest.mark.parametrize("text", ["s3://photos/a", "s3://photos/a/"])
def test_prefix_means_what_lies_below_it(text: str) -> None:
    allowed = parse_locations([text])
    assert allowed.allows("photos", "a/b.png")
    assert allowed.allows("photos", "a/")
    for bucket, key in [
        ("photos", "a"),
        ("photos", "ab/c.png"),
        ("photos", "A/b.png"),
        ("photos", "/a/b.png"),
        ("photos", "a%2fb.png"),
        ("photos", "a/../b.png"),
        ("photos2", "a/b.png"),
        ("photos/a", "b.png"),
        ("", "photos/a/b.png"),
    ]:
        assert not allowed.allows(bucket, key), (bucket, key)


def test_bucket_alone_means_all_of_it_and_no_other() -> None:
    allowed = parse_locations(["s3://photos", "s3://scans/2026/"])
    assert allowed.allows("photos", "")
    assert allowed.allows("photos", "x/y")
    assert allowed.allows("scans", "2026/x")
    assert not allowed.allows("scans", "2025/x")
    assert not allowed.allows("photos-2", "x")
    assert not Locations(()).allows("photos", "x")
    assert ANYWHERE.allows("scans", "2025/x")
    # Behind such a name may lie the service's own bucket.
    assert not ANYWHERE.allows("darkroom-7f3q-s3alias", "tenants/")


@pytest.mark.parametrize("value", ["", " , ", "photos", "s3://photos/*", "none,s3://photos/"])
def test_setting_that_is_no_list_of_locations_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="input_locations"):
        Settings(DATABASE_URL="postgresql://x", input_locations=value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("*", ANYWHERE),
        ("none", Locations(())),
        ("s3://a-1/x, s3://b-1", Locations(("s3://a-1/x/", "s3://b-1/"))),
        ("s3://a-1/,*", ANYWHERE),
    ],
)
def test_setting_is_what_tenants_have_without_their_own(value: str, expected: Locations) -> None:
    settings = Settings(DATABASE_URL="postgresql://x", input_locations=value)
    assert settings.default_locations == expected


def test_one_installation_for_one_user_reads_every_bucket_unless_it_says_otherwise() -> None:
    assert Settings.model_fields["input_locations"].default == "*"
