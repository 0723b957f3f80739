"""How much cache a wished hit rate takes."""

from collections.abc import Sequence
from math import exp, log

from sglang_ext.replay.run import Row

__all__ = ["ladder", "needed_tokens"]

# Capacities of a curve: from this share of the footprint to all of it.
_LOWEST, _STEPS = 1e-3, 13


def ladder(footprint_tokens: int, block_tokens: int) -> list[int]:
    """Capacities at equal ratios, up to the footprint."""
    low = max(block_tokens, footprint_tokens * _LOWEST)
    ratio = max(1.0, footprint_tokens / low) ** (1 / (_STEPS - 1))
    steps = [round(low * ratio**step) for step in range(_STEPS)]
    return sorted({max(block_tokens, step) for step in steps})


def needed_tokens(rows: Sequence[Row], wished: float) -> int | None:
    """Tokens at which one policy's hit rate reaches ``wished``, between the rows by logarithm.

    None: it does not, at any of their capacities. The lowest capacity is an upper bound where its
    row is above already.
    """
    before: Row | None = None
    for row in sorted(rows, key=lambda row: row.capacity_tokens):
        if row.hit >= wished:
            if before is None or row.hit <= before.hit:
                return row.capacity_tokens
            part = (wished - before.hit) / (row.hit - before.hit)
            low, high = log(before.capacity_tokens), log(row.capacity_tokens)
            return round(exp(low + part * (high - low)))
        before = row
    return None
