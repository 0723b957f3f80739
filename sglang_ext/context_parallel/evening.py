"""Trades tokens between ranks until their attention costs the same (pure: numpy alone).

A trade swaps equally many tokens, so that the number of tokens of a rank never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_ext.context_parallel.cost import Cost, Ints
from sglang_ext.context_parallel.runs import Runs

__all__ = ["even_out"]

# Ranks that a trade is tried with, so that 16 ranks take milliseconds. Default: 8.
_MOST_TRIED = 8
# Pairs of runs, times numbers of tokens, that are compared at once.
_CELLS = 4096


@dataclass(frozen=True, slots=True)
class _Swap:
    """``tokens`` from ``give_start`` of run ``give`` against those from ``take_start`` of ``take``.

    Runs are numbers of rows; starts count from the requests' first new tokens.
    """

    give: int
    take: int
    give_start: int
    take_start: int
    tokens: int


def even_out(
    runs: Runs, load: Ints, prefix_lens: Ints, cost: Cost, wanted: int, needed: int
) -> tuple[Runs, Ints]:
    """Trades until no rank is above ``wanted``, or no trade helps.

    Args:
        runs: slices of all ranks, merged.
        load: ``[ranks]`` cost of each rank.
        prefix_lens: ``[requests]`` cached tokens.
        cost: what tokens cost.
        wanted: what the dearest rank should cost; the mean at least.
        needed: what the dearest rank may cost at most: above it, trades through a third rank are
            tried where none between two ranks fits.

    Returns:
        The slices and costs after at most ``2 * (ranks - 1)`` trades.
    """
    state = runs, load
    left = 2 * (len(load) - 1)
    while left > 0 and int(state[1].max()) > wanted:
        traded, used = _direct(*state, prefix_lens, cost), 1
        short_of = traded is None or int(traded[1].max()) > needed
        if left > 1 and short_of and int(state[1].max()) > needed:
            through = _through_a_third(*state, prefix_lens, cost)
            if through is not None:
                traded, used = through, 2
        if traded is None:
            break
        state, left = traded, left - used
    return state


def _partners(load: Ints) -> list[tuple[int, int, int]]:
    """(dearest rank, a rank below the mean, what to move) for each such rank, cheapest first."""
    mean = int(load.sum()) // len(load)
    dearest = int(np.argmax(load))
    surplus = int(load[dearest]) - mean
    return [
        (dearest, partner, min(surplus, mean - int(load[partner])))
        for partner in np.argsort(load, kind="stable").tolist()
        if load[partner] < mean
    ]


def _direct(runs: Runs, load: Ints, prefix_lens: Ints, cost: Cost) -> tuple[Runs, Ints] | None:
    """The first trade of the dearest rank with one below the mean that helps."""
    for who in _partners(load)[:_MOST_TRIED]:
        traded = _trade(runs, load, prefix_lens, cost, who)
        if traded is not None:
            return traded
    return None


def _through_a_third(
    runs: Runs, load: Ints, prefix_lens: Ints, cost: Cost
) -> tuple[Runs, Ints] | None:
    """Two trades that move the same exactly: from the dearest rank to a third, and on from it."""
    for dearest, partner, surplus in _partners(load)[:1]:
        others = [rank for rank in range(len(load)) if rank not in (dearest, partner)]
        for third in others[:_MOST_TRIED]:
            first = _trade(runs, load, prefix_lens, cost, (dearest, third, surplus), exactly=True)
            if first is None:
                continue
            second = _trade(*first, prefix_lens, cost, (third, partner, surplus), exactly=True)
            if second is not None:
                return second
    return None


def _trade(
    runs: Runs,
    load: Ints,
    prefix_lens: Ints,
    cost: Cost,
    who: tuple[int, int, int],
    exactly: bool = False,
) -> tuple[Runs, Ints] | None:
    """Moves about ``surplus`` from rank ``dearest`` to ``partner``; None if it would not help."""
    dearest, partner, surplus = who
    found = _best_swap(runs, prefix_lens, cost, who)
    if found is None or (exactly and found[0]):
        return None
    swap = found[1]
    traded = Runs(
        np.array([partner, dearest]),
        runs.request[[swap.give, swap.take]],
        np.array([swap.give_start, swap.take_start]),
        np.array([swap.give_start + swap.tokens, swap.take_start + swap.tokens]),
    )
    given, taken = traded.cost(prefix_lens, cost).tolist()
    moved = given - taken
    helps = moved == surplus if exactly else 0 < moved < int(load[dearest] - load[partner])
    if not helps:
        return None
    load = load.copy()
    load[dearest] -= moved
    load[partner] += moved
    return _cut_out(runs, traded, (swap.give, swap.take)), load


def _cut_out(runs: Runs, traded: Runs, rows: tuple[int, int]) -> Runs:
    """The runs after ``traded`` was taken out of ``rows`` and given to its new ranks."""
    old = runs.where(np.array(rows))
    before = Runs(old.rank, old.request, old.start, traded.start)
    after = Runs(old.rank, old.request, traded.stop, old.stop)
    kept = np.ones(len(runs.rank), dtype=np.bool_)
    kept[list(rows)] = False
    return runs.where(kept).and_also(before, after, traded).merged()


def _best_swap(
    runs: Runs, prefix_lens: Ints, cost: Cost, who: tuple[int, int, int]
) -> tuple[int, _Swap] | None:
    """What is missed of ``surplus``, and the swap that comes closest, of the fewest tokens."""
    dearest, partner, surplus = who
    (a_row, a), (b_row, b) = runs.rows_of(dearest), runs.rows_of(partner)
    a_at, b_at = prefix_lens[a.request], prefix_lens[b.request]
    a_size, b_size = a.stop - a.start, b.stop - b.start
    longest = min(int(a_size.max(initial=0)), int(b_size.max(initial=0)))
    lowest, least = cost.of(a_at + a.start)[:, None], cost.of(b_at + b.start)[None, :]
    sizes = 1 << np.arange(max(0, min(longest, surplus)).bit_length())
    at_once = max(1, _CELLS // max(1, len(a_at) * len(b_at)))
    closest: tuple[int, _Swap] | None = None
    for first in range(0, len(sizes), at_once):
        some = sizes[first : first + at_once, None]
        tokens, step = some[:, :, None], surplus // some[:, :, None]
        highest, most = cost.of(a_at + a.stop - some), cost.of(b_at + b.stop - some)
        smallest, largest = lowest - most[:, None, :], highest[:, :, None] - least
        reachable = np.minimum(np.maximum(step, smallest), largest)
        miss = np.abs(reachable - step) * tokens
        miss[(a_size < some)[:, :, None] | (b_size < some)[:, None, :]] = 1 << 62
        best = int(np.argmin(miss))
        size, pair = divmod(best, len(a_at) * len(b_at))
        give, take = divmod(pair, len(b_at))
        missed = int(miss.flat[best])
        if closest is None or missed < closest[0]:
            step_found, fewest = int(reachable.flat[best]), int(some[size, 0])
            dear, cheap = int(highest[size, give]), int(most[size, take])
            # One of the two runs is cut at its end, so that a trade adds few slices.
            if cheap + step_found <= dear:
                take_start = int(b.stop[take]) - fewest
                want = cost.position_with(cheap + step_found) - int(a_at[give])
                give_start = min(max(want, int(a.start[give])), int(a.stop[give]) - fewest)
            else:
                give_start = int(a.stop[give]) - fewest
                want = cost.position_with(dear - step_found) - int(b_at[take])
                take_start = min(max(want, int(b.start[take])), int(b.stop[take]) - fewest)
            swap = _Swap(a_row + give, b_row + take, give_start, take_start, fewest)
            closest = missed, swap
        if closest[0] == 0:
            break
    return closest
