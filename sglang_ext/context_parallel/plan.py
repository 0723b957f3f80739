"""Which rank computes which new tokens of a prefill batch (pure: integers in, integers out).

Every rank calls :func:`plan` with the same batch and gets the same answer, so nothing is sent.

**Zigzag pairs.** A request of ``2 * ranks * n`` new tokens is cut into ``2 * ranks`` blocks; the
rank with block *j* also has block ``2 * ranks - 1 - j``. Where the cost is linear in the position
both tokens and cost come out exactly even, whatever the prefix. A cost with a knee (a window, a
top-k) is linear on either side of it, so each side is cut on its own.

**Remainders.** Up to ``2 * ranks - 1`` tokens are over. They lengthen the innermost early blocks,
where they shift the least; those of the longest request stand alone in its middle, where they shift
nothing. A request shorter than ``2 * ranks`` is all remainder: single tokens. Which rank gets which
of a request's pairs is chosen request by request, the most uneven one first: tokens that are over
go to the ranks with the fewest, dear pairs to the ranks with the least cost. So no rank ever has
more than one token more than another.

**Evening out.** What is left is traded: two ranks exchange equally many tokens, a dear run for a
cheap one. This happens only above ``slack_per_mille`` or where stock SGLang would do better.

**Slices.** A request has at most ``2 * ranks`` on each side of the knee. A batch has at most
``8 * ranks`` more: the single tokens of the longest request and three for each trade.

Source: zigzag pairs after ``sglang/srt/layers/cp/zigzag.py`` of SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sglang_ext.context_parallel.cost import Cost, Ints
from sglang_ext.context_parallel.evening import even_out
from sglang_ext.context_parallel.pieces import Pieces
from sglang_ext.context_parallel.rivals import (
    interleave_loads,
    zigzag_applies,
    zigzag_edges,
    zigzag_loads,
)
from sglang_ext.context_parallel.runs import Runs
from sglang_ext.errors import ConfigError

__all__ = ["SLACK_PER_MILLE", "Plan", "Slice", "plan"]

# A rank may have this much more attention than the least that can be reached before tokens are
# traded. Default: 5; a trade adds up to three slices, each one more kernel call a layer.
SLACK_PER_MILLE = 5
# The dearest rank may cost a thousandth more than in SGLang's better split: now and then a split of
# single tokens is even by luck, to within what blocks can reach.
STOCK_TOLERANCE = 1000


@dataclass(frozen=True, slots=True)
class Slice:
    """New tokens ``start..stop - 1`` of one request; 0 is the first that is not cached."""

    request: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Plan:
    """Slices of a batch, by rank, request and position.

    Attributes:
        ranks: ranks.
        extend_lens: ``[requests]`` new tokens.
        prefix_lens: ``[requests]`` cached tokens.
        runs: the slices of all ranks as columns, in order of rank, request and position; no two
            neighbours of a rank could be one.
        tokens: ``[ranks]`` new tokens.
        attention: ``[ranks]`` cost of attention.
    """

    ranks: int
    extend_lens: Ints
    prefix_lens: Ints
    runs: Runs
    tokens: Ints
    attention: Ints

    @property
    def rows(self) -> int:
        """Rows of each rank's part of a gathered buffer: the most tokens that a rank has."""
        return int(self.tokens.max(initial=0))

    def slices(self, rank: int) -> tuple[Slice, ...]:
        """Slices of ``rank``, in the order of its rows."""
        mine = self.runs.of_rank(rank)
        columns = zip(mine.request.tolist(), mine.start.tolist(), mine.stop.tolist(), strict=True)
        return tuple(Slice(*column) for column in columns)

    def rows_of(self, rank: int) -> Ints:
        """``[tokens of rank]``: where each of its rows lies in the batch of all new tokens."""
        first = int(self.tokens[:rank].sum())
        return self._order[first : first + int(self.tokens[rank])]

    def gathered_rows(self) -> Ints:
        """``[ranks * rows]``: which token of the batch each gathered row is; -1 for padding."""
        out = np.full((self.ranks, self.rows), -1, dtype=np.int64)
        used = np.arange(self.rows)[None, :] < self.tokens[:, None]
        out[used] = self._order
        return out.reshape(-1)

    @cached_property
    def _order(self) -> Ints:
        """All rows of all ranks, as tokens of the batch."""
        offsets = np.cumsum(self.extend_lens) - self.extend_lens
        lengths = self.runs.stop - self.runs.start
        first = offsets[self.runs.request] + self.runs.start
        done = np.cumsum(lengths) - lengths
        order: Ints = np.arange(int(lengths.sum())) + np.repeat(first - done, lengths)
        return order


def plan(
    extend_lens: Sequence[int],
    prefix_lens: Sequence[int],
    ranks: int,
    cost: Cost | None = None,
    slack_per_mille: int = SLACK_PER_MILLE,
) -> Plan:
    """Splits a prefill batch over ranks.

    Tokens: no rank has more than ``ceil(total / ranks)``. Cost: no rank has more than the dearest
    rank of SGLang's interleave, or of its zigzag where that applies, give or take
    ``1 / STOCK_TOLERANCE`` of it.

    Args:
        extend_lens: new tokens of each request, at least 0.
        prefix_lens: cached tokens of each request, at least 0.
        ranks: ranks, at least 1.
        cost: what tokens cost in attention; full causal attention unless given.
        slack_per_mille: how far the dearest rank may be above the mean, or above what whole tokens
            allow, before tokens are traded.

    Raises:
        ConfigError: a length or the number of ranks is out of range.
    """
    cost = cost or Cost.causal()
    extend = np.asarray(extend_lens, dtype=np.int64).reshape(-1)
    prefix = np.asarray(prefix_lens, dtype=np.int64).reshape(-1)
    lowest = min(extend.min(initial=0), prefix.min(initial=0))
    if ranks < 1 or extend.shape != prefix.shape or lowest < 0:
        raise ConfigError(
            f"{ranks} ranks, {len(extend)} new and {len(prefix)} cached lengths: expected at least "
            "one rank, and as many lengths of either kind, none below 0"
        )
    stock = _best_of_stock(extend, prefix, ranks, cost)
    allowed = stock + stock // STOCK_TOLERANCE
    total = int(cost.between(prefix, prefix + extend).sum())
    mean = -(total // -ranks)
    dearest = int(cost.of(prefix + extend - 1).max(initial=0, where=extend > 0))
    wanted = max(mean, dearest, min(stock, mean + mean * slack_per_mille // 1000))
    found: list[tuple[Runs, Ints]] = []
    for runs, load in _dealings(extend, prefix, ranks, cost):
        if not found and int(load.max()) > wanted:
            least = max(mean, least_of_full_ranks(extend, prefix, ranks, cost))
            wanted = max(wanted, min(stock, least + least * slack_per_mille // 1000))
        found.append(even_out(runs, load, prefix, cost, wanted, allowed))
        if found[-1][1].max() <= allowed:
            break
    runs, load = min(found, key=lambda one: int(one[1].max()))
    tokens = np.zeros(ranks, dtype=np.int64)
    np.add.at(tokens, runs.rank, runs.stop - runs.start)
    return Plan(ranks, extend, prefix, runs, tokens, load)


def least_of_full_ranks(extend_lens: Ints, prefix_lens: Ints, ranks: int, cost: Cost) -> int:
    """What the dearest of the ranks with a token more than others costs at least.

    There are ``total % ranks`` of them or more, and no tokens cost less than those that have the
    lowest positions of the batch. 0 where all ranks have equally many tokens.
    """
    each, full = divmod(int(extend_lens.sum()), ranks)
    if not full:
        return 0
    wanted = full * (each + 1)
    edges = np.concatenate((prefix_lens, prefix_lens + extend_lens))
    order = np.argsort(edges, kind="stable")
    edges = edges[order]
    requests = np.cumsum(np.where(order < len(extend_lens), 1, -1))[:-1]
    below = np.append(0, np.cumsum(requests * np.diff(edges)))
    last = int(np.searchsorted(below, wanted)) - 1
    position, rest = divmod(wanted - int(below[last]), int(requests[last]))
    position += int(edges[last])
    taken = np.clip(position - prefix_lens, 0, extend_lens)
    lowest = int(cost.between(prefix_lens, prefix_lens + taken).sum())
    return -((lowest + rest * int(cost.of(np.array(position)))) // -full)


def _dealings(
    extend_lens: Ints, prefix_lens: Ints, ranks: int, cost: Cost
) -> Iterator[tuple[Runs, Ints]]:
    """Ways to deal a batch, none with more tokens on a rank than needed; the usual one first."""
    pieces = Pieces.cut(extend_lens, prefix_lens, ranks, cost)
    yield pieces.deal()
    yield pieces.deal_like_interleave(prefix_lens, cost)
    if zigzag_applies(extend_lens, ranks):
        tokens, load = zigzag_loads(extend_lens, prefix_lens, ranks, cost)
        if tokens.max() == -(tokens.sum() // -ranks):
            edges = zigzag_edges(extend_lens, ranks)
            pair = np.arange(ranks)
            rank = np.tile(np.concatenate((pair, pair[::-1])), len(extend_lens))
            request = np.repeat(np.arange(len(extend_lens)), 2 * ranks)
            starts, stops = edges[:, :-1].reshape(-1), edges[:, 1:].reshape(-1)
            yield Runs(rank, request, starts, stops).merged(), load


def _best_of_stock(extend_lens: Ints, prefix_lens: Ints, ranks: int, cost: Cost) -> int:
    """Cost of the dearest rank in the better of SGLang's two splits."""
    best = int(interleave_loads(extend_lens, prefix_lens, ranks, cost)[1].max())
    if zigzag_applies(extend_lens, ranks):
        best = min(best, int(zigzag_loads(extend_lens, prefix_lens, ranks, cost)[1].max()))
    return best
