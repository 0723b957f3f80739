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

    def stranger(self, now: float) -> Turn | None:
        """A turn for nodes that no known request has passed."""


class Recency:
    """LRU."""

    def __call__(self, node: Node, now: float) -> tuple[float, float]:
        """All are worth the same, so the one touched longest ago goes first."""
        return 0.0, inf

    def stranger(self, now: float) -> Turn | None:
        """None: nobody asks."""
        return None


class Learned:
    """The worth that the policy gives to the last request that passed a node.

    Attributes:
        guard: sees to it that a tier is no worse than under recency; None: nobody does.
    """

    def __init__(self, policy: Policy, guard: Guard | None = None) -> None:
        self.policy = policy
        self.guard = guard

    def __call__(self, node: Node, now: float) -> tuple[float, float]:
        """Ask the policy. A node without any request counts as worth nothing."""
        if node.turn is None:
            return 0.0, inf
        return self.policy.worth(node.turn, now, shared=node.shared, guard=self.guard)

    def stranger(self, now: float) -> Turn | None:
        """A turn of which only the time is known."""
        return self.policy.stranger(now)
