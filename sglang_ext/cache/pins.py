"""Pins: conversations that their clients want held, within a budget for each tenant.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from sglang_ext.cache.conversation import Turn

__all__ = ["Pins"]


class Pins:
    """Who has pinned what.

    Args:
        tokens: that one tenant can have pinned at once; 0 refuses pins.
        longest_s: a pin lasts no longer.
    """

    def __init__(self, tokens: int, longest_s: float) -> None:
        self.tokens = tokens
        self.longest_s = longest_s
        self._held: dict[str, dict[int, Turn]] = {}

    def pin(self, turn: Turn, now: float, seconds: float) -> bool:
        """Pin a conversation at its latest turn, or renew its pin.

        Returns:
            False where its tenant's budget is spent.
        """
        conversation = turn.conversation
        pins = self._of(conversation.tenant, now)
        spent = sum(pinned.conversation.tokens for pinned in pins.values())
        if conversation.number not in pins:
            spent += conversation.tokens
        if spent > self.tokens:
            return False
        turn.pinned_until = now + min(max(0.0, seconds), self.longest_s)
        pins[conversation.number] = turn
        return True

    def move(self, before: Turn, turn: Turn) -> None:
        """A conversation went on: it stays pinned, as long as the budget lets it."""
        pins = self._held.get(turn.conversation.tenant, {})
        spent = sum(pinned.conversation.tokens for pinned in pins.values())
        if pins.pop(turn.conversation.number, None) and spent <= self.tokens:
            pins[turn.conversation.number] = turn
            turn.pinned_until = before.pinned_until
        before.pinned_until = 0.0

    def clear(self) -> None:
        """Forget all of them."""
        self._held = {}

    def _of(self, tenant: str, now: float) -> dict[int, Turn]:
        """Pins of ``tenant`` that hold; those of all tenants that do not are dropped."""
        for name in list(self._held):
            held = {n: turn for n, turn in self._held[name].items() if turn.pinned_until > now}
            self._held[name] = held
            if not held:
                del self._held[name]
        return self._held.setdefault(tenant, {})
