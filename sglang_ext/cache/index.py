"""Which leaf of which tier goes first: the mirror of the tree with an order for each tier.

L1's candidates are *device leaves* (on the device, nothing below them there) that nobody has
locked, L2's are *host leaves* (in host memory alone, nothing below them). Each step costs O(log n)
in leaves.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import takewhile
from math import inf

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.mirror import Mirror, Node, PathEntry
from sglang_ext.cache.order import FairOrder
from sglang_ext.cache.ranks import Rank
from sglang_ext.cache.shares import Shares, Tenants
from sglang_ext.cache.use import Use, handed_up
from sglang_ext.errors import MirrorError

__all__ = ["TreeIndex"]


class TreeIndex:
    """What may be evicted from device and host memory, the least worth first.

    Args:
        root_id: node id of the root.
        rank: worth of a leaf.
        device_tokens, host_tokens: capacity of each tier, for the shares of tenants.
        host_rank: worth of a leaf in host memory, where it is another.
    """

    def __init__(
        self,
        root_id: int,
        rank: Rank,
        device_tokens: int,
        host_tokens: int,
        host_rank: Rank | None = None,
    ) -> None:
        self.rank = rank
        self.mirror = Mirror(root_id)
        self.tenants = Tenants()
        self.device_shares = Shares(device_tokens, self.tenants)
        self.host_shares = Shares(host_tokens, self.tenants)
        self._host_rank = host_rank or rank
        self.device: FairOrder[Node] = FairOrder(rank, _tenant, self.device_shares, rank.by_recency)
        self.host: FairOrder[Node] = FairOrder(
            self._host_rank, _tenant, self.host_shares, self._host_rank.by_recency
        )
        self._touches = 0
        self._host_locks: dict[int, Node] = {}  # nodes in host memory alone that are locked

    def get(self, node_id: object) -> Node | None:
        """The node, if it is known."""
        return self.mirror.get(node_id)

    def learn(
        self,
        path: Sequence[PathEntry],
        key_at: Callable[[int], Hashable],
        now: float,
        tenant: str = "",
        *,
        touched: bool = False,
    ) -> tuple[Node, list[Node]]:
        """Take in the path to a node; see `Mirror.learn`. New nodes belong to ``tenant`` (a place).

        ``touched``: `touch` follows at once, which ranks the node.

        Raises:
            MirrorError: the path contradicts what is known.
        """
        node, fresh = self.mirror.learn(path, key_at)
        for new in fresh:
            parent = new.parent
            if parent is not None:
                self.refresh(parent, now)
            if not new.children:
                new.tenant = tenant
                self._charge(new, len(new))
        if fresh:
            top = fresh[0].begin
            tail = takewhile(lambda entry: entry.start >= top, reversed(path))
            on_device = {entry.node_id for entry in tail if entry.device_tokens is not None}
            for new in fresh:
                if new.id in on_device:  # an insert has brought the upper part of a host node back
                    self.to_device(new, now)
            if not touched:
                self.refresh(node, now)
        return node, fresh

    def touch(self, node: Node, turn: Turn | None, now: float) -> None:
        """A request's path ends at ``node``."""
        if node.parent is None:
            return
        self._touches += 1
        if turn is None:
            turn = self.rank.stranger(now)
        elif not _is_below(turn.place, node):
            turn.place = node
        for above in self.mirror.path(node):
            above.use = Use(self._touches, turn)
            if above.device:  # below it all may be in host memory: it is a leaf
                break
        self.refresh(node, now)
        if not node.device:
            self.refresh(above, now)

    def reconsider(self, turns: Iterable[Turn], now: float) -> None:
        """The worth of the paths of these turns has changed."""
        for turn in turns:
            node = turn.place
            if isinstance(node, Node) and node.parent is not None:
                self.refresh(node, now)
                if not node.device:  # above it, its path ends in device memory with another leaf
                    self.refresh(_lowest_on_device(node), now)

    def to_device(self, node: Node, now: float) -> None:
        """``node`` got device memory."""
        if node.device:
            return
        self.host_shares.charge(node.tenant, -len(node))
        self.device_shares.charge(node.tenant, len(node))
        self.mirror.set_device(node, True)
        self._host_locks.pop(node.id, None)
        self._refresh_around(node, now)

    def to_host(self, node: Node, now: float) -> None:
        """``node`` lost its device memory and is in host memory alone."""
        if not node.device:
            return
        self.device_shares.charge(node.tenant, -len(node))
        self.host_shares.charge(node.tenant, len(node))
        self.mirror.set_device(node, False)
        if node.locks:
            self._host_locks[node.id] = node
        self._hand_up(node)
        self._refresh_around(node, now)

    def gone(self, node: Node, now: float) -> None:
        """``node`` is in no tier any more, and neither is anything below it.

        Raises:
            MirrorError: something below it is on the device.
        """
        if not node.children:
            self._remove(node, now)
            return
        below = [node]
        for one in below:
            for child in one.children.values():
                if child.device:
                    raise MirrorError(f"node {child.id} is on the device, {one.id} is gone")
                below.append(child)
        for one in reversed(below):
            self._remove(one, now)

    def _remove(self, node: Node, now: float) -> None:
        parent = node.parent
        self._hand_up(node)
        turn = node.use.turn
        if turn is not None and turn.place is node:
            turn.place = parent
        self._charge(node, -len(node))
        self.device.discard(node)
        self.host.discard(node)
        self._host_locks.pop(node.id, None)
        self.mirror.remove(node)
        if parent is not None and parent.parent is not None:
            self.refresh(parent, now)

    def lock(self, node: Node) -> None:
        """Somebody holds the path to ``node``."""
        node.locks += 1
        self.device.discard(node)
        if not node.device and node.parent is not None:
            self._host_locks[node.id] = node
            self.host.discard(node)
            self.device.discard(_lowest_on_device(node))

    def unlock(self, node: Node, now: float) -> None:
        """One who held the path to ``node`` does not any more."""
        if node.locks:
            node.locks -= 1
        if node.locks:
            return
        if self._host_locks.pop(node.id, None) is not None:
            self.refresh(_lowest_on_device(node), now)
        self.refresh(node, now)

    def is_locked(self, node: Node) -> bool:
        """Whether a device leaf is held: by itself, or by what hangs below it in host memory."""
        if node.locks:
            return True
        return any(_lowest_on_device(held) is node for held in self._host_locks.values())

    def refresh(self, node: Node, now: float) -> None:
        """Put a node into the orders it belongs to, ranked anew, and out of the others."""
        if node.is_device_leaf and not self.is_locked(node):
            self.device.add(node, node.use.touch, now)
        else:
            self.device.discard(node)
        if node.is_host_leaf and not node.locks:
            self.host.add(node, node.use.touch, now)
        else:
            self.host.discard(node)

    def is_lesser(self, node: Node, other: Node, now: float) -> bool:
        """Whether ``node`` goes before ``other`` where both could go from host memory."""
        mine, theirs = (self._host_rank(leaf, now)[0] for leaf in (node, other))
        if self._host_rank.by_recency() and inf not in (mine, theirs):
            mine = theirs
        return (mine, node.use.touch) < (theirs, other.use.touch)

    def check_integrity(self) -> None:
        """Raise where the state contradicts itself; for tests.

        Raises:
            MirrorError: saying what.
        """
        self.mirror.check_integrity()
        held: dict[tuple[bool, str], int] = {}
        for node in self.mirror:
            place = node.device, node.tenant
            held[place] = held.get(place, 0) + len(node)
            if (node in self.device) != (node.is_device_leaf and not self.is_locked(node)):
                raise MirrorError(f"node {node.id} is a device leaf and not in the order, or not")
            if (node in self.host) != (node.is_host_leaf and not node.locks):
                raise MirrorError(f"node {node.id} is a host leaf and not in the order, or not")
        for (device, tenant), tokens in held.items():
            shares = self.device_shares if device else self.host_shares
            if shares.held(tenant) != tokens:
                raise MirrorError(f"{tenant!r} is charged {shares.held(tenant)} of {tokens} tokens")

    def _charge(self, node: Node, tokens: int) -> None:
        shares = self.device_shares if node.device else self.host_shares
        shares.charge(node.tenant, tokens)

    def _refresh_around(self, node: Node, now: float) -> None:
        self.refresh(node, now)
        if node.parent is not None:
            self.refresh(node.parent, now)

    def _hand_up(self, node: Node) -> None:
        """A node is as recent as the last request through it: its parent was passed with it."""
        parent = node.parent
        if parent is None or parent.parent is None:
            return
        parent.use = handed_up(node.use, parent.use)


def _tenant(node: Node) -> str:
    return node.tenant


def _is_below(place: object, node: Node) -> bool:
    """Whether the end of a turn's path is known already, deeper than ``node``."""
    return isinstance(place, Node) and place.parent is not None and place.end > node.end


def _lowest_on_device(node: Node) -> Node:
    """The first node from ``node`` up that is on the device."""
    while not node.device and node.parent is not None:
        node = node.parent
    return node
