"""A leaf-first cache over the prompts of a trace: one number a node."""

from collections.abc import Callable
from typing import NamedTuple

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.order import EvictionOrder
from sglang_ext.cache.use import Use, handed_up
from sglang_ext.replay.tree import PromptTree

__all__ = ["Place", "PrefixCache"]


class Place(NamedTuple):
    """What a ranking may know of a leaf, beside the time."""

    node: int
    use: Use  # touches are steps


class PrefixCache:
    """What one tier, or one capacity, holds of the tree.

    Node x holds its first ``resident[x]`` blocks, and holds any only where its parent is whole, so
    the resident set is prefix-closed. Where a path was passed is noted at its end and handed up
    when a leaf is dropped: a node is as recent as the last request through it, and a request costs
    what it misses, not what it is long.

    The path of a request that is being answered can be held: it stays, while others make room.

    ASSUMPTION: with ``beside``, what two requests that are held share makes room twice.

    Args:
        tree: all prompts.
        capacity: blocks.
        rank: worth of a leaf at a time, and until when it holds.
        by_recency: whether recency orders it now, see `EvictionOrder`.
        turn: of the request of a step; None: nobody asks.
        beside: what is held takes no room, as if it were in memory that is no cache then.
    """

    def __init__(
        self,
        tree: PromptTree,
        capacity: int,
        rank: Callable[[Place, float], tuple[float, float]],
        by_recency: Callable[[], bool] | None = None,
        turn: Callable[[int], Turn | None] = lambda step: None,
        *,
        beside: bool = True,
    ) -> None:
        self.tree = tree
        self.capacity = capacity
        self.used = 0
        self.hit = 0
        self.resident = [0] * len(tree)
        self._children = [0] * len(tree)
        self._use = [Use()] * len(tree)
        self._holders = [0] * len(tree)
        self._beside = beside
        self._held = 0  # blocks of paths that are held, where they take no room
        self._turn = turn
        use = self._use

        def ranked(leaf: int, now: float) -> tuple[float, float]:
            return rank(Place(leaf, use[leaf]), now)

        self._order: EvictionOrder[int] = EvictionOrder(ranked, by_recency)

    def access(self, leaf: int, step: int, now: float, *, hold: bool = False) -> None:
        """Look the path to ``leaf`` up, insert it, cut to capacity; ``hold`` it until `release`."""
        missing = []
        resident, parent = self.resident, self.tree.parent
        node = leaf
        while node >= 0 and not resident[node]:
            missing.append(node)
            node = parent[node]
        if node >= 0:
            self.hit += self.tree.begin[node] + resident[node]
            self._fill(node)
        for below in reversed(missing):
            self._fill(below)
            above = parent[below]
            if above >= 0:
                if not self._children[above]:
                    self._order.discard(above)
                self._children[above] += 1
        self._use[leaf] = Use(step, self._turn(step))
        if hold:
            self._holders[leaf] += 1
            self._held += self.tree.end[leaf] if self._beside else 0
            self._order.discard(leaf)
        else:
            self._offer(leaf, now)
        self._cut(now)

    def release(self, leaf: int, now: float) -> None:
        """The path to ``leaf`` is held once less."""
        self._holders[leaf] -= 1
        self._held -= self.tree.end[leaf] if self._beside else 0
        self._offer(leaf, now)
        self._cut(now)

    def reconsider(self, leaf: int, now: float) -> None:
        """The worth of the path that ends at ``leaf`` has changed, and of what is left of it."""
        while leaf >= 0 and not self.resident[leaf]:
            leaf = self.tree.parent[leaf]
        if leaf in self._order:
            self._order.add(leaf, self._use[leaf].touch, now)

    def holds(self, leaf: int) -> bool:
        """Whether the path to ``leaf`` is resident to its end."""
        return self.resident[leaf] == self.tree.end[leaf] - self.tree.begin[leaf]

    def check_integrity(self) -> None:
        """Raise where the state contradicts itself; for tests.

        Raises:
            ValueError: naming the node.
        """
        tree, resident = self.tree, self.resident
        children = [0] * len(tree)
        for node, blocks in enumerate(resident):
            above = tree.parent[node]
            if not blocks:
                continue
            if blocks > tree.end[node] - tree.begin[node]:
                raise ValueError(f"node {node} holds {blocks} blocks, more than it has")
            if above >= 0:
                children[above] += 1
                if resident[above] < tree.end[above] - tree.begin[above]:
                    raise ValueError(f"node {node} outlived a part of its parent {above}")
        if children != self._children:
            raise ValueError("counted children are not those that are resident")
        for node, blocks in enumerate(resident):
            free = bool(blocks and not children[node] and not self._holders[node])
            if free != (node in self._order):
                raise ValueError(f"node {node} is a leaf and not in the order, or the reverse")
        over = self.used > self.capacity + self._held and (self._beside or len(self._order))
        if self.used != sum(resident) or over:
            raise ValueError(f"{self.used} of {self.capacity} blocks used, {sum(resident)} held")

    def _fill(self, node: int) -> None:
        size = self.tree.end[node] - self.tree.begin[node]
        self.used += size - self.resident[node]
        self.resident[node] = size

    def _cut(self, now: float) -> None:
        while self.used > self.capacity + self._held:
            leaf = self._order.lowest(now)
            if leaf is None:  # a capacity below nought
                return
            over, size = self.used - self.capacity - self._held, self.resident[leaf]
            if size > over:
                self.resident[leaf] = size - over
                self.used -= over
                return
            self.resident[leaf] = 0
            self.used -= size
            self._order.discard(leaf)
            self._hand_up(leaf, now)
            # Who comes back to it finds a node that nobody has passed yet, as in a server.
            self._use[leaf] = Use()

    def _hand_up(self, leaf: int, now: float) -> None:
        """``leaf`` is gone: its parent was passed whenever it was, and may be a leaf now."""
        above = self.tree.parent[leaf]
        if above < 0:
            return
        self._use[above] = handed_up(self._use[leaf], self._use[above])
        self._children[above] -= 1
        self._offer(above, now)

    def _offer(self, node: int, now: float) -> None:
        """Put ``node`` into the order if it can be dropped."""
        if not self._children[node] and not self._holders[node]:
            self._order.add(node, self._use[node].touch, now)
