"""What a new token costs in attention, by its position (pure: numpy alone).

Everything the plan balances is linear in the position, up to one knee: full causal attention, a
sliding window, the top-k of sparse attention, the indexer that selects it, and sums of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from sglang_ext.errors import ConfigError

__all__ = ["Cost", "Ints"]

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of the token at position ``p`` (0 is the first of the request, prefix included).

    ``linear * (p + 1) + capped * min(p + 1, cap)``, in units of one query-key pair.

    Attributes:
        linear: weight of pairs whose number grows with the position.
        capped: weight of pairs whose number ends at ``cap``.
        cap: most keys that a query sees in the capped part.
    """

    linear: int = 1
    capped: int = 0
    cap: int = 0

    def __post_init__(self) -> None:
        if min(self.linear, self.capped, self.cap) < 0 or self.linear + self.capped == 0:
            raise ConfigError(
                f"cost {self}: expected weights and a cap of at least 0, and one weight above it"
            )
        if bool(self.capped) != bool(self.cap):
            raise ConfigError(f"cost {self}: a capped part needs both a weight and a cap")

    @classmethod
    def causal(cls) -> Cost:
        """Every query sees all keys before it, and its own."""
        return cls()

    @classmethod
    def windowed(cls, window: int, window_layers: int = 1, full_layers: int = 0) -> Cost:
        """Layers of a sliding window of ``window`` keys beside layers of full attention."""
        return cls(linear=full_layers, capped=window_layers, cap=window)

    @classmethod
    def top_k(cls, k: int, attention: int = 1, indexer: int = 0) -> Cost:
        """Sparse attention over ``k`` keys, and an indexer that scores every key.

        Args:
            k: keys that a query attends to.
            attention: what an attended pair costs.
            indexer: what a scored pair costs, in the same unit.
        """
        return cls(linear=indexer, capped=attention, cap=k)

    def of(self, positions: Ints) -> Ints:
        """Cost of one token at each position; any shape."""
        seen = positions + 1
        cost: Ints = self.linear * seen + self.capped * np.minimum(seen, self.cap)
        return cost

    def before(self, positions: Ints) -> Ints:
        """Cost of all tokens before each position; any shape."""
        ramp = np.minimum(positions, self.cap)
        capped = ramp * (ramp + 1) // 2 + (positions - ramp) * self.cap
        cost: Ints = self.linear * (positions * (positions + 1) // 2) + self.capped * capped
        return cost

    def between(self, starts: Ints, stops: Ints) -> Ints:
        """Cost of the tokens at positions ``starts..stops - 1``; any shape."""
        return self.before(stops) - self.before(starts)

    def strided(self, firsts: Ints, counts: Ints, stride: int) -> Ints:
        """Cost of ``counts`` tokens at ``firsts``, ``firsts + stride``, ...; any shape."""
        below = np.clip((self.cap - 1 - firsts) // stride + 1, 0, counts)
        capped = _progression(firsts + 1, below, stride) + (counts - below) * self.cap
        cost: Ints = self.linear * _progression(firsts + 1, counts, stride) + self.capped * capped
        return cost

    def position_with(self, cost: int) -> int:
        """The last position whose token costs at most ``cost``, -1 if none does.

        Where all tokens after the knee cost the same and no more than that: the knee.
        """
        steep = self.linear + self.capped
        if not self.capped or cost <= steep * self.cap:
            return cost // steep - 1
        if not self.linear:
            return self.cap - 1
        return (cost - self.capped * self.cap) // self.linear - 1


def _progression(firsts: Ints, counts: Ints, stride: int) -> Ints:
    return counts * firsts + stride * (counts * (counts - 1) // 2)
