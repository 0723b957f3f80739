"""Pins: conversations that their clients want held, within a budget for each tenant.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from collections import Counter
from heapq import heapify, heappop, heappush

from sglang_ext.cache.conversation import Conversation, Turn

__all__ = ["PINS", "Pins"]

# Pins that hold at once, of all tenants together. Default: 16,384. Cost: 400 bytes each.
PINS = 16_384


class Pins:
    """Who has pinned what. What is asked of it takes time logarithmic in the number of pins.

    Args:
        tokens: that one tenant can have pinned at once; 0 refuses pins.
        longest_s: a pin lasts no longer.
        most: pins that hold at once.

    Attributes:
        refused: pins for which there was no room, and those that outgrew their tenant's budget.
    """

    def __init__(self, tokens: int, longest_s: float, most: int = PINS) -> None:
        self.tokens = tokens
        self.longest_s = longest_s
        self.most = most
        self.refused = 0
        self._held: dict[int, tuple[Turn, str, int]] = {}  # with tenant and tokens
        self._spent: Counter[str] = Counter()  # tokens by tenant
        self._ends: list[tuple[float, int]] = []  # a heap; a pin may be in it several times

    def __len__(self) -> int:
        return len(self._held)

    def pin(self, turn: Turn, now: float, seconds: float) -> bool:
        """Pin a conversation at its latest turn, or renew its pin.

        Returns:
            False where its tenant's budget is spent, or there are too many pins.
        """
        self._expire(now)
        number = turn.conversation.number
        full = len(self._held) >= self.most and number not in self._held
        if full or not self._hold(turn):
            self.refused += 1
            return False
        turn.pinned_until = now + min(max(0.0, seconds), self.longest_s)
        heappush(self._ends, (turn.pinned_until, number))
        if len(self._ends) > 2 * len(self._held) + 64:  # of pins that were renewed
            self._ends = [(held[0].pinned_until, number) for number, held in self._held.items()]
            heapify(self._ends)
        return True

    def move(self, before: Turn, turn: Turn) -> None:
        """A conversation went on: it stays pinned, as long as the budget lets it."""
        until, before.pinned_until = before.pinned_until, 0.0
        if turn.conversation.number not in self._held:
            return
        if self._hold(turn):
            turn.pinned_until = until
        else:
            self.refused += 1
            self._forget(turn.conversation.number)

    def drop(self, conversation: Conversation) -> bool:
        """Undo a pin; returns whether there was one."""
        held = self._held.get(conversation.number)
        if held is not None:
            held[0].pinned_until = 0.0
        return self._forget(conversation.number)

    def clear(self) -> list[Turn]:
        """Undo all of them; returns those that were pinned."""
        turns = [turn for turn, *_ in self._held.values()]
        for turn in turns:
            turn.pinned_until = 0.0
        self._held, self._spent, self._ends = {}, Counter(), []
        return turns

    def _hold(self, turn: Turn) -> bool:
        """Take a pin in, or in the place of its conversation's; False where the budget is spent."""
        conversation = turn.conversation
        number, tenant = conversation.number, conversation.tenant
        _, _, before = self._held.get(number, (turn, tenant, 0))
        if self._spent[tenant] - before + conversation.tokens > self.tokens:
            return False
        self._forget(number)
        self._held[number] = turn, tenant, conversation.tokens
        self._spent[tenant] += conversation.tokens
        return True

    def _forget(self, number: int) -> bool:
        held = self._held.pop(number, None)
        if held is None:
            return False
        _, tenant, tokens = held
        self._spent[tenant] -= tokens
        if self._spent[tenant] <= 0:
            del self._spent[tenant]
        return True

    def _expire(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, number = heappop(self._ends)
            held = self._held.get(number)
            if held is not None and held[0].pinned_until <= now:
                self._forget(number)
