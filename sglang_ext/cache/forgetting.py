"""Tells the third tier what the tree's conversations are worth: `disk_order` in the server.

Pure: neither torch nor SGLang is imported. All calls come from the scheduler's thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from sglang_ext.cache.conversation import Conversation, Turn
from sglang_ext.cache.disk_order import DiskAdvice, DiskOrder
from sglang_ext.cache.mirror import Node

__all__ = ["Forgetting"]

# Conversations that go on at the moment, whose path before is remembered. Default: 16,384.
_MOST = 16_384


class Forgetting:
    """Follows the turns of conversations to the last pages of their paths.

    Args:
        order: of the third tier.
        advice: to it.
        last_page: hash of the last page of a node; None where it has none.
    """

    def __init__(
        self,
        order: DiskOrder,
        advice: DiskAdvice,
        last_page: Callable[[int], str | None],
    ) -> None:
        self.order = order
        self._advice = advice
        self._last_page = last_page
        self._before: OrderedDict[Conversation, tuple[Turn, str]] = OrderedDict()

    def changed(self, turns: Sequence[Turn], now: float) -> None:
        """The worth of these has changed, or their conversations have gone on."""
        for turn in turns:
            if turn.is_current:
                continue
            tail = self.order.forget(turn)
            if tail is not None:
                self._advice.unknows(tail)
                self._before[turn.conversation] = turn, tail
                if len(self._before) > _MOST:
                    self._before.popitem(last=False)
        self.order.reconsider(turns, now)

    def finished(self, turn: Turn, now: float) -> None:
        """The answer to ``turn`` is complete, and its path is in the tree."""
        node = turn.place
        if turn.is_current and isinstance(node, Node) and node.parent is not None:
            before = self._before.pop(turn.conversation, None)
            if before is not None and _is_left(before[0].place, node):
                self.order.paused(*before, now)
                self._advice.knows(before[1])
            page = self._last_page(node.id)
            if page is not None:
                self.order.paused(turn, page, now)
                self._advice.knows(page)
        advice = self._advice
        wanted = advice.wanted
        named = self.order.least(wanted, advice.oldest_s, now) if wanted else []
        advice.name(named, trusted=self.order.trusted)
        if len(named) < wanted and self.order.trusted and advice.oldest_s is not None:
            advice.name_stranger()


def _is_left(place: object, node: Node) -> bool:
    """Whether a path that was there before ends beside the one that ends at ``node``.

    One that is no longer in memory is not looked for: its pages on disk go by use.
    """
    if not isinstance(place, Node) or place.parent is None:
        return False
    at: Node | None = node
    while at is not None and at is not place:
        at = at.parent
    return at is None
