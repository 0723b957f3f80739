"""Cuts a batch into zigzag pairs and deals them out (pure: numpy alone).

See :mod:`sglang_ext.context_parallel.plan` for the idea.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_ext.context_parallel.cost import Cost, Ints
from sglang_ext.context_parallel.runs import Runs

__all__ = ["Pieces"]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Pieces of requests, each cut into ``ranks`` pairs of an early and a late block.

    Attributes:
        request: ``[pieces]`` whose it is.
        start: ``[pieces]`` its first token, counted from the request's first new one.
        first_token: ``[pieces]`` the same token, counted in the batch of all new tokens.
        length: ``[pieces]`` tokens.
        extras: ``[pieces]`` how many of its pairs have one token more than the others: the last.
        early_start, early_stop, late_start, late_stop: ``[pieces, ranks]`` blocks of each pair.
        cost: ``[pieces, ranks]`` what each pair costs.
    """

    request: Ints
    start: Ints
    first_token: Ints
    length: Ints
    extras: Ints
    early_start: Ints
    early_stop: Ints
    late_start: Ints
    late_stop: Ints
    cost: Ints

    @property
    def ranks(self) -> int:
        """Ranks that the pieces were cut for."""
        return int(self.cost.shape[1])

    @classmethod
    def cut(cls, extend_lens: Ints, prefix_lens: Ints, ranks: int, cost: Cost) -> Pieces:
        """Cuts each request at the knee of ``cost``, and each part into pairs."""
        request, start, length = _parts(extend_lens, prefix_lens, cost)
        gap = np.zeros_like(length)
        if len(length):
            longest = int(np.argmax(length))
            over = int(length[longest]) % (2 * ranks)
            half = (int(length[longest]) - over) // 2
            if half and over:
                # What the longest piece has over stands alone between its halves.
                gap[longest], length[longest] = over, 2 * half
                request = np.append(request, request[longest])
                start = np.append(start, start[longest] + half)
                length, gap = np.append(length, over), np.append(gap, 0)
        blocks = _blocks(start, length, gap, ranks)
        prefix = prefix_lens[request][:, None]
        total = cost.between(prefix + blocks[0], prefix + blocks[1])
        total += cost.between(prefix + blocks[2], prefix + blocks[3])
        first_token = (np.cumsum(extend_lens) - extend_lens)[request] + start
        return cls(request, start, first_token, length, length % ranks, *blocks, total)

    def deal(self) -> tuple[Runs, Ints]:
        """Gives each pair to a rank, the most uneven piece first.

        Tokens that are over go to the ranks with the fewest tokens, then dear pairs to the ranks
        with the least cost.

        Returns:
            All blocks as runs, and the cost of each rank.
        """
        owner, load = self._dealt(np.arange(len(self.extras)), follow_interleave=False)
        return self._runs(owner, np.ones(len(self.extras), dtype=np.bool_)), load

    def deal_like_interleave(self, prefix_lens: Ints, cost: Cost) -> tuple[Runs, Ints]:
        """Gives each rank as many tokens of each piece as SGLang's interleave would.

        Pieces too short for blocks are dealt exactly as there, so that a batch of these alone is
        never worse off. Returns what :meth:`deal` returns.
        """
        long = self.length >= 2 * self.ranks
        owner, load = self._dealt(np.flatnonzero(long), follow_interleave=True)
        short = np.flatnonzero(~long)
        lengths = self.length[short]
        piece = np.repeat(short, lengths)
        token = np.arange(len(piece)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        rank = (self.first_token[piece] + token) % self.ranks
        start = self.start[piece] + token
        singles = Runs(rank, self.request[piece], start, start + 1)
        np.add.at(load, rank, singles.cost(prefix_lens, cost))
        return self._runs(owner, long).and_also(singles).merged(), load

    def _dealt(self, chosen: Ints, follow_interleave: bool) -> tuple[Ints, Ints]:
        """``[pieces, ranks]`` owner of each pair, and the cost of each rank."""
        ranks = self.ranks
        owner = np.tile(np.arange(ranks), (len(self.extras), 1))
        if not len(chosen):
            return owner, np.zeros(ranks, dtype=np.int64)
        spread = np.ptp(self.cost[chosen], axis=1)
        uneven = chosen[(spread > 0) | (self.extras[chosen] > 0)]
        uneven = uneven[np.argsort(-np.ptp(self.cost[uneven], axis=1), kind="stable")]
        even_load = int(self.cost[chosen].sum() - self.cost[uneven].sum()) // ranks
        extras = self.extras[uneven]
        # Pairs with an extra token first, the dearest first: the order in which ranks are named.
        plain = np.arange(ranks)[None, :] < ranks - extras[:, None]
        order = np.lexsort((-self.cost[uneven], plain))
        costs = np.take_along_axis(self.cost[uneven], order, 1).tolist()
        load, tokens, named = [even_load] * ranks, [0] * ranks, []
        first_tokens = self.first_token[uneven].tolist()
        for row, over, first in zip(costs, extras.tolist(), first_tokens, strict=True):
            by_load = sorted(range(ranks), key=load.__getitem__)
            if over:
                if follow_interleave:
                    takers = {(first + index) % ranks for index in range(over)}
                else:
                    takers = set(sorted(by_load, key=tokens.__getitem__)[:over])
                others = [rank for rank in by_load if rank not in takers]
                by_load = [rank for rank in by_load if rank in takers] + others
                for rank in takers:
                    tokens[rank] += 1
            for rank, cost in zip(by_load, row, strict=True):
                load[rank] += cost
            named.append(by_load)
        if named:
            rows = np.empty_like(order)
            np.put_along_axis(rows, order, np.array(named), 1)
            owner[uneven] = rows
        return owner, np.array(load, dtype=np.int64)

    def _runs(self, owner: Ints, chosen: NDArray[np.bool_]) -> Runs:
        rank = owner[chosen].reshape(-1)
        request = np.repeat(self.request[chosen], self.ranks)
        starts = self.early_start[chosen].reshape(-1), self.late_start[chosen].reshape(-1)
        stops = self.early_stop[chosen].reshape(-1), self.late_stop[chosen].reshape(-1)
        return Runs(
            np.concatenate((rank, rank)),
            np.concatenate((request, request)),
            np.concatenate(starts),
            np.concatenate(stops),
        ).merged()


def _parts(extend_lens: Ints, prefix_lens: Ints, cost: Cost) -> tuple[Ints, Ints, Ints]:
    """Request, first token and length of each part whose cost is linear in the position."""
    request = np.arange(len(extend_lens))
    knee = np.clip(cost.cap - prefix_lens, 0, extend_lens)
    start = np.concatenate((np.zeros_like(knee), knee))
    length = np.concatenate((knee, extend_lens - knee))
    held = length > 0
    return np.concatenate((request, request))[held], start[held], length[held]


def _blocks(start: Ints, length: Ints, gap: Ints, ranks: int) -> tuple[Ints, Ints, Ints, Ints]:
    """First token and end of the early and of the late block of each pair; ``[pieces, ranks]``.

    As in the stock zigzag remainders lengthen blocks by one token, early blocks before late ones;
    but the innermost first. A piece shorter than ``2 * ranks`` has pairs of single tokens first
    and tokens without a partner last, so that those with a partner are the cheap ones.
    """
    start, gap = start[:, None], gap[:, None]
    base, rest = np.divmod(length[:, None], 2 * ranks)
    whole, over = np.divmod(rest, ranks)
    pair = np.arange(ranks)[None, :]
    inner = pair >= ranks - over
    lengthens_early = inner & (whole == 0)
    early_size = base + whole + lengthens_early
    late_size = base + (inner & (whole > 0))
    shift = np.maximum(0, pair - (ranks - over))
    early_start = start + pair * (base + whole) + np.where(whole == 0, shift, 0)
    late_first = start + ranks * (base + whole) + np.where(whole == 0, over, 0) + gap
    shift = np.minimum(ranks - 1 - pair, over)
    late_start = late_first + (ranks - 1 - pair) * base + np.where(whole > 0, shift, 0)
    paired = (base == 0) & (whole > 0)
    early_start = np.where(
        paired, start + np.where(inner, ranks - 1 - pair, 2 * over + pair), early_start
    )
    late_start = np.where(paired, start + 2 * over - ranks + pair, late_start)
    return early_start, early_start + early_size, late_start, late_start + late_size
