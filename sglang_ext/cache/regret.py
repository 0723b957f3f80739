"""What left memory and was asked for again: the price of having evicted the wrong thing.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from sglang_ext.cache.mirror import Node

__all__ = ["Regret"]

# Evicted nodes that are remembered. Default: 65,536. Cost: 300 bytes each.
_MOST = 65_536


class _Lost(NamedTuple):
    node_id: int
    end: int
    tokens: int
    lost_s: float


class Regret:
    """Remembers nodes that were evicted, by where they hung.

    Args:
        window_s: how long after its eviction asking for a node counts as regret. Default: ten
            minutes.
    """

    def __init__(self, window_s: float = 600.0) -> None:
        self.window_s = window_s
        self.tokens = 0
        self._lost: OrderedDict[tuple[int, Hashable], _Lost] = OrderedDict()

    def lost(self, node: Node, now: float) -> None:
        """``node``, which still hangs on its parent, leaves memory."""
        if node.parent is None or node.key is None:
            return
        place = node.parent.id, node.key
        self._lost.pop(place, None)
        self._lost[place] = _Lost(node.id, node.end, len(node), now)
        if len(self._lost) > _MOST:
            self._lost.popitem(last=False)

    def asked(
        self, node_id: int, end: int, key_at: Callable[[int], Hashable], tokens: int, now: float
    ) -> int:
        """A prompt was found up to a node, and no further.

        Args:
            node_id: the node.
            end: where it ends.
            key_at: under which key the prompt goes on at an offset.
            tokens: length of the prompt.
            now: seconds.

        Returns:
            Tokens behind it that were there a while ago, as far as is known.
        """
        regretted = 0
        while end < tokens:
            lost = self._lost.pop((node_id, key_at(end)), None)
            if lost is None:
                break
            if now - lost.lost_s <= self.window_s:
                regretted += min(lost.end, tokens) - end
            node_id, end = lost.node_id, lost.end
        self.tokens += regretted
        return regretted
