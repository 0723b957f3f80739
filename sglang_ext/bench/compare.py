"""Compares what two servers generated for the same requests, token by token.

Two servers may add floating-point numbers in different orders: another batch, a prefix from a
cache. Greedy decoding then differs only where two tokens are as good as equal. Such a place is
a *flip*: it is counted and shown, and what follows it in that answer is not compared, because the
two have gone different ways. Any other difference is a failure.

Pure: the log-probabilities are asked for through a function.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

__all__ = ["FLIP_BOUND", "Comparison", "Difference", "compare", "first_difference"]

# Largest distance between the log-probabilities of two tokens that may change places. float32
# has 24 bits of mantissa: logits of about 20 carry errors of about 1e-6 from each summation, and
# 30 layers leave less than 1e-4.
FLIP_BOUND = 1e-4

# (prompt and common output, token of the reference, token of the other) -> distance of their
# log-probabilities after that text, in nats.
Gap = Callable[[Sequence[int], int, int], float]


@dataclass(frozen=True)
class Difference:
    """One request whose outputs differ."""

    place: str
    position: int  # counts output tokens from 0
    expected: tuple[int, ...]
    found: tuple[int, ...]
    gap: float | None  # None where one output ended and the other went on

    @property
    def is_flip(self) -> bool:
        """Whether the two tokens were as good as equal."""
        return self.gap is not None and self.gap < FLIP_BOUND


@dataclass(frozen=True)
class Comparison:
    """Outcome over many requests."""

    requests: int
    differences: tuple[Difference, ...]

    @property
    def flips(self) -> tuple[Difference, ...]:
        """Differences that the rule allows."""
        return tuple(one for one in self.differences if one.is_flip)

    @property
    def failures(self) -> tuple[Difference, ...]:
        """Differences that it does not."""
        return tuple(one for one in self.differences if not one.is_flip)


def first_difference(expected: Sequence[int], found: Sequence[int]) -> int | None:
    """Index of the first token that differs, or where one of the two ends; None when equal."""
    for index, (left, right) in enumerate(zip(expected, found, strict=False)):
        if left != right:
            return index
    return None if len(expected) == len(found) else min(len(expected), len(found))


def compare(
    requests: Iterable[tuple[str, Sequence[int], Sequence[int], Sequence[int]]], gap: Gap
) -> Comparison:
    """Compare outputs.

    Args:
        requests: place, prompt ids, output ids of the reference, output ids of the other.
        gap: asked once for each request that differs.
    """
    count = 0
    differences = []
    for place, prompt, expected, found in requests:
        count += 1
        at = first_difference(expected, found)
        if at is None:
            continue
        both = at < min(len(expected), len(found))
        distance = gap([*prompt, *expected[:at]], expected[at], found[at]) if both else None
        differences.append(Difference(place, at, tuple(expected), tuple(found), distance))
    return Comparison(count, tuple(differences))
