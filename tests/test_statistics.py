import math
import random

import numpy as np
import pytest
from scipy import stats

from flatwise.statistics import geometric_interval, holm, mean_interval, median, paired_difference, t_quantile

NAN = math.nan


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7, 8, 29, 100])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.975, 0.9995])
def test_t_quantile_is_scipys(probability: float, freedom: int) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("probability", "freedom"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_t_quantile_refuses_what_it_does_not_know(probability: float, freedom: int) -> None:
    with pytest.raises(ValueError, match="must be"):
        t_quantile(probability, freedom)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_mean_interval_is_scipys(n: int, level: float) -> None:
    generator = random.Random(n)
    values = [generator.gauss(3, 2) for _ in range(n)]
    found = mean_interval(values, level)
    low, high = stats.t.interval(level, n - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert (found.n, found.excluded) == (n, 0)


def test_paired_difference_is_scipys_paired_t_test() -> None:
    generator = random.Random(0)
    common = [generator.gauss(0, 5) for _ in range(6)]
    a, b = ([x + shift + generator.gauss(0, 0.3) for x in common] for shift in (1.0, 0.0))
    interval = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_difference(a, b)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.verdict == "higher"
    assert paired_difference(b, a) == found.negated()


def test_what_is_not_finite_is_left_out_and_counted() -> None:
    found = mean_interval([1.0, NAN, 3.0, math.inf])
    assert (found.mean, found.n, found.excluded) == (2.0, 2, 2)
    difference = paired_difference([1.0, 2.0, NAN], [0.0, NAN, 1.0])
    assert (difference.mean, difference.n, difference.excluded, difference.low) == (1.0, 1, 2, None)


def test_one_value_has_no_interval_and_none_has_no_mean() -> None:
    one, none = mean_interval([4.0]), mean_interval([NAN])
    assert (one.mean, one.low, one.high, one.verdict) == (4.0, None, None, "one seed")
    assert math.isnan(none.mean)
    assert none.verdict == "no data"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([1, 2, 3], "unclear"), ([2, 2.1], "higher"), ([-2, -2.1], "lower"), ([2, 2], "unclear"), ([0, 0], "unclear")],
)
def test_verdict(values: list[float], verdict: str) -> None:
    assert mean_interval(values).verdict == verdict


def test_geometric_interval_is_the_interval_of_logarithms() -> None:
    found, logs = geometric_interval([1.0, 10.0, 100.0]), mean_interval([0.0, 1.0, 2.0])
    assert found.mean == pytest.approx(10.0)
    assert found.low == pytest.approx(10 ** (logs.low or NAN))
    assert geometric_interval([1.0, -1.0]).excluded == 1


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("values", [[3.0], [1.0, 4.0], [5.0, 1.0, 2.0], [4.0, 3.0, 9.0, 1.0]])
def test_median_is_numpys(values: list[float]) -> None:
    assert median([*values, NAN]) == np.median(values)


def test_median_of_nothing_is_nan() -> None:
    assert math.isnan(median([NAN]))


@pytest.mark.parametrize("values", [[1.0, 2.0, 4.0], [0.1, -0.2, 0.3, 0.05, 0.0], [5.0, 5.1, 4.9, 5.0], [1.0, -1.0]])
def test_p_is_that_of_the_t_test(values: list[float]) -> None:
    expected = stats.ttest_1samp(values, 0.0).pvalue
    assert mean_interval(values).p == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert (mean_interval(values).p <= 0.05) == (mean_interval(values).verdict != "unclear")


def test_there_is_no_p_of_one_value_and_values_that_agree_show_nothing() -> None:
    assert math.isnan(mean_interval([1.0]).p)
    assert mean_interval([0.5, 0.5, 0.5]).p == 1.0


def test_holms_correction_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, math.nan, 0.7])[::2] == [1.0, 1.0]
    assert math.isnan(holm([0.6, math.nan, 0.7])[1])
    assert holm([]) == []


def test_holm_keeps_false_findings_rare_where_nothing_differs() -> None:
    """2,000 families of 20 tests of nothing: without the correction two thirds of them would find something."""
    generator = random.Random(0)
    families = [[generator.random() for _ in range(20)] for _ in range(2000)]
    assert sum(min(family) <= 0.05 for family in families) > 1000
    assert sum(min(holm(family)) <= 0.05 for family in families) / 2000 == pytest.approx(0.05, abs=0.015)
