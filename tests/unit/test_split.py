import hashlib
from collections import Counter

import pytest

from app.datasets.split import split_rule
from app.datasets.tables import Split
from app.errors import InvalidInputError


def digests(count: int) -> list[str]:
    return [hashlib.sha256(str(number).encode()).hexdigest() for number in range(count)]


def test_split_hangs_on_image_and_seed_alone() -> None:
    first = [split_rule((0.8, 0.0, 0.2), 7).split_of(digest) for digest in digests(500)]
    again = [split_rule((0.8, 0.0, 0.2), 7).split_of(digest) for digest in digests(500)]
    other = [split_rule((0.8, 0.0, 0.2), 8).split_of(digest) for digest in digests(500)]
    assert first == again
    assert first != other


def test_split_does_not_change_between_versions_of_the_code() -> None:
    rule = split_rule((0.6, 0.2, 0.2), 0)
    assert [rule.split_of(digest).value for digest in digests(6)] == [
        "test",
        "test",
        "validation",
        "validation",
        "train",
        "train",
    ]


def test_fractions_are_met_over_many_images() -> None:
    rule = split_rule((0.7, 0.1, 0.2), 1)
    counts = Counter(rule.split_of(digest) for digest in digests(20_000))
    assert counts[Split.TRAIN] == pytest.approx(14_000, rel=0.03)
    assert counts[Split.VALIDATION] == pytest.approx(2_000, rel=0.1)
    assert counts[Split.TEST] == pytest.approx(4_000, rel=0.06)


def test_empty_fraction_gets_no_image() -> None:
    thirds = split_rule((0.5, 0.5, 0.0), 0)
    assert Split.TEST not in {thirds.split_of(digest) for digest in digests(2_000)}
    everything = split_rule((0.0, 0.0, 1.0), 0)
    assert {everything.split_of(digest) for digest in digests(100)} == {Split.TEST}


@pytest.mark.parametrize(
    "fractions",
    [(0.5, 0.5), (0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (float("nan"), 0.5, 0.5), (0.0, 0.0, 0.0)],
)
def test_fractions_that_make_no_whole_are_refused(fractions: tuple[float, ...]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        split_rule(fractions, 0)
    assert caught.value.code == "fractions_invalid"


def test_negative_seed_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        split_rule((1.0, 0.0, 0.0), -1)
    assert caught.value.code == "seed_invalid"
