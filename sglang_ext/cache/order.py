"""The order in which leaves are dropped, when their worth changes with time, and fairness in it.

A heap by worth, one by recency, and one by the time at which worth changes next. A leaf's worth
falls in steps further and further apart, so it is looked at again a few dozen times in its life.
Adding, removing and finding the lowest are O(log n) in leaves, each call for itself: what has
become due together is ranked anew a few leaves a call, and what no longer counts is swept out of
the heaps a few rows at a time.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

import heapq
from collections.abc import Callable, Hashable
from math import inf, nextafter
from typing import Final, Generic, TypeVar

from sglang_ext.cache.shares import Shares

__all__ = ["EvictionOrder", "FairOrder"]

# Leaves ranked anew by one question for the lowest: of those due longest, and of those that look
# lowest. Default: 2 each. Cost: about 6 us a leaf; with fewer it takes more questions until the
# order is exact again after a long idle time.
_RERANKS = 2
# Rows that one push sweeps, and rows for each leaf from which on there is something to sweep.
_SWEPT, _ROWS = 4, 4

Leaf = TypeVar("Leaf", bound=Hashable)
Rank = Callable[[Leaf, float], tuple[float, float]]
_Row = tuple[float, float, int, Leaf]


# What counts of a leaf: its rows of these versions (by worth and when that changes, by age), and
# what it was ranked with: touch, worth and until when that holds. A plain tuple: one is made for
# each leaf that is ranked, and a named one costs as much as ranking does.
_Held = tuple[int, int, int, float, float]
_BY_WORTH: Final = 0
_BY_AGE: Final = 1
_TOUCH: Final = 2
_WORTH: Final = 3


class _Rows(Generic[Leaf]):
    """A heap whose rows count only while their leaf has their version.

    Args:
        held: what counts, by leaf.
        version: which field of it has the version of a row of this heap.
    """

    def __init__(self, held: dict[Leaf, _Held], version: int = _BY_WORTH) -> None:
        self._held = held
        self._version = version
        self._rows: list[_Row[Leaf]] = []
        self._old: list[_Row[Leaf]] = []  # being swept into the others, from its end

    def __len__(self) -> int:
        return len(self._rows) + len(self._old)

    def push(self, row: "_Row[Leaf]") -> None:
        """Add a row: by what it is ordered, then by what, version, leaf."""
        rows = self._rows
        top = self._held.get(rows[0][3]) if rows else None
        if rows and (top is None or top[self._version] != rows[0][2]):
            heapq.heapreplace(rows, row)  # one way through the heap in place of two
        else:
            heapq.heappush(rows, row)
        if self._old:
            self._sweep()
        elif len(rows) > 64 + _ROWS * len(self._held):
            self._rows, self._old = self._old, rows

    def first(self) -> "_Row[Leaf] | None":
        """The lowest row that counts; it stays."""
        first = self._first(self._rows)
        if not self._old:
            return first
        other = self._first(self._old)
        return min((row for row in (first, other) if row is not None), default=None)

    def _sweep(self) -> None:
        old = self._old
        for _ in range(min(_SWEPT, len(old))):
            last = old.pop()
            if self._counts(last):
                heapq.heappush(self._rows, last)

    def _first(self, rows: "list[_Row[Leaf]]") -> "_Row[Leaf] | None":
        held, version = self._held, self._version
        while rows:
            row = rows[0]
            mine = held.get(row[3])
            if mine is not None and mine[version] == row[2]:
                return row
            heapq.heappop(rows)
        return None

    def _counts(self, row: "_Row[Leaf]") -> bool:
        held = self._held.get(row[3])
        return held is not None and held[self._version] == row[2]


class EvictionOrder(Generic[Leaf]):
    """Leaves of one tier, the least worth first; equal worth: the longest untouched first.

    Args:
        rank: worth of a leaf at a time, and the time until which it holds (infinity: for good).
            What is worth infinity is held: it comes after all others.
        by_recency: whether the longest untouched goes first now, whatever it is worth; asked each
            time, so the order can change from one question to the next. None: never.
    """

    def __init__(self, rank: Rank[Leaf], by_recency: Callable[[], bool] | None = None) -> None:
        self._rank = rank
        self._by_recency = by_recency
        self._held: dict[Leaf, _Held] = {}
        self._lowest = _Rows(self._held)
        self._oldest = _Rows(self._held, _BY_AGE)
        self._due = _Rows(self._held)
        self._version = 0

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, leaf: Leaf) -> bool:
        return leaf in self._held

    def add(self, leaf: Leaf, touch: int, now: float) -> None:
        """Add a leaf, or rank it anew.

        Args:
            leaf: the leaf.
            touch: number of the request that passed it last.
            now: seconds.
        """
        worth, until = self._rank(leaf, now)
        if until <= now:
            until = nextafter(now, inf)  # never due at once again: times are rounded
        self._version = version = age_version = self._version + 1
        held, before = worth == inf, self._held.get(leaf)
        if before is not None and before[_TOUCH] == touch and held == (before[_WORTH] == inf):
            age_version = before[_BY_AGE]  # ages are not ranked anew
        # What counts is said first: a row that no longer does gives its place to the new one.
        self._held[leaf] = version, age_version, touch, worth, until
        self._lowest.push((worth, touch, version, leaf))
        if age_version == version and self._by_recency is not None:
            self._oldest.push((inf if held else 0.0, touch, version, leaf))
        if until < inf:
            self._due.push((until, touch, version, leaf))

    def discard(self, leaf: Leaf) -> None:
        """Remove a leaf, if it is there."""
        self._held.pop(leaf, None)

    def lowest(self, now: float) -> Leaf | None:
        """The leaf to drop first at ``now``; it stays. None: there is no leaf."""
        first = self.peek(now)
        return first[2] if first is not None else None

    def peek(self, now: float) -> tuple[float, int, Leaf] | None:
        """Worth, touch and leaf of what is to be dropped first at ``now``.

        Of leaves whose worth has changed meanwhile a few are ranked anew, those due longest and
        those that look lowest; of the others the worth they had counts.
        """
        held = self._held
        for _ in range(_RERANKS):
            due = self._due.first()
            if due is None or due[0] > now:
                break
            self.add(due[3], held[due[3]][_TOUCH], now)
        rows = self._lowest
        if self._by_recency is not None and self._by_recency():
            rows = self._oldest
        for _ in range(_RERANKS):
            row = rows.first()
            if row is None:
                return None
            _, _, touch, _, until = held[row[3]]
            if until > now:
                return row[0], touch, row[3]
            self.add(row[3], touch, now)
        row = rows.first()
        return None if row is None else (row[0], held[row[3]][_TOUCH], row[3])


class FairOrder(Generic[Leaf]):
    """An `EvictionOrder` in which no tenant pushes another below its share.

    The leaf of least worth goes first, whoever it belongs to; but where its tenant holds no more
    than its share, the least of those that hold more than theirs.

    Args:
        rank, by_recency: as in `EvictionOrder`.
        tenant: who a leaf is charged to (a place of `Tenants`).
        shares: kept up to date by the owner of the tier.
    """

    def __init__(
        self,
        rank: Rank[Leaf],
        tenant: Callable[[Leaf], str],
        shares: Shares,
        by_recency: Callable[[], bool] | None = None,
    ) -> None:
        self._rank = rank
        self._by_recency = by_recency
        self._tenant = tenant
        self._shares = shares
        self._orders: dict[str, EvictionOrder[Leaf]] = {}
        self._of: dict[Leaf, str] = {}

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, leaf: Leaf) -> bool:
        return leaf in self._of

    def add(self, leaf: Leaf, touch: int, now: float) -> None:
        """As `EvictionOrder.add`; the leaf may have changed hands."""
        tenant = self._tenant(leaf)
        before = self._of.get(leaf)
        if before is not None and before != tenant:
            self._discard(before, leaf)
        self._of[leaf] = tenant
        if tenant not in self._orders:
            self._orders[tenant] = EvictionOrder(self._rank, self._by_recency)
        self._orders[tenant].add(leaf, touch, now)

    def discard(self, leaf: Leaf) -> None:
        """Remove a leaf, if it is there."""
        if leaf in self._of:
            self._discard(self._of.pop(leaf), leaf)

    def lowest(self, now: float) -> Leaf | None:
        """The leaf to drop first at ``now``; it stays. None: there is no leaf."""
        if len(self._orders) == 1:
            (only,) = self._orders.values()
            return only.lowest(now)
        firsts = {}
        for tenant, order in self._orders.items():
            first = order.peek(now)
            if first is not None:
                firsts[tenant] = first
        if not firsts:
            return None
        least = min(firsts, key=lambda tenant: firsts[tenant][:2])
        excess = self._shares.excess(now)
        if excess.get(least, 0.0) <= 0.0:
            above = [tenant for tenant in firsts if excess.get(tenant, 0.0) > 0.0]
            least = min(above or [least], key=lambda tenant: firsts[tenant][:2])
        return firsts[least][2]

    def _discard(self, tenant: str, leaf: Leaf) -> None:
        order = self._orders[tenant]
        order.discard(leaf)
        if not len(order):
            del self._orders[tenant]
