"""Which conversations the third tier should forget first, by what they are worth.

The third tier orders its pages by use; it knows nothing of sessions. The tree does: it knows the
last page of each conversation that has paused, and what holding it is worth. So it names those of
least worth (`DiskOrder`), a few at a time, to whoever evicts (`DiskAdvice`). Pages that nobody
knows (of a server before this one, of requests that were aborted) are named where a conversation of
which nothing particular is known would be worth less at their age. What is needed beyond what was
named goes by use.

Where a guard does not trust what was learned, nothing is named, and all go by use.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.guard import Guard
from sglang_ext.cache.order import EvictionOrder
from sglang_ext.cache.policy import Policy

__all__ = ["AdvisedStore", "DiskAdvice", "DiskOrder"]

# Conversations that are ordered; the one of least worth is forgotten here first. Default: 16,384.
# Cost: 1 KB each.
_MOST = 16_384
# Conversations that are named at a time. What is named is evicted even where it becomes worth more
# meanwhile, unless it is used; few are enough, since each is long.
_AT_ONCE = 4


class DiskOrder:
    """The scheduler's half: conversations in the third tier, the least worth first.

    Args:
        policy: says what they are worth.
        guard: of the third tier.
    """

    def __init__(self, policy: Policy, guard: Guard) -> None:
        self._policy = policy
        self._guard = guard
        self._order: EvictionOrder[Turn] = EvictionOrder(self._worth)
        self._tails: dict[Turn, str] = {}
        self._touch = 0
        self._spilt: deque[str] = deque(maxlen=_MOST)

    def __len__(self) -> int:
        return len(self._tails)

    @property
    def trusted(self) -> bool:
        """Whether what was learned is to order the tier."""
        return self._guard.trusted

    def paused(self, turn: Turn, tail: str, now: float) -> None:
        """The path of ``turn`` ends with the page ``tail``; nobody needs it for now."""
        self._touch += 1
        self._tails[turn] = tail
        self._order.add(turn, self._touch, now)
        if len(self._tails) > _MOST:
            self._spilt.append(self._pop(now))

    def reconsider(self, turns: Sequence[Turn], now: float) -> None:
        """The worth of these has changed; of one that is not there, nothing is known."""
        for turn in turns:
            if turn in self._tails:
                self._touch += 1
                self._order.add(turn, self._touch, now)

    def forget(self, turn: Turn) -> str | None:
        """A turn whose conversation goes on; returns its last page, where one was known."""
        self._order.discard(turn)
        return self._tails.pop(turn, None)

    def least(self, count: int, oldest_s: float | None, now: float) -> list[str]:
        """Last pages of what should go first; they are not asked for again.

        Args:
            count: how many at most.
            oldest_s: age of the page that goes for want of use and that nobody here knows; None:
                there is none.
            now: seconds.
        """
        if not self._guard.trusted:
            return []
        limit = None
        if oldest_s is not None:
            limit = self._worth(self._policy.stranger(now - oldest_s), now)[0]
        named = [self._spilt.popleft() for _ in range(min(count, len(self._spilt)))]
        while len(named) < count:
            first = self._order.peek(now)
            if first is None or (limit is not None and first[0] >= limit):
                break
            named.append(self._pop(now))
        return named

    def _pop(self, now: float) -> str:
        turn = self._order.lowest(now)
        if turn is None:
            raise KeyError("nothing is ordered")
        self._order.discard(turn)
        return self._tails.pop(turn)

    def _worth(self, turn: Turn, now: float) -> tuple[float, float]:
        return self._policy.worth(turn, now, guard=self._guard)


class AdvisedStore(Protocol):
    """Who evicts: `sglang_ext.cache.disk_tier.DiskTier`."""

    def tail_keys(self, hashes: Sequence[str]) -> list[bytes]:
        """Keys of last pages."""

    def know(self, keys: Sequence[bytes]) -> None:
        """These chains are looked after."""

    def unknow(self, keys: Sequence[bytes]) -> None:
        """They are not any more."""

    def evict_first(self, keys: Sequence[bytes]) -> None:
        """These go first."""

    def evict_first_left(self) -> int:
        """How many of them wait."""

    def forget_first(self) -> None:
        """Nothing goes first."""

    def oldest_stranger(self) -> tuple[bytes, float] | None:
        """What was used least recently of what is not looked after, and seconds since."""

    def evicted(self) -> int:
        """Pages evicted so far."""


class DiskAdvice:
    """What travels between the scheduler's thread and the one that may wait for the store's lock.

    Attributes:
        wanted: how many conversations the scheduler should name; nought until the store evicts.
        oldest_s: age of the oldest leaf that the scheduler does not know; None: there is none.
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.wanted = 0
        self.oldest_s: float | None = None
        self._wake = wake
        self._stranger: bytes | None = None
        self._trusted = False
        self._told: deque[tuple[str, list[str]]] = deque(maxlen=_MOST)

    def knows(self, tail: str) -> None:
        """Scheduler: a conversation that ends with this page is ordered."""
        self._told.append(("know", [tail]))
        self._wake()

    def unknows(self, tail: str) -> None:
        """Scheduler: it is not any more, and goes by use."""
        self._told.append(("unknow", [tail]))

    def name_stranger(self) -> None:
        """Scheduler: the oldest leaf that it does not know goes first."""
        self._told.append(("stranger", []))
        self.wanted = 0
        self._wake()

    def name(self, tails: list[str], *, trusted: bool) -> None:
        """Scheduler: these go first. Where what was learned is not trusted, nothing does."""
        if tails or trusted != self._trusted:
            self._trusted = trusted
            self.wanted = 0
            self._told.append(("evict_first", tails))
            self._wake()

    def work(self, store: AdvisedStore) -> None:
        """The other thread: tell the store, and look what it needs."""
        while self._told:
            what, tails = self._told.popleft()
            if what == "stranger":
                store.evict_first([] if self._stranger is None else [self._stranger])
            else:
                getattr(store, what)(store.tail_keys(tails))
        if not self._trusted:
            if store.evict_first_left():
                store.forget_first()
            self.wanted = _AT_ONCE if store.evicted() else 0
            return
        oldest = store.oldest_stranger() if store.evicted() else None
        self._stranger, self.oldest_s = (None, None) if oldest is None else oldest
        self.wanted = max(0, _AT_ONCE - store.evict_first_left()) if store.evicted() else 0
