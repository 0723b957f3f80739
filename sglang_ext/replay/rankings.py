"""What orders a leaf-first cache: recency, the future, or the policy of the server."""

from collections.abc import Callable, Iterable
from math import inf
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sglang_ext.cache.conversation import STOP_NAMES, Stop, Turn
from sglang_ext.cache.disk_order import DiskOrder
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival
from sglang_ext.replay.cache import Place
from sglang_ext.replay.disk import DiskCache
from sglang_ext.replay.trace import IntArray, Trace
from sglang_ext.replay.tree import PromptTree, next_uses

__all__ = ["Belady", "Learned", "Rank", "Ranking", "Recency", "block_paths"]

Rank = Callable[[Place, float], tuple[float, float]]
ByRecency = Callable[[], bool] | None

_STOPS = {name: stop for stop, name in STOP_NAMES.items()}


class Ranking(Protocol):
    """One policy's view of a replay; it serves caches of several capacities at once."""

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Before ``request`` is looked up: learn of it; returns leaves whose worth has changed."""

    def finish(self, step: int, now: float) -> Iterable[int]:
        """The answer to the request of ``step`` is complete; returns as `arrive`."""

    def tier(self, capacity_tokens: int) -> tuple[Rank, ByRecency]:
        """Worth of a leaf and until when it holds, and whether recency orders the tier instead."""

    def turn(self, step: int) -> Turn | None:
        """The turn of the request of ``step``."""


class Recency:
    """LRU: the path that was passed longest ago, the deepest block of it first."""

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Nothing to learn."""
        return ()

    def finish(self, step: int, now: float) -> Iterable[int]:
        """Nothing to learn."""
        return ()

    def tier(self, capacity_tokens: int) -> tuple[Rank, ByRecency]:
        """The same for all capacities."""
        return self.rank, None

    def rank(self, place: Place, now: float) -> tuple[float, float]:
        """By the last request through the leaf."""
        return float(place.use.touch), inf

    def turn(self, step: int) -> Turn | None:
        """Nobody asks."""
        return None


class Belady(Recency):
    """Knows the future: the block that is used again last goes first."""

    def __init__(self, tree: PromptTree, order: IntArray) -> None:
        self._tree = tree
        self._uses = next_uses(tree, order)
        self._next = [0] * len(tree)

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Read the next uses of the nodes on the path."""
        path = self._tree.path(self._tree.leaf[request])
        for node, use in zip(path, self._uses[step].tolist(), strict=True):
            self._next[node] = use
        return ()

    def rank(self, place: Place, now: float) -> tuple[float, float]:
        """By the next request through the leaf."""
        return -float(self._next[place.node]), inf


class Learned:
    """The policy of the server, told what the server would tell it.

    Args:
        tree: all prompts.
        trace: the requests.
        order: request of each step.
        policy: learns while it is asked.
    """

    def __init__(self, tree: PromptTree, trace: Trace, order: IntArray, policy: Policy) -> None:
        self.policy = policy
        self.policy.block_tokens = trace.block_tokens
        self._leaf = tree.leaf
        self._ends = [end * trace.block_tokens for end in tree.end]
        self._paths = block_paths(trace)
        self._trace = trace
        self._tokens = trace.input_tokens.tolist()
        self._outputs = trace.output_tokens.tolist()
        self._sessions = trace.session.tolist()
        self._turns: list[Turn | None] = [None] * len(order)
        self._disk: DiskCache | None = None

    def order_disk(
        self, capacity_tokens: int, blocks: int, in_memory: Callable[[int], bool]
    ) -> DiskCache:
        """A third tier that forgets first what the policy names; see `DiskCache`."""
        order = DiskOrder(self.policy, self.policy.guard(capacity_tokens))
        self._disk = DiskCache(self._paths, blocks, order, in_memory)
        return self._disk

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Tell the policy of this request, as the server does: not of less than a block."""
        marks = self._paths[request].tolist()
        if not marks:
            return ()
        session = self._sessions[request]
        arrival = Arrival(
            tokens=self._tokens[request],
            marks=marks,
            session=str(session) if session >= 0 else None,
            agent=self._trace.agent[request],
            model=self._trace.model[request],
        )
        turn, moved = self.policy.arrive(now, arrival)
        turn.place = request
        self._turns[step] = turn
        if self._disk is not None:
            self._disk.changed(moved, now)
        return [self._leaf[other.place] for other in moved if isinstance(other.place, int)]

    def finish(self, step: int, now: float) -> Iterable[int]:
        """Tell the policy of the answer's end."""
        turn = self._turns[step]
        if turn is None or not isinstance(turn.place, int):
            return ()
        stop = _STOPS.get(self._trace.stop[turn.place], Stop.OTHER)
        self.policy.finish(turn, now, stop, self._outputs[turn.place])
        if self._disk is not None:
            self._disk.finished(turn, now)
        return (self._leaf[turn.place],)

    def tier(self, capacity_tokens: int) -> tuple[Rank, ByRecency]:
        """Ask the policy, under the eyes of a guard."""
        return self.rank, self.policy.guard(capacity_tokens).by_recency

    def rank(self, place: Place, now: float) -> tuple[float, float]:
        """Ask the policy."""
        if place.use.turn is None:
            return 0.0, inf
        return self.policy.node_worth(place.use.turn, self._ends[place.node], now)

    def turn(self, step: int) -> Turn | None:
        """As the policy gave it."""
        return self._turns[step]


def block_paths(trace: Trace) -> list[npt.NDArray[np.int32]]:
    """For each request, the numbers of its blocks: equal where prompts share them."""
    first = np.concatenate([[0], np.cumsum(trace.blocks - trace.shared)])
    paths: list[npt.NDArray[np.int32]] = []
    rows = zip(trace.parent.tolist(), trace.shared.tolist(), strict=True)
    for request, (parent, shared) in enumerate(rows):
        new = np.arange(first[request], first[request + 1], dtype=np.int32)
        paths.append(np.concatenate([paths[parent][:shared], new]) if shared else new)
    return paths
