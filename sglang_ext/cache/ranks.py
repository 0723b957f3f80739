"""By what the leaves of a tier are ordered: recency, or the policy.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from math import inf
from typing import Protocol

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.guard import Guard
from sglang_ext.cache.mirror import Node
from sglang_ext.cache.policy import Policy

__all__ = ["Learned", "Rank", "Recency"]


class Rank(Protocol):
    """Worth of leaves; the least goes first, of equals the one touched longest ago."""

    def __call__(self, node: Node, now: float) -> tuple[float, float]:
        """Worth of a node, and until when it holds; infinity: for good."""

    def by_recency(self) -> bool:
        """Whether the leaf touched longest ago goes first now, whatever it is worth."""

    def run_begin(self, node: Node) -> int:
        """Where the last part of a node begins that is worth the same; a leaf may be cut there."""

    def stranger(self, now: float) -> Turn | None:
        """A turn for nodes that no known request has passed."""


class Recency:
    """LRU."""

    def __call__(self, node: Node, now: float) -> tuple[float, float]:
        """All are worth the same, so the one touched longest ago goes first."""
        return 0.0, inf

    def by_recency(self) -> bool:
        """Always."""
        return True

    def run_begin(self, node: Node) -> int:
        """All of it."""
        return node.begin

    def stranger(self, now: float) -> Turn | None:
        """None: nobody asks."""
        return None


class Learned:
    """The worth that the policy gives to the requests that passed a node.

    Attributes:
        guard: sees to it that a tier is no worse than under recency; None: nobody does.
    """

    def __init__(self, policy: Policy, guard: Guard | None = None) -> None:
        self.policy = policy
        self.guard = guard

    def __call__(self, node: Node, now: float) -> tuple[float, float]:
        """Ask the policy. A node without any request counts as worth nothing."""
        turn = node.use.turn
        if turn is None:
            return 0.0, inf
        if turn.shadow is None:  # one whom the guards do not know shares nothing
            return self.policy.worth(turn, now)
        return self.policy.node_worth(turn, node.end, now)

    def by_recency(self) -> bool:
        """While nothing was learned, or the guard does not trust it."""
        return self.policy.is_cold or (self.guard is not None and self.guard.by_recency())

    def run_begin(self, node: Node) -> int:
        """Where other conversations have left the path of the last request, at the latest."""
        if node.use.turn is None or self.by_recency():
            return node.begin
        return max(node.begin, self.policy.run_begin(node.use.turn, node.end))

    def stranger(self, now: float) -> Turn | None:
        """A turn of which only the time is known."""
        return self.policy.stranger(now)
