"""Differences between systems that were given the same cases."""

from sglang_ext.bench.paired import Interval, bootstrap


def difference(first, second):
    return first - second


def test_equal_systems_differ_by_nothing():
    assert bootstrap([(1.0, 1.0), (0.0, 0.0)] * 50, difference) == Interval(0, 0, 0)


def test_the_interval_holds_the_estimate_and_narrows_with_the_cases():
    few = bootstrap([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)] * 5, difference)
    many = bootstrap([(1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 1.0)] * 125, difference)
    for one in (few, many):
        assert one.value == 0
        assert one.low < 0 < one.high
    assert many.high - many.low < 0.5 * (few.high - few.low)
    # Two proportions of one half that differ on half of the cases: 1.96 times sqrt(1/2 / 500).
    assert abs(many.high - 0.062) < 0.012


def test_what_a_case_is_hard_by_cancels():
    pairs = [(80.0 * hard, 100.0 * hard) for hard in range(1, 41)]
    saved = bootstrap(pairs, lambda ours, theirs: 1 - ours / theirs)
    assert max(abs(number - 0.2) for number in saved.as_json()) < 1e-9


def test_no_cases():
    assert bootstrap([], difference).as_json() == [0, 0, 0]
