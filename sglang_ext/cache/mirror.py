"""What a radix tree looks like, kept beside SGLang's own so that its eviction can be chosen.

SGLang's tree core tells neither when it splits a node nor which of its nodes are leaves. Both
follow from what it does tell: the path of a node, read when an operation ends on a node that is not
known here. At most one node is split by an operation, on its path, so one read is enough.

Pure: neither torch nor SGLang is imported.
"""

from array import array
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple, overload

from sglang_ext.cache.use import UNUSED
from sglang_ext.errors import MirrorError

__all__ = ["Mirror", "Node", "PathEntries", "PathEntry"]


class PathEntry(NamedTuple):
    """One node of a path as a tree core reports it; the root is left out.

    ``start`` and ``end`` are offsets from the root in tokens, ``device_tokens`` is None where the
    node has no device memory.

    Source: ``TreePathNodeInfo`` in ``mem_cache/unified_cache/unified_tree_core_interface.py``,
    release 0.5.23.
    """

    node_id: int
    parent_id: int
    start: int
    end: int
    device_tokens: int | None
    children: int


class PathEntries(Sequence[PathEntry]):
    """A path of which only what is looked at is made: its end, of a hundred nodes.

    Args:
        told: the fields of the entries.
    """

    def __init__(self, told: Sequence[tuple[int, int, int, int, int | None, int]]) -> None:
        self._told = told

    def __len__(self) -> int:
        return len(self._told)

    @overload
    def __getitem__(self, at: int) -> PathEntry: ...
    @overload
    def __getitem__(self, at: slice) -> list[PathEntry]: ...
    def __getitem__(self, at: int | slice) -> PathEntry | list[PathEntry]:
        if isinstance(at, slice):
            return [PathEntry(*fields) for fields in self._told[at]]
        return PathEntry(*self._told[at])


class Node:
    """A run of tokens that is cached as a whole, and what is known of its use.

    ``use`` is of the last request that is known to have passed it. A request is noted at the end of
    its path, and handed up when that is gone.
    """

    __slots__ = (
        "begin",
        "children",
        "device",
        "device_children",
        "end",
        "id",
        "key",
        "locks",
        "parent",
        "pin",
        "tenant",
        "tokens",
        "use",
    )

    def __init__(self, node_id: int, parent: "Node | None", begin: int, end: int) -> None:
        self.id = node_id
        self.parent = parent
        self.begin = begin
        self.end = end
        self.key: Hashable = None  # under which the parent has it; None: not known
        self.children: dict[Hashable, Node] = {}
        self.device = False
        self.device_children = 0
        self.locks = 0  # locks taken at this very node
        self.pin: object = None  # receipt of the host lock that keeps others from evicting it
        self.use = UNUSED
        self.tenant = ""
        # Ids of the run, and where keys are pairs of tokens the one behind it; None: not known.
        self.tokens: array[int] | None = None

    def __len__(self) -> int:
        return self.end - self.begin

    def __bool__(self) -> bool:
        return True

    @property
    def is_device_leaf(self) -> bool:
        """On the device, with nothing below it there."""
        return self.device and not self.device_children and self.parent is not None

    @property
    def is_host_leaf(self) -> bool:
        """In host memory alone, with nothing below it."""
        return not self.device and not self.children and self.parent is not None


class Mirror:
    """The nodes of one tree core.

    Args:
        root_id: node id of the root.
    """

    def __init__(self, root_id: int) -> None:
        self.root = Node(root_id, None, 0, 0)
        self.root.device = True
        self._nodes = {root_id: self.root}

    def __len__(self) -> int:
        """Nodes, without the root."""
        return len(self._nodes) - 1

    def __iter__(self) -> Iterator[Node]:
        return (node for node in self._nodes.values() if node.parent is not None)

    def get(self, node_id: object) -> Node | None:
        """The node, if it is known."""
        return self._nodes.get(node_id)  # type: ignore[call-overload,no-any-return]

    def learn(
        self, path: Sequence[PathEntry], key_at: Callable[[int], Hashable]
    ) -> tuple[Node, list[Node]]:
        """Take in the path to a node.

        Args:
            path: from below the root down to the node; not empty.
            key_at: under which key the node that begins at an offset hangs on its parent.

        Returns:
            The last node; and those that were not known, shallow first. One that split off the
            upper part of a known node inherits its place, its tenant and its use.

        Raises:
            MirrorError: the path contradicts what is known.
        """
        known = len(path)
        while known:
            node = self._nodes.get(path[known - 1].node_id)
            if node is not None and node.parent is not None:
                entry = path[known - 1]
                if node.parent.id == entry.parent_id and node.begin == entry.start:
                    break
            known -= 1
        fresh = [
            node
            for node in (self._place(entry, key_at(entry.start)) for entry in path[known:])
            if node is not None
        ]
        return self._nodes[path[-1].node_id], fresh

    def set_device(self, node: Node, device: bool) -> None:
        """Note that a node got device memory, or lost it."""
        if node.device == device:
            return
        node.device = device
        if node.parent is not None:
            node.parent.device_children += 1 if device else -1

    def remove(self, node: Node) -> None:
        """Forget a node without children.

        Raises:
            MirrorError: it has some, or is the root.
        """
        parent = node.parent
        if node.children or parent is None:
            raise MirrorError(f"node {node.id} of {len(node.children)} children was removed")
        self.set_device(node, False)
        if parent.children.pop(node.key, None) is not node:
            raise MirrorError(f"node {node.id} does not hang on {parent.id} under its key")
        del self._nodes[node.id]
        _clear(node)

    def abandon(self) -> None:
        """The tree is gone: who still holds one of its nodes finds it without a parent."""
        for node in self._nodes.values():
            _clear(node)

    def path(self, node: Node) -> Iterator[Node]:
        """From a node up, without the root."""
        at = node
        while at.parent is not None:
            yield at
            at = at.parent

    def text(self, node: Node, end: int | None = None) -> "array[int] | None":
        """Tokens of the path to a node, up to an offset; None where some are not known."""
        runs = []
        for at in self.path(node):
            run = at.tokens
            if run is None:
                return None
            if at is node:
                run = run if end is None else run[: end - at.begin]
            elif len(run) != len(at):
                run = run[: len(at)]
            runs.append(run)
        whole = array("q")
        whole.frombytes(b"".join(reversed(runs)))
        return whole

    def check_integrity(self) -> None:
        """Raise where the state contradicts itself; for tests.

        Raises:
            MirrorError: naming the node.
        """
        for node in self:
            parent = node.parent
            if parent is None or parent.children.get(node.key) is not node:
                raise MirrorError(f"node {node.id} does not hang on its parent")
            if parent.id not in self._nodes or parent.end != node.begin or not len(node):
                raise MirrorError(f"node {node.id} spans {node.begin} to {node.end}")
            if node.device and not parent.device:
                raise MirrorError(f"node {node.id} is on the device, its parent is not")
            if node.tokens is None or len(node.tokens) not in (len(node), len(node) + 1):
                raise MirrorError(f"node {node.id} has not the tokens of its run")
        for node in self._nodes.values():
            on_device = sum(child.device for child in node.children.values())
            if on_device != node.device_children:
                raise MirrorError(f"node {node.id} counts {node.device_children} of {on_device}")

    def _place(self, entry: PathEntry, key: Hashable) -> Node | None:
        """Add a node, or correct where a known one hangs; returns it if it is new."""
        parent = self._nodes.get(entry.parent_id)
        if parent is None:
            raise MirrorError(f"node {entry.node_id} hangs on {entry.parent_id}, which is unknown")
        node = self._nodes.get(entry.node_id)
        if node is not None:
            if node.parent is not parent:
                raise MirrorError(
                    f"node {node.id} hangs on {entry.parent_id}, not on its known parent"
                )
            self._rename(node, key)
            return None
        node = Node(entry.node_id, parent, entry.start, entry.end)
        node.key = key
        if entry.children:
            self._split(node, parent, key)
        elif key in parent.children:
            raise MirrorError(f"node {entry.node_id} takes the place of another")
        parent.children[key] = node
        self._nodes[node.id] = node
        if not entry.children:
            self.set_device(node, entry.device_tokens is not None)
        return node

    def _split(self, node: Node, parent: Node, key: Hashable) -> None:
        """``node`` is the upper part of a child of ``parent``, which becomes its child."""
        child = parent.children.pop(key, None) or parent.children.pop(None, None)
        if child is None:
            raise MirrorError(f"node {node.id} was split off a node that is unknown")
        if not child.begin == node.begin < node.end < child.end:
            raise MirrorError(f"node {node.id} was split off {child.id}, which is elsewhere")
        if child.tokens is not None:
            cut, behind = len(node), len(child.tokens) - len(child)
            node.tokens, child.tokens = child.tokens[: cut + behind], child.tokens[cut:]
        child.parent, child.key, child.begin = node, None, node.end
        node.children[None] = child
        node.device = child.device
        node.device_children = int(child.device)
        node.tenant, node.use = child.tenant, child.use

    def _rename(self, node: Node, key: Hashable) -> None:
        """The key of a node that was split becomes known when a path passes it."""
        parent = node.parent
        if parent is not None and node.key is None and key is not None:
            del parent.children[None]
            parent.children[key] = node
            node.key = key


def _clear(node: Node) -> None:
    """A node has left the tree; a conversation may remember it for long."""
    turn = node.use.turn
    if turn is not None and turn.place is node:
        turn.place = None
    node.parent, node.tokens, node.children, node.use = None, None, {}, UNUSED
