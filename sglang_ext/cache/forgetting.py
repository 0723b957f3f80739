"""Tells the third tier what the tree's conversations are worth: `disk_order` in the server.

Pure: neither torch nor SGLang is imported. All calls come from the scheduler's thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from sglang_ext.cache.conversation import Conversation, Turn
from sglang_ext.cache.disk_order import DiskAdvice, DiskOrder
from sglang_ext.cache.mirror import Node

__all__ = ["Forgetting", "Paths", "TreePaths"]

# Conversations that go on at the moment, whose path before is remembered. Default: 16,384.
_MOST = 16_384


class Paths(Protocol):
    """Where the paths of turns end (`Turn.place`)."""

    def is_there(self, place: object) -> bool:
        """Whether a path is in memory, its end at least."""

    def tail(self, place: object) -> str | None:
        """Hash of the last page of a path; None where it has none."""

    def has_left(self, before: object, place: object) -> bool:
        """Whether the path that ended at ``before`` ends beside the one that ends at ``place``.

        One that is no longer in memory is not looked for: its pages on disk go by use.
        """


class TreePaths:
    """Paths in the mirror of the tree.

    Args:
        last_page: hash of the last page of a node; None where it has none.
    """

    def __init__(self, last_page: Callable[[int], str | None]) -> None:
        self._last_page = last_page

    def is_there(self, place: object) -> bool:
        """See `Paths.is_there`."""
        return isinstance(place, Node) and place.parent is not None

    def tail(self, place: object) -> str | None:
        """See `Paths.tail`."""
        return self._last_page(place.id) if isinstance(place, Node) else None

    def has_left(self, before: object, place: object) -> bool:
        """See `Paths.has_left`."""
        if not self.is_there(before):
            return False
        at = place if isinstance(place, Node) else None
        while at is not None and at is not before:
            at = at.parent
        return at is None


class Forgetting:
    """Follows the turns of conversations to the last pages of their paths.

    Args:
        order: of the third tier.
        advice: to it.
        paths: where turns end.
    """

    def __init__(self, order: DiskOrder, advice: DiskAdvice, paths: Paths) -> None:
        self.order = order
        self._advice = advice
        self._paths = paths
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
        if turn.is_current and self._paths.is_there(turn.place):
            before = self._before.pop(turn.conversation, None)
            if before is not None and self._paths.has_left(before[0].place, turn.place):
                self.order.paused(*before, now)
                self._advice.knows(before[1])
            page = self._paths.tail(turn.place)
            if page is not None:
                self.order.paused(turn, page, now)
                self._advice.knows(page)
        advice = self._advice
        wanted = advice.wanted
        named = self.order.least(wanted, advice.oldest_s, now) if wanted else []
        advice.name(named, trusted=self.order.trusted)
        if len(named) < wanted and self.order.trusted and advice.oldest_s is not None:
            advice.name_stranger()
