"""Whether a tree core agrees that a leaf is one, and that nobody holds it.

It is looked at in the core itself: the path of a node tells what hangs below each node of it, and a
pin that is let go at once tells from where on nobody holds it. Both say so of the nodes above, too:
a path that is given up from its end is read once, and not anew for each of its nodes.

Pure: neither torch nor SGLang is imported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sglang_ext.cache.mirror import Node

__all__ = ["Entry", "LeafCheck", "PlainCore"]

# Fields of a `PathEntry`, which one may be: node, parent, begin, end, tokens on the device (None:
# none), children.
Entry = tuple[int, int, int, int, int | None, int]


class PlainCore(Protocol):
    """What is asked of a tree core."""

    def is_full_device_evicted(self, node_id: int) -> bool:
        """Whether a node is in host memory alone."""

    def full_protected_size(self) -> int:
        """Tokens on the device that somebody holds."""

    def inc_full_pin(self, node_id: int) -> None:
        """Hold a path."""

    def dec_full_pin(self, node_id: int) -> None:
        """Let go of a path."""


@dataclass(slots=True)
class _Read:
    """A path as it was read, and what has left it since.

    ``at`` is the node that can be the next to go, ``gone`` whether the one below it has left the
    tree (else it is in host memory), ``free_from`` the offset from which on nobody holds the path.
    """

    path: Sequence[Entry]
    at: int
    gone: bool
    free_from: int


class LeafCheck:
    """What was read of a core counts from `begin` on, while nothing but evictions changes it.

    Args:
        core: whose pins nobody follows.
        path: to a node; `KeyError` where there is none.
    """

    def __init__(self, core: PlainCore, path: Callable[[int], Sequence[Entry]]) -> None:
        self._core = core
        self._path = path
        self._read: dict[int, _Read] = {}  # by the node that can be the next to go
        self._last: _Read | None = None

    def begin(self) -> None:
        """Forget what was read: the tree may have changed."""
        self._read.clear()
        self._last = None

    def agrees(self, node: Node) -> bool:
        """Whether a leaf of the mirror may be evicted from the device."""
        self._last = read = self._read.pop(node.id, None)
        if (
            read is not None
            and node.begin >= read.free_from
            and self._is_leaf(node, read.path[read.at], int(read.gone))
        ):
            return True
        return self._looks_so(node)

    def evicted(self, node_id: int, *, gone: bool) -> None:
        """The core has evicted a leaf; ``gone``: it is not in host memory either."""
        read, self._last = self._last, None
        if read is None or not read.at or read.path[read.at][0] != node_id:
            return
        read.at -= 1
        read.gone = gone
        self._read[read.path[read.at][0]] = read

    def _looks_so(self, node: Node) -> bool:
        self._last = None
        try:
            path = self._path(node.id)
        except KeyError:
            return False
        if not self._is_leaf(node, path[-1], 0):
            return False
        core = self._core
        before = core.full_protected_size()
        core.inc_full_pin(node.id)
        free = core.full_protected_size() - before
        core.dec_full_pin(node.id)
        if free <= 0:
            return False
        if len(path) > 1:
            self._last = _Read(path, len(path) - 1, False, node.end - free)
        return True

    def _is_leaf(self, node: Node, entry: Entry, gone: int) -> bool:
        _, parent_id, begin, _, device_tokens, children = entry
        if device_tokens is None or children - gone != len(node.children):
            return False
        for child in node.children.values():
            if not self._core.is_full_device_evicted(child.id):
                return False
        parent = node.parent
        return parent is not None and parent_id == parent.id and begin == node.begin
