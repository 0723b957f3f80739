from collections.abc import Sequence

import pytest

from sglang_ext.bench.compare import FLIP_BOUND, compare, first_difference


class Gaps:
    """Answers with one distance and remembers what it was asked."""

    def __init__(self, distance: float) -> None:
        self.distance = distance
        self.asked: list[tuple[list[int], int, int]] = []

    def __call__(self, tokens: Sequence[int], left: int, right: int) -> float:
        self.asked.append((list(tokens), left, right))
        return self.distance


def test_equal_outputs_ask_nothing() -> None:
    gaps = Gaps(0.0)
    result = compare([("a", [1], [2, 3], [2, 3]), ("b", [1], [4], [4])], gaps)
    assert (result.requests, result.differences, gaps.asked) == (2, (), [])


def test_a_flip_is_counted_with_its_place_and_what_follows_is_not_compared() -> None:
    gaps = Gaps(FLIP_BOUND / 2)
    result = compare([("agent 1", [7, 8], [1, 2, 3, 4], [1, 2, 9, 9])], gaps)
    assert gaps.asked == [([7, 8, 1, 2], 3, 9)]
    assert result.failures == ()
    (flip,) = result.flips
    assert (flip.place, flip.position) == ("agent 1", 2)


@pytest.mark.parametrize("distance", [FLIP_BOUND, 1.0, float("nan"), float("inf")])
def test_tokens_that_are_further_apart_fail(distance: float) -> None:
    result = compare([("a", [7], [1], [2])], Gaps(distance))
    assert len(result.failures) == 1
    assert result.flips == ()


def test_an_output_that_ends_early_fails_whatever_the_distance() -> None:
    gaps = Gaps(0.0)
    result = compare([("a", [7], [1, 2], [1])], gaps)
    assert result.failures[0].position == 1
    assert result.failures[0].gap is None
    assert gaps.asked == []


@pytest.mark.parametrize(
    ("expected", "found", "at"),
    [([], [], None), ([1, 2], [1, 2], None), ([1, 2], [1, 3], 1), ([1], [1, 2], 1), ([1], [], 0)],
)
def test_the_first_difference(expected: list[int], found: list[int], at: int | None) -> None:
    assert first_difference(expected, found) == at
