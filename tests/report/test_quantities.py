import math

import pytest

from flatwise.report.quantities import TEST_ACCURACY, TOP_EIGENVALUE, compact, plain, ratios, signed, significant
from flatwise.statistics import Interval


def interval(mean: float, low: float, high: float) -> Interval:
    return Interval(mean, low, high, 5)


@pytest.mark.parametrize(
    ("found", "text", "ends"),
    [
        (interval(0.954, 0.949, 0.959), "95.4", "94.9 to 95.9"),
        (interval(-0.001, -0.006, 0.004), "−0.1", "−0.6 to 0.4"),
        # An end that one decimal would round to zero would contradict the verdict.
        (interval(0.005, 0.0002, 0.0098), "0.50", "0.02 to 0.98"),
        (Interval(0.954, None, None, 1), "95.4", ""),
        (interval(0.954, 0.954, 0.954), "95.4", ""),
    ],
)
def test_accuracy_is_in_percent(found: Interval, text: str, ends: str) -> None:
    assert (TEST_ACCURACY.text(found), TEST_ACCURACY.range(found)) == (text, ends)


def test_decimals_follow_the_width_of_the_interval() -> None:
    assert TOP_EIGENVALUE.text(interval(-0.0748, -0.359, 0.209)) == "−0.07"
    assert TOP_EIGENVALUE.range(interval(-0.0748, -0.359, 0.209)) == "−0.36 to 0.21"
    assert TOP_EIGENVALUE.text(interval(34.9, 29.9, 39.9)) == "34.9"


def test_numbers_are_written_for_people() -> None:
    assert [plain(-0.04, 1), plain(12345.6, 0), plain(math.nan, 1)] == ["0.0", "12,346", "–"]
    assert [signed("1.5"), signed("−1.5"), signed("0.0")] == ["+1.5", "−1.5", "0.0"]
    assert [compact(1234.5), compact(0.5), compact(1e-7), compact(0.0)] == ["1,234", "0.500", "1.00e−07", "0"]
    assert [ratios(1.014), ratios(0.031), ratios(0.099, 0.101)] == [["1.01"], ["0.031"], ["0.099", "0.101"]]
    assert [significant(0.0123), significant(123.4), significant(0.0)] == [4, 0, 0]
