"""What a wished hit rate takes."""

from itertools import pairwise

import pytest

from sglang_ext.replay.run import Row
from sglang_ext.replay.sizing import ladder, needed_tokens

ROWS = [Row("ext", 1000, 0.2), Row("ext", 4000, 0.6), Row("ext", 16000, 0.8)]


@pytest.mark.parametrize(
    ("wished", "tokens"), [(0.1, 1000), (0.2, 1000), (0.4, 2000), (0.7, 8000), (0.8, 16000)]
)
def test_between_rows_by_logarithm(wished, tokens):
    assert needed_tokens(ROWS[::-1], wished) == tokens


def test_what_is_not_reached_is_not_guessed():
    assert needed_tokens(ROWS, 0.81) is None
    assert needed_tokens([], 0.5) is None


def test_a_ladder_ends_at_the_footprint():
    steps = ladder(1_000_000, 64)
    assert (steps[0], steps[-1]) == (1000, 1_000_000)
    ratios = [b / a for a, b in pairwise(steps)]
    assert max(ratios) / min(ratios) < 1.01
    assert ladder(100, 64) == sorted(set(ladder(100, 64)))
    assert min(ladder(0, 64)) == 64
