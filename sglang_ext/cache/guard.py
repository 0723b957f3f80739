"""Whether a tier would be served better by recency than by what was learned.

A guard plays both against each other in a model of its tier (`sglang_ext.cache.shadow`). A tier is
ordered by recency until the learned order has been ahead by more than chance explains, and again
when it is no longer ahead. What was learned can be wrong for many reasons - the load has changed,
too little was seen, clients lie - and all of them end here: the loss against recency is bounded by
what it takes to notice it.

Pure: neither torch nor SGLang is imported.
"""

from collections.abc import Iterable, Sequence
from math import sqrt

__all__ = ["Guard"]

# Requests over which both are compared: of older ones less than a third counts.
_WINDOW = 2000.0
# Lead of the learned order at which it is trusted, and below which it no longer is, in standard
# deviations of what chance would do.
_TRUST, _DROP = 1.0, 0.0
# Requests that a lead from before a restart counts as, at most: the traffic may be another one now,
# and what was earned by thousands of requests would take as long to be lost.
_RESTORED = 100.0
# Part by which capacities may differ that count as the same after a restart: servers round them.
_SAME = 0.05


class Guard:
    """One tier's comparison.

    Args:
        capacity_tokens: of the tier and those above it.

    Attributes:
        trusted: whether the tier is to be ordered by what was learned.
        lead_tokens: hits of the learned order over those of recency, old ones less and less.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.trusted = False
        self.lead_tokens = 0.0
        self._squares = 0.0

    def hear(self, recency: float, learned: float) -> None:
        """A request came: tokens of it that each order had kept."""
        lead = learned - recency
        keep = 1.0 - 1.0 / _WINDOW
        self.lead_tokens = self.lead_tokens * keep + lead
        self._squares = self._squares * keep + lead * lead
        lead = self.lead_tokens / sqrt(self._squares) if self._squares else 0.0
        self.trusted = lead > (_DROP if self.trusted else _TRUST)

    def by_recency(self) -> bool:
        """Whether the tier is to be ordered by recency: the opposite of ``trusted``."""
        return not self.trusted

    def state(self) -> list[float]:
        """What survives a restart, for `load`; what the model of the tier holds does not."""
        return [self.capacity_tokens, self.lead_tokens, self._squares, float(self.trusted)]

    def load(self, states: Iterable[Sequence[float]]) -> None:
        """Take back the `state` of a guard of this capacity, or of nearly this; others say nothing.

        The verdict stays. Its lead and what chance would do shrink to those of a hundred requests,
        so that other traffic than the lead was earned by undoes it as soon.

        Args:
            states: of all guards that were kept.
        """
        mine = self.capacity_tokens
        nearest = min(states, key=lambda state: abs(state[0] - mine), default=None)
        if nearest is not None and abs(nearest[0] - mine) <= _SAME * mine:
            part = _RESTORED / _WINDOW
            _, lead, squares, trusted = nearest
            self.lead_tokens, self._squares, self.trusted = (
                part * lead,
                part * squares,
                bool(trusted),
            )
