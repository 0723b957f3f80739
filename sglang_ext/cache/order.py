"""The order in which leaves are dropped, when their worth changes with time, and fairness in it.

A heap by worth and a heap by the time at which worth changes next. A leaf's worth falls in steps
further and further apart, so it is looked at again a few dozen times in its life; adding, removing
and finding the lowest are O(log n) in leaves.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

import heapq
from collections.abc import Callable, Hashable
from math import inf, nextafter
from typing import Generic, TypeVar

from sglang_ext.cache.shares import Shares

__all__ = ["EvictionOrder", "FairOrder"]

Leaf = TypeVar("Leaf", bound=Hashable)
Rank = Callable[[Leaf, float], tuple[float, float]]


class EvictionOrder(Generic[Leaf]):
    """Leaves of one tier, the least worth first; equal worth: the longest untouched first.

    Args:
        rank: worth of a leaf at a time, and the time until which it holds (infinity: for good).
    """

    def __init__(self, rank: Rank[Leaf]) -> None:
        self._rank = rank
        self._entry: dict[Leaf, tuple[int, int]] = {}  # version and touch of each leaf
        self._lowest: list[tuple[float, int, int, Leaf]] = []
        self._due: list[tuple[float, int, Leaf]] = []
        self._version = 0

    def __len__(self) -> int:
        return len(self._entry)

    def __contains__(self, leaf: Leaf) -> bool:
        return leaf in self._entry

    def add(self, leaf: Leaf, touch: int, now: float) -> None:
        """Add a leaf, or rank it anew.

        Args:
            leaf: the leaf.
            touch: number of the request that passed it last.
            now: seconds.
        """
        self._version = version = self._version + 1
        self._entry[leaf] = version, touch
        worth, until = self._rank(leaf, now)
        heapq.heappush(self._lowest, (worth, touch, version, leaf))
        if until < inf:
            # Never due at once again: sums of times are rounded.
            heapq.heappush(self._due, (max(until, nextafter(now, inf)), version, leaf))
        if len(self._lowest) + len(self._due) > 64 + 6 * len(self._entry):
            self._compact()

    def discard(self, leaf: Leaf) -> None:
        """Remove a leaf, if it is there."""
        self._entry.pop(leaf, None)

    def lowest(self, now: float) -> Leaf | None:
        """The leaf to drop first at ``now``; it stays. None: there is no leaf."""
        first = self.peek(now)
        return first[2] if first is not None else None

    def peek(self, now: float) -> tuple[float, int, Leaf] | None:
        """Worth, touch and leaf of what is to be dropped first at ``now``."""
        due, entry = self._due, self._entry
        while due and due[0][0] <= now:
            _, version, leaf = heapq.heappop(due)
            held = entry.get(leaf)
            if held is not None and held[0] == version:
                self.add(leaf, held[1], now)
                due = self._due
        lowest = self._lowest
        while lowest:
            worth, touch, version, leaf = lowest[0]
            held = entry.get(leaf)
            if held is not None and held[0] == version:
                return worth, touch, leaf
            heapq.heappop(lowest)
        return None

    def _compact(self) -> None:
        """Drop entries that no longer count; amortised over the pushes that made them."""
        entry = self._entry

        def counts(version: int, leaf: Leaf) -> bool:
            held = entry.get(leaf)
            return held is not None and held[0] == version

        self._lowest = [row for row in self._lowest if counts(row[2], row[3])]
        self._due = [row for row in self._due if counts(row[1], row[2])]
        heapq.heapify(self._lowest)
        heapq.heapify(self._due)


class FairOrder(Generic[Leaf]):
    """An `EvictionOrder` in which no tenant pushes another below its share.

    The leaf of least worth goes first, whoever it belongs to; but where its tenant holds no more
    than its share, the least of those that hold more than theirs.

    Args:
        rank: as in `EvictionOrder`.
        tenant: who a leaf is charged to (a place of `Tenants`).
        shares: kept up to date by the owner of the tier.
    """

    def __init__(self, rank: Rank[Leaf], tenant: Callable[[Leaf], str], shares: Shares) -> None:
        self._rank = rank
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
            self._orders[tenant] = EvictionOrder(self._rank)
        self._orders[tenant].add(leaf, touch, now)

    def discard(self, leaf: Leaf) -> None:
        """Remove a leaf, if it is there."""
        tenant = self._of.pop(leaf, None)
        if tenant is not None:
            self._discard(tenant, leaf)

    def lowest(self, now: float) -> Leaf | None:
        """The leaf to drop first at ``now``; it stays. None: there is no leaf."""
        firsts = {}
        for tenant, order in self._orders.items():
            first = order.peek(now)
            if first is not None:
                firsts[tenant] = first
        if not firsts:
            return None
        least = min(firsts, key=lambda tenant: firsts[tenant][:2])
        if len(firsts) > 1:
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
