"""When a claim is confirmed, not confirmed, or undecided."""

import math

import pytest

from flatwise.report.verdicts import judged, verdict_of


def criterion(values, least=None, most=None, *, decisive=True):
    return judged({"name": "n", "meaning": "m", "values": values, "least": least, "most": most, "decisive": decisive})


@pytest.mark.parametrize(
    ("values", "least", "most", "verdict"),
    [
        ([1.0, 1.1, 1.2], 0.5, None, "confirmed"),
        ([1.0, 1.1, 1.2], None, 2.0, "confirmed"),
        ([1.0, 1.1, 1.2], 0.8, 1.4, "confirmed"),
        ([1.0, 1.1, 1.2], 1.05, None, "undecided"),
        ([1.0, 1.1, 1.2], 0.8, 1.3, "undecided"),
        ([1.0, 1.1, 1.2], 2.0, None, "not confirmed"),
        ([1.0, 1.1, 1.2], None, 0.5, "not confirmed"),
        ([1.0, 1.1, 1.2], 2.0, 3.0, "not confirmed"),
        ([1.0], 0.5, None, "undecided"),
        ([1.0, 1.0, 1.0], 0.5, None, "undecided"),  # equal by chance: nothing is known of the spread
        ([1.0, float("nan")], 0.5, None, "undecided"),
        ([1.0, 1.1, 1.2, float("nan")], 0.5, None, "undecided"),  # the seed that diverged is no random one
        ([1.0, 1.1, 1.2, float("nan")], 2.0, None, "undecided"),
    ],
)
def test_the_whole_interval_decides(values, least, most, verdict):
    assert criterion(values, least, most).verdict == verdict


@pytest.mark.parametrize(
    ("values", "verdict"), [([3.0], "confirmed"), ([3.0, 3.0], "confirmed"), ([5.0, 5.0], "not confirmed")]
)
def test_an_exact_number_decides_without_a_spread(values, verdict):
    found = judged(
        {"name": "n", "meaning": "m", "values": values, "least": None, "most": 4, "decisive": True, "exact": True}
    )
    assert (found.verdict, found.range, found.power) == (verdict, "", None)


@pytest.mark.parametrize("values", [[3.0, 3.5], [math.nan]])
def test_what_differs_between_seeds_is_not_exact(values):
    found = judged(
        {"name": "n", "meaning": "m", "values": values, "least": None, "most": 4, "decisive": True, "exact": True}
    )
    assert found.verdict == "undecided"


def test_seeds_without_a_number_are_counted():
    assert criterion([1.0, 1.1]).counted == ""
    assert criterion([1.0, 1.1, float("nan")]).counted == "1 seed without a number"
    assert criterion([1.0, float("nan"), float("inf")]).counted == "2 seeds without a number"


def test_a_number_of_some_seeds_knows_which():
    found = judged(
        {"name": "n", "meaning": "m", "values": [5.0, 7.0], "least": 0, "most": None, "decisive": True, "seeds": [1, 3]}
    )
    assert [found.at(place) for place in range(4)] == [None, 5.0, None, 7.0]
    assert [found.shown(place) for place in range(4)] == ["", "5.00", "", "7.00"]
    assert found.counted == "of 2 of the seeds"


def test_the_power_is_half_the_width_of_the_interval():
    found = criterion([1.0, 2.0, 3.0], 0.0)
    assert found.power == pytest.approx((found.interval.high - found.interval.low) / 2)
    assert found.interval.mean - found.power == pytest.approx(2.0 - 4.303 / 3**0.5, abs=1e-3)


def test_without_a_bound_there_is_no_distance_from_it():
    assert criterion([1.0, 2.0, 3.0]).power is None


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [1.0, 2.0, math.nan], [1.0]])
def test_where_nothing_can_be_decided_no_distance_is_said_to_be_enough(values):
    found = criterion(values, 0.0)
    assert (found.verdict, found.power, found.distance) == ("undecided", None, "")


def test_one_criterion_that_fails_is_enough():
    good, bad, open_ = (criterion([1.0, 1.1, 1.2], least) for least in (0.5, 2.0, 1.05))
    assert verdict_of([good, good]) == "confirmed"
    assert verdict_of([good, open_]) == "undecided"
    assert verdict_of([good, open_, bad]) == "not confirmed"
    assert verdict_of([]) == "undecided"


def test_what_only_accompanies_does_not_decide():
    good, bad = criterion([1.0, 1.1, 1.2], 0.5), criterion([1.0, 1.1, 1.2], 2.0, decisive=False)
    assert verdict_of([good, bad]) == "confirmed"
