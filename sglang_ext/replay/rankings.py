"""What orders a leaf-first cache: recency, the future, or the policy of the server."""

import heapq
from collections.abc import Iterable
from math import inf
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sglang_ext.cache.conversation import Stop, Turn
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival
from sglang_ext.replay.cache import Place
from sglang_ext.replay.trace import IntArray, Trace
from sglang_ext.replay.tree import PromptTree, next_uses

__all__ = ["Belady", "Learned", "Ranking", "Recency", "block_paths"]

_STOPS = {"tool_use": Stop.TOOL, "end_turn": Stop.END}


class Ranking(Protocol):
    """One policy's view of a replay; it serves caches of several capacities at once."""

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Before ``request`` is looked up: learn of it; returns leaves whose worth has changed."""

    def rank(self, place: Place, now: float) -> tuple[float, float]:
        """Worth of a leaf, and until when it holds; the lowest goes first."""

    def owner(self, step: int) -> object:
        """Who made the request of ``step``: leaves of several are shared."""


class Recency:
    """LRU: the path that was passed longest ago, the deepest block of it first."""

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Nothing to learn."""
        return ()

    def rank(self, place: Place, now: float) -> tuple[float, float]:
        """By the last request through the leaf."""
        return float(place.touch), inf

    def owner(self, step: int) -> object:
        """All are one."""
        return 0


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


class Learned(Recency):
    """The policy of the server, told what the server would tell it.

    Args:
        tree: all prompts.
        trace: the requests.
        order: request of each step.
        policy: learns while it is asked.
        answers_take_time: an answer's length and end are told after the ``a`` seconds it took;
            otherwise at once, as looking up and inserting are at once.
    """

    def __init__(
        self,
        tree: PromptTree,
        trace: Trace,
        order: IntArray,
        policy: Policy,
        *,
        answers_take_time: bool = False,
    ) -> None:
        self.policy = policy
        self._leaf = tree.leaf
        self._paths = block_paths(trace)
        self._trace = trace
        self._tokens = trace.input_tokens.tolist()
        self._outputs = trace.output_tokens.tolist()
        self._sessions = trace.session.tolist()
        self._answers = trace.answer_s.tolist() if answers_take_time else [0.0] * len(trace)
        self._turns: list[Turn | None] = [None] * len(order)
        self._running: list[tuple[float, int, int, Turn]] = []

    def arrive(self, step: int, request: int, now: float) -> Iterable[int]:
        """Tell the policy of the answers that are complete by now, and of this request."""
        changed = self._finish_until(now)
        session = self._sessions[request]
        arrival = Arrival(
            tokens=self._tokens[request],
            marks=self._paths[request].tolist(),
            session=str(session) if session >= 0 else None,
            agent=self._trace.agent[request],
            model=self._trace.model[request],
        )
        turn, moved = self.policy.arrive(now, arrival)
        turn.place = request
        self._turns[step] = turn
        heapq.heappush(self._running, (now + self._answers[request], step, request, turn))
        changed += self._finish_until(now)
        return [self._leaf[place] for place in changed] + [
            self._leaf[other.place] for other in moved if isinstance(other.place, int)
        ]

    def rank(self, place: Place, now: float) -> tuple[float, float]:
        """Ask the policy."""
        turn = self._turns[place.touch]
        return self.policy.worth(turn, now, shared=place.shared) if turn else (-inf, inf)

    def owner(self, step: int) -> object:
        """The session, or the conversation where nobody names one."""
        turn = self._turns[step]
        return turn.conversation.owner if turn else None

    def _finish_until(self, now: float) -> list[int]:
        """Requests whose answers are complete by ``now``."""
        done = []
        while self._running and self._running[0][0] <= now:
            when, _, request, turn = heapq.heappop(self._running)
            stop = _STOPS.get(self._trace.stop[request], Stop.OTHER)
            self.policy.finish(turn, when, stop, self._outputs[request])
            done.append(request)
        return done


def block_paths(trace: Trace) -> list[npt.NDArray[np.int32]]:
    """For each request, the numbers of its blocks: equal where prompts share them."""
    first = np.concatenate([[0], np.cumsum(trace.blocks - trace.shared)])
    paths: list[npt.NDArray[np.int32]] = []
    rows = zip(trace.parent.tolist(), trace.shared.tolist(), strict=True)
    for request, (parent, shared) in enumerate(rows):
        new = np.arange(first[request], first[request + 1], dtype=np.int32)
        paths.append(np.concatenate([paths[parent][:shared], new]) if shared else new)
    return paths
