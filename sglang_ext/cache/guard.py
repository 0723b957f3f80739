"""Whether a tier would be served better by recency than by what was learned.

A guard plays both against each other in a model of its tier: conversations instead of nodes, so a
request costs a few microseconds. A tier is ordered by recency until the learned order has been
ahead by more than chance explains, and again when it is no longer ahead. What was learned can be
wrong for many reasons - the load has changed, too little was seen, clients lie - and all of them
end here: the loss against recency is bounded by what it takes to notice it.

ASSUMPTION: what conversations share is counted for each of them, in both orders alike.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import sqrt

from sglang_ext.cache.conversation import Conversation
from sglang_ext.cache.order import EvictionOrder

__all__ = ["Guard"]

# Requests over which both are compared: of older ones less than a third counts.
_WINDOW = 2000.0
# Lead of the learned order at which it is trusted, and below which it no longer is, in standard
# deviations of what chance would do.
_TRUST, _DROP = 1.0, 0.0
# Conversations that either order may hold. Default: 16,384, as many as are remembered. Cost: 1.7 KB
# each, beside the conversation.
_MOST = 16_384


class Guard:
    """One tier's comparison.

    Args:
        capacity_tokens: of the tier and those above it.
        rank: worth of a conversation's blocks as learned, and until when it holds.

    Attributes:
        trusted: whether the tier is to be ordered by what was learned.
        lead_tokens: hits of the learned order over those of recency, old ones less and less.
    """

    def __init__(
        self, capacity_tokens: int, rank: Callable[[Conversation, float], tuple[float, float]]
    ) -> None:
        self.capacity_tokens = capacity_tokens
        self.trusted = False
        self.lead_tokens = 0.0
        self._squares = 0.0
        self._recent: OrderedDict[Conversation, int] = OrderedDict()
        self._learned: dict[Conversation, int] = {}
        self._order: EvictionOrder[Conversation] = EvictionOrder(rank)
        # Tokens above capacity: by recency, as learned.
        self._over = [-capacity_tokens, -capacity_tokens]
        self._touch = 0

    def arrive(self, conversation: Conversation) -> None:
        """A request of ``conversation`` is here and has been counted in it; the server holds it."""
        asked = conversation.tokens - conversation.new_tokens if conversation.turns > 1 else 0
        held = self._recent.pop(conversation, 0), self._learned.pop(conversation, 0)
        self._order.discard(conversation)
        for side, tokens in enumerate(held):
            self._over[side] -= tokens
        lead = float(min(asked, held[1]) - min(asked, held[0]))
        keep = 1.0 - 1.0 / _WINDOW
        self.lead_tokens = self.lead_tokens * keep + lead
        self._squares = self._squares * keep + lead * lead
        lead = self.lead_tokens / sqrt(self._squares) if self._squares else 0.0
        self.trusted = lead > (_DROP if self.trusted else _TRUST)

    def finish(self, conversation: Conversation, now: float) -> None:
        """Its answer is complete: the tier is offered all of it."""
        for side, held in enumerate((self._recent, self._learned)):
            self._over[side] += conversation.tokens - held.get(conversation, 0)
            held[conversation] = conversation.tokens
        self._recent.move_to_end(conversation)
        self.rank(conversation, now)
        self._cut(now)
        if len(self._recent) > _MOST:
            self._forget(next(iter(self._recent)))
        if len(self._learned) > _MOST:
            least = self._order.lowest(now)
            if least is not None:
                self._forget(least)

    def state(self) -> list[float]:
        """What survives a restart, for `load`; what the model of the tier holds does not."""
        return [self.capacity_tokens, self.lead_tokens, self._squares, float(self.trusted)]

    def load(self, state: Sequence[float]) -> None:
        """Take back the `state` of a guard of the same capacity; another one is ignored."""
        capacity, lead, squares, trusted = state
        if capacity == self.capacity_tokens:
            self.lead_tokens, self._squares, self.trusted = lead, squares, bool(trusted)

    def rank(self, conversation: Conversation, now: float) -> None:
        """More is known of ``conversation``."""
        if conversation in self._learned:
            self._touch += 1
            self._order.add(conversation, self._touch, now)

    def _forget(self, conversation: Conversation) -> None:
        """Neither order has anything of a conversation any more."""
        for side, held in enumerate((self._recent, self._learned)):
            self._over[side] -= held.pop(conversation, 0)
        self._order.discard(conversation)

    def _cut(self, now: float) -> None:
        """Drop what is over the capacity."""
        while self._over[0] > 0:
            oldest = next(iter(self._recent))
            self._over[0] -= self._drop(self._recent, oldest, self._over[0])
        while self._over[1] > 0:
            least = self._order.lowest(now)
            if least is None:  # a capacity below nought
                return
            self._over[1] -= self._drop(self._learned, least, self._over[1])
            if least not in self._learned:
                self._order.discard(least)

    @staticmethod
    def _drop(held: dict[Conversation, int], conversation: Conversation, tokens: int) -> int:
        """Drop up to ``tokens`` of a conversation; returns how many."""
        dropped = min(tokens, held[conversation])
        held[conversation] -= dropped
        if not held[conversation]:
            del held[conversation]
        return dropped
