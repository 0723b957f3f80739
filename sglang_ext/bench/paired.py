"""Differences between two systems that were given the same cases, with confidence intervals.

Cases are drawn again with replacement, always as a pair, so what a case is hard by cancels. Pure.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Interval", "bootstrap"]

_DRAWS = 2_000  # Speed: 0.1 s a hundred cases
_SEED = 20_240_601


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def as_json(self) -> list[float]:
        """Estimate, low end, high end."""
        return [round(number, 4) for number in (self.value, self.low, self.high)]


def bootstrap(
    pairs: Sequence[tuple[float, float]],
    estimate: Callable[[float, float], float],
) -> Interval:
    """The interval of an estimate that is made of two means.

    Args:
        pairs: of each case, what the two systems had.
        estimate: of the means of the first and the second, such as their difference.
    """
    if not pairs:
        return Interval(0.0, 0.0, 0.0)
    rng = random.Random(_SEED)  # noqa: S311 - draws cases, keeps no secret

    def of(drawn: Sequence[tuple[float, float]]) -> float:
        count = len(drawn)
        return estimate(
            sum(first for first, _ in drawn) / count, sum(second for _, second in drawn) / count
        )

    drawn = sorted(of(rng.choices(pairs, k=len(pairs))) for _ in range(_DRAWS))
    margin = len(drawn) // 40
    return Interval(of(pairs), drawn[margin], drawn[-1 - margin])
