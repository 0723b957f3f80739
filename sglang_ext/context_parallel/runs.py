"""Slices of all ranks as columns (pure: numpy alone)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_ext.context_parallel.cost import Cost, Ints

__all__ = ["Runs"]


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of new tokens, one a row of four columns.

    Attributes:
        rank: who computes them.
        request: whose they are.
        start: the first, counted from the request's first new token.
        stop: the one after the last.
    """

    rank: Ints
    request: Ints
    start: Ints
    stop: Ints

    def where(self, chosen: NDArray[np.bool_] | Ints) -> Runs:
        """The chosen rows."""
        return Runs(self.rank[chosen], self.request[chosen], self.start[chosen], self.stop[chosen])

    def of_rank(self, rank: int) -> Runs:
        """The rows of one rank."""
        return self.where(self.rank == rank)

    def rows_of(self, rank: int) -> tuple[int, Runs]:
        """The same of merged runs, without a copy, and the number of the first."""
        first, end = self.rank.searchsorted((rank, rank + 1)).tolist()
        rows = slice(first, end)
        return first, Runs(self.rank[rows], self.request[rows], self.start[rows], self.stop[rows])

    def and_also(self, *others: Runs) -> Runs:
        """These rows and then those of ``others``."""
        parts = (self, *others)
        return Runs(
            np.concatenate([part.rank for part in parts]),
            np.concatenate([part.request for part in parts]),
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.stop for part in parts]),
        )

    def cost(self, prefix_lens: Ints, cost: Cost) -> Ints:
        """Cost of each run in attention."""
        prefix = prefix_lens[self.request]
        return cost.between(prefix + self.start, prefix + self.stop)

    def merged(self) -> Runs:
        """In order of rank, request and position; neighbours are one, empty runs are gone."""
        held = self.where(self.stop > self.start)
        held = held.where(np.lexsort((held.start, held.request, held.rank)))
        if not len(held.rank):
            return held
        begins = np.ones(len(held.rank), dtype=np.bool_)
        begins[1:] = (
            (held.rank[1:] != held.rank[:-1])
            | (held.request[1:] != held.request[:-1])
            | (held.start[1:] != held.stop[:-1])
        )
        first = np.flatnonzero(begins)
        last = np.append(first[1:], len(held.rank)) - 1
        return Runs(held.rank[first], held.request[first], held.start[first], held.stop[last])
