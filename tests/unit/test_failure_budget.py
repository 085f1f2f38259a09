import pytest

from app.jobs.limits import exceeds_budget


@pytest.mark.parametrize(
    ("failed", "total", "items", "fraction", "exceeded"),
    [
        (5, 10, None, None, False),
        (0, 10, 0, 0.0, False),
        (1, 10, 0, None, True),
        (1, 10, None, 0.0, True),
        (3, 10, 3, None, False),
        (4, 10, 3, None, True),
        (4, 10, 9, 0.3, True),
        (4, 10, 3, 0.9, True),
        # Not final: the fraction does not count yet, the number does.
        (9, None, None, 0.1, False),
        (9, None, 8, 0.1, True),
    ],
)
def test_budget_is_exceeded_by_more_than_it_allows(failed, total, items, fraction, exceeded):
    assert exceeds_budget(failed, total, items, fraction) is exceeded


@pytest.mark.parametrize("percent", range(101))
def test_fraction_allows_exactly_that_share(percent):
    assert not exceeds_budget(percent, 100, None, percent / 100)
    assert exceeds_budget(percent + 1, 100, None, percent / 100)
