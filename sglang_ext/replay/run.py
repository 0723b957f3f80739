"""Replays: each policy once over the trace, all capacities at once."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sglang_ext.cache.policy import Policy
from sglang_ext.replay.cache import PrefixCache
from sglang_ext.replay.disk import DiskCache
from sglang_ext.replay.rankings import Belady, Learned, Ranking, Recency, block_paths
from sglang_ext.replay.rivals import RIVALS
from sglang_ext.replay.trace import IntArray, Trace
from sglang_ext.replay.tree import PromptTree

__all__ = ["ANSWERS", "HOLDING", "POLICIES", "Replay", "Row", "replay"]

POLICIES = ("ext", "lru", *RIVALS, "belady")
# When a policy is told how an answer ended; what runs is held with the latter two.
ANSWERS = ("at-once", "late", "held", "pooled")
HOLDING = ("held", "pooled")

# Called with the policy, requests done and requests in all.
OnStep = Callable[[str, int, int], None]
_EVERY = 256
# Which tier is a disk.
_DISK = 3


@dataclass(frozen=True)
class Row:
    """One policy at one capacity; hits as shares of input blocks."""

    policy: str
    capacity_tokens: int
    hit: float
    l1_hit: float | None = None
    l2_hit: float | None = None
    l3_hit: float | None = None


@dataclass(frozen=True)
class Replay:
    """What a replay found; `as_json` is the command's interface."""

    trace: str
    seed: int
    window_s: float
    block_tokens: int
    ideal_hit: float
    footprint_tokens: int
    requests: int
    answers: str
    rows: tuple[Row, ...]
    inclusive: bool = False

    def as_json(self) -> dict[str, Any]:
        """Fields as documented in docs/replay.md."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}

    def of(self, policy: str) -> list[Row]:
        """The rows of one policy, in the order of capacities."""
        return [row for row in self.rows if row.policy == policy]


def replay(
    trace: Trace,
    policies: Sequence[str],
    capacities: Sequence[int],
    *,
    tiers: Sequence[int] = (),
    inclusive: bool = False,
    seed: int = 0,
    window_s: float = 0.0,
    block_tokens: int | None = None,
    answers: str = "at-once",
    policy: Policy | None = None,
    on_step: OnStep = lambda policy, done, total: None,
) -> Replay:
    """Run ``trace`` through ``policies``.

    Args:
        trace: the requests.
        policies: names out of `POLICIES`.
        capacities: tokens; one row each. Ignored with ``tiers``.
        tiers: tokens that L1, L2, L3 hold (up to three); one row a policy.
        inclusive: each tier also holds what those above it hold, as in a server that writes
            through, and the third is a disk (`DiskCache`); otherwise they hold disjoint parts.
        seed: of the starts of sessions.
        window_s: within which sessions start, where the trace is timed by sessions.
        block_tokens: tokens a block; the trace's own by default.
        answers: out of `ANSWERS`. A request is one instant, the end of its answer too
            (``at-once``); or the policy is told of that end when the answer is complete, and what
            runs is cut like the rest (``late``); or is held until then, beside the capacity
            (``held``) or within it (``pooled``, as in SGLang).
        policy: what ``ext`` has learned already; it goes on learning. Default: nothing.
        on_step: called now and then.

    Raises:
        TraceError: ``block_tokens`` does not fit the trace.
        ValueError: a rival with ``held`` or ``pooled``.
    """
    untimed = [name for name in policies if name in RIVALS]
    if answers in HOLDING and untimed:
        raise ValueError(f"{', '.join(untimed)}: cannot hold what runs")
    footprint = trace.footprint_tokens
    trace = trace.coarser(block_tokens or trace.block_tokens)
    when = trace.starts(seed, window_s)
    order = np.argsort(when, kind="stable")
    times = when.tolist()
    tree = PromptTree.of(trace)
    # The more worth the higher: a row of nested caches.
    nest = np.maximum.accumulate if inclusive else np.cumsum
    sizes = nest(tiers).tolist() if tiers else list(capacities)
    blocks = [size // trace.block_tokens for size in sizes]
    rows: list[Row] = []
    for name in policies:
        step = _progress(name, len(order), on_step)
        if name in RIVALS:
            hits = _run_rival(name, trace, order, blocks, step)
        else:
            learned = policy or Policy(seed=seed)
            learned.rank_running = answers == "late"
            ranking = _ranking(name, tree, trace, order, learned)
            takes = None if answers == "at-once" else trace.answer_s.tolist()
            on_disk = inclusive and len(tiers) == _DISK and name != "belady"
            run = _Run(
                ranking,
                tree,
                order,
                blocks[: _DISK - 1 if on_disk else None],
                trace.block_tokens,
                takes,
                answers,
            )
            if on_disk:
                run.disk = _disk(run, ranking, trace, sizes[-1], blocks[-1])
            for place, request in enumerate(order.tolist()):
                run.step(place, times[request])
                step(place + 1)
            if inclusive and tiers:
                hits = run.served[: len(tiers)]
            else:
                hits = [cache.hit for cache in run.caches]
        total = max(1, int(trace.blocks.sum()))
        shares = [hit / total for hit in hits]
        rows += _rows(name, sizes, shares, tiered=bool(tiers))
    return Replay(
        trace=trace.name,
        seed=seed,
        window_s=window_s,
        block_tokens=trace.block_tokens,
        ideal_hit=trace.ideal_hit,
        footprint_tokens=footprint,
        requests=len(trace),
        answers=answers,
        rows=tuple(rows),
        inclusive=inclusive,
    )


def _rows(policy: str, sizes: list[int], shares: list[float], *, tiered: bool) -> list[Row]:
    if not tiered:
        return [Row(policy, size, hit) for size, hit in zip(sizes, shares, strict=True)]
    parts: list[float | None] = [b - a for a, b in zip([0.0, *shares], shares, strict=False)]
    parts += [None] * (3 - len(parts))
    return [Row(policy, sizes[-1], shares[-1], *parts)]


def _ranking(name: str, tree: PromptTree, trace: Trace, order: IntArray, policy: Policy) -> Ranking:
    if name == "belady":
        return Belady(tree, order)
    if name == "lru":
        return Recency()
    return Learned(tree, trace, order, policy)


class _Run:
    """One policy's caches on their way over the trace.

    Args:
        ranking: the policy.
        tree: all prompts.
        order: request of each step.
        blocks: capacities.
        block_tokens: tokens a block.
        answer_s: seconds that each answer takes; None: none.
        answers: out of `ANSWERS`.

    Attributes:
        caches: one a capacity.
        served: blocks that each cache or one before it had, request by request; the disk last.
        disk: the third tier of a server; None: it is a cache like the others.
    """

    def __init__(
        self,
        ranking: Ranking,
        tree: PromptTree,
        order: IntArray,
        blocks: list[int],
        block_tokens: int,
        answer_s: list[float] | None = None,
        answers: str = ANSWERS[0],
    ) -> None:
        self._ranking = ranking
        self._leaf = tree.leaf
        self._order = order.tolist()
        self._answer_s = answer_s
        self._hold = answers in HOLDING
        self._running: list[tuple[float, int]] = []
        self.caches = [
            PrefixCache(
                tree,
                size,
                *ranking.tier(size * block_tokens),
                ranking.turn,
                beside=answers == "held",
            )
            for size in blocks
        ]
        self.served = [0] * (len(blocks) + 1)
        self.disk: DiskCache | None = None

    def in_memory(self, request: int) -> bool:
        """Whether the end of a request's path is in one of the caches."""
        leaf = self._leaf[request]
        return leaf >= 0 and any(cache.holds(leaf) for cache in self.caches)

    def step(self, step: int, now: float) -> None:
        """The next request is here."""
        while self._running and self._running[0][0] <= now:
            self._complete(*heapq.heappop(self._running))
        request = self._order[step]
        self._reconsider(self._ranking.arrive(step, request, now), now)
        if self._answer_s is None:
            self._reconsider(self._ranking.finish(step, now), now)
        else:
            heapq.heappush(self._running, (now + self._answer_s[request], step))
        if self._leaf[request] >= 0:
            most = 0
            for place, cache in enumerate(self.caches):
                before = cache.hit
                cache.access(self._leaf[request], step, now, hold=self._hold)
                most = max(most, cache.hit - before)
                self.served[place] += most
            if self.disk is not None:
                self.served[-1] += max(most, self.disk.access(request, most, now))

    def _complete(self, when: float, step: int) -> None:
        self._reconsider(self._ranking.finish(step, when), when)
        leaf = self._leaf[self._order[step]]
        if self._hold and leaf >= 0:
            for cache in self.caches:
                cache.release(leaf, when)

    def _reconsider(self, leaves: Iterable[int], now: float) -> None:
        for leaf in leaves:
            for cache in self.caches:
                cache.reconsider(leaf, now)


def _disk(run: _Run, ranking: Ranking, trace: Trace, tokens: int, blocks: int) -> DiskCache:
    """The third tier of a server that orders it by the policy, or by use."""
    if isinstance(ranking, Learned):
        return ranking.order_disk(tokens, blocks, run.in_memory)
    return DiskCache(block_paths(trace), blocks)


def _run_rival(
    name: str, trace: Trace, order: IntArray, blocks: list[int], on_step: Callable[[int], None]
) -> list[int]:
    """Hit blocks at each capacity."""
    paths = block_paths(trace)
    depth = np.zeros(int((trace.blocks - trace.shared).sum()), dtype=np.int64)
    for path in paths:
        depth[path] = np.arange(len(path))
    caches = [RIVALS[name](depth, size) for size in blocks]
    hits = [0] * len(caches)
    for step, request in enumerate(order.tolist()):
        for place, cache in enumerate(caches):
            hits[place] += cache.access(paths[request])
        on_step(step + 1)
    return hits


def _progress(policy: str, total: int, on_step: OnStep) -> Callable[[int], None]:
    def step(done: int) -> None:
        if done % _EVERY == 0 or done == total:
            on_step(policy, done, total)

    return step
