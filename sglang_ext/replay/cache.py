"""A leaf-first cache over the prompts of a trace: one number a node."""

from collections.abc import Callable
from typing import NamedTuple

from sglang_ext.cache.order import EvictionOrder
from sglang_ext.cache.use import NEVER, Use, handed_up
from sglang_ext.replay.tree import PromptTree

__all__ = ["Place", "PrefixCache"]


class Place(NamedTuple):
    """What a ranking may know of a leaf, beside the time."""

    node: int
    touch: int  # step of the request that passed it last
    shared: bool  # conversations other than that request's have passed it


class PrefixCache:
    """What one tier, or one capacity, holds of the tree.

    Node x holds its first ``resident[x]`` blocks, and holds any only where its parent is whole, so
    the resident set is prefix-closed. Where a path was passed is noted at its end and handed up
    when a leaf is dropped: a node is as recent as the last request through it, and a request costs
    what it misses, not what it is long.

    The path of a request that is being answered can be held: it stays, and takes no room, as a
    server has it in memory that is no cache then.

    ASSUMPTION: what two requests that are held share makes room twice.

    Args:
        tree: all prompts.
        capacity: blocks.
        rank: worth of a leaf at a time, and until when it holds.
        owner: who passed at a step; leaves of several owners count as shared.
    """

    def __init__(
        self,
        tree: PromptTree,
        capacity: int,
        rank: Callable[[Place, float], tuple[float, float]],
        owner: Callable[[int], object] | None = None,
    ) -> None:
        self.tree = tree
        self.capacity = capacity
        self.used = 0
        self.hit = 0
        self.resident = [0] * len(tree)
        self._children = [0] * len(tree)
        self._touch = [NEVER] * len(tree)
        self._shared = [False] * len(tree)
        self._holders = [0] * len(tree)
        self._held = 0  # blocks of paths that are held
        self._owner = owner
        touch, shared = self._touch, self._shared

        def ranked(leaf: int, now: float) -> tuple[float, float]:
            return rank(Place(leaf, touch[leaf], shared[leaf]), now)

        self._order: EvictionOrder[int] = EvictionOrder(ranked)

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
        self._touch[leaf] = step
        if hold:
            self._holders[leaf] += 1
            self._held += self.tree.end[leaf]
            self._order.discard(leaf)
        else:
            self._offer(leaf, now)
        self._cut(now)

    def release(self, leaf: int, now: float) -> None:
        """The path to ``leaf`` is held once less."""
        self._holders[leaf] -= 1
        self._held -= self.tree.end[leaf]
        self._offer(leaf, now)
        self._cut(now)

    def reconsider(self, leaf: int, now: float) -> None:
        """The worth of the path that ends at ``leaf`` has changed, and of what is left of it."""
        while leaf >= 0 and not self.resident[leaf]:
            leaf = self.tree.parent[leaf]
        if leaf in self._order:
            self._order.add(leaf, self._touch[leaf], now)

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
        if self.used != sum(resident) or self.used > self.capacity + self._held:
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
            self._touch[leaf], self._shared[leaf] = NEVER, False

    def _hand_up(self, leaf: int, now: float) -> None:
        """``leaf`` is gone: its parent was passed whenever it was, and may be a leaf now."""
        above = self.tree.parent[leaf]
        if above < 0:
            return
        use = handed_up(self._use(leaf), self._use(above))
        self._touch[above], self._shared[above] = use.touch, use.shared
        self._children[above] -= 1
        self._offer(above, now)

    def _use(self, node: int) -> Use:
        touch = self._touch[node]
        owner = None if self._owner is None or touch == NEVER else self._owner(touch)
        return Use(touch, owner, self._shared[node])

    def _offer(self, node: int, now: float) -> None:
        """Put ``node`` into the order if it can be dropped."""
        if not self._children[node] and not self._holders[node]:
            self._order.add(node, self._touch[node], now)
