"""Trades tokens between ranks until their attention costs the same (pure: numpy alone).

A trade swaps equally many tokens, so that the number of tokens of a rank never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sglang_ext.context_parallel.cost import Cost, Ints
from sglang_ext.context_parallel.runs import Runs

__all__ = ["even_out"]


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
        runs: slices of all ranks.
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
        if short_of and int(state[1].max()) > needed:
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
    for who in _partners(load):
        traded = _trade(runs, load, prefix_lens, cost, who)
        if traded is not None:
            return traded
    return None


def _through_a_third(
    runs: Runs, load: Ints, prefix_lens: Ints, cost: Cost
) -> tuple[Runs, Ints] | None:
    """Two trades that move the same exactly: from the dearest rank to a third, and on from it."""
    for dearest, partner, surplus in _partners(load)[:1]:
        for third in range(len(load)):
            if third in (dearest, partner):
                continue
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
    swap = _best_swap(runs, prefix_lens, cost, who)
    if swap is None:
        return None
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
    at = list(rows)
    kept = np.ones(len(runs.rank), dtype=np.bool_)
    kept[at] = False
    old = runs.where(np.array(at))
    before = Runs(old.rank, old.request, old.start, traded.start)
    after = Runs(old.rank, old.request, traded.stop, old.stop)
    return runs.where(kept).and_also(before).and_also(after).and_also(traded).merged()


def _best_swap(
    runs: Runs, prefix_lens: Ints, cost: Cost, who: tuple[int, int, int]
) -> _Swap | None:
    """The swap of the fewest tokens that moves ``surplus``, or the one that comes closest."""
    dearest, partner, surplus = who
    mine, theirs = np.flatnonzero(runs.rank == dearest), np.flatnonzero(runs.rank == partner)
    a, b = runs.where(mine), runs.where(theirs)
    a_at, b_at = prefix_lens[a.request], prefix_lens[b.request]
    longest = min((a.stop - a.start).max(initial=0), (b.stop - b.start).max(initial=0))
    closest: tuple[int, _Swap] | None = None
    tokens = 1
    while tokens <= longest:
        step = surplus // tokens
        if step < 1:
            break
        a_fits, b_fits = a.stop - a.start >= tokens, b.stop - b.start >= tokens
        lowest, highest = cost.of(a_at + a.start), cost.of(a_at + a.stop - tokens)
        least, most = cost.of(b_at + b.start), cost.of(b_at + b.stop - tokens)
        smallest, largest = lowest[:, None] - most[None, :], highest[:, None] - least[None, :]
        reachable = np.clip(step, smallest, largest)
        miss = np.abs(reachable - step) * tokens
        miss[~(a_fits[:, None] & b_fits[None, :])] = 1 << 62
        give, take = divmod(int(np.argmin(miss)), len(theirs))
        missed = int(miss[give, take])
        if closest is None or missed < closest[0]:
            step = int(reachable[give, take])
            # One of the two runs is cut at its end, so that a trade adds few slices.
            if int(most[take]) + step <= int(highest[give]):
                take_start = int(b.stop[take]) - tokens
                want = cost.position_with(int(most[take]) + step) - int(a_at[give])
                give_start = min(max(want, int(a.start[give])), int(a.stop[give]) - tokens)
            else:
                give_start = int(a.stop[give]) - tokens
                want = cost.position_with(int(highest[give]) - step) - int(b_at[take])
                take_start = min(max(want, int(b.start[take])), int(b.stop[take]) - tokens)
            swap = _Swap(int(mine[give]), int(theirs[take]), give_start, take_start, tokens)
            closest = missed, swap
        if closest[0] == 0:
            break
        tokens *= 2
    return closest[1] if closest else None
