"""Replays: each policy once over the trace, all capacities at once."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sglang_ext.cache.policy import Policy
from sglang_ext.replay.cache import PrefixCache
from sglang_ext.replay.rankings import Belady, Learned, Ranking, Recency, block_paths
from sglang_ext.replay.rivals import RIVALS
from sglang_ext.replay.trace import IntArray, Trace
from sglang_ext.replay.tree import PromptTree

__all__ = ["POLICIES", "Replay", "Row", "replay"]

POLICIES = ("ext", "lru", *RIVALS, "belady")

# Called with the policy, requests done and requests in all.
OnStep = Callable[[str, int, int], None]
_EVERY = 256


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
    seed: int = 0,
    window_s: float = 0.0,
    block_tokens: int | None = None,
    answers: str = "at-once",
    on_step: OnStep = lambda policy, done, total: None,
) -> Replay:
    """Run ``trace`` through ``policies``.

    Args:
        trace: the requests.
        policies: names out of `POLICIES`.
        capacities: tokens; one row each. Ignored with ``tiers``.
        tiers: tokens that L1, L2, L3 hold beside each other (up to three); one row a policy.
        seed: of the starts of sessions.
        window_s: within which sessions start, where the trace is timed by sessions.
        block_tokens: tokens a block; the trace's own by default.
        answers: ``at-once`` or ``timed``: when a policy is told how an answer ended.
        on_step: called now and then.

    Raises:
        TraceError: ``block_tokens`` does not fit the trace.
    """
    footprint = trace.footprint_tokens
    trace = trace.coarser(block_tokens or trace.block_tokens)
    when = trace.starts(seed, window_s)
    order = np.argsort(when, kind="stable")
    tree = PromptTree.of(trace)
    # Tiers hold disjoint parts, the more worth the higher: a row of nested caches.
    sizes = np.cumsum(tiers).tolist() if tiers else list(capacities)
    blocks = [size // trace.block_tokens for size in sizes]
    rows: list[Row] = []
    for policy in policies:
        step = _progress(policy, len(order), on_step)
        if policy in RIVALS:
            hits = _run_rival(policy, trace, order, blocks, step)
        else:
            ranking = _ranking(policy, tree, trace, order, seed, answers)
            hits = _run(ranking, tree, order, when.tolist(), blocks, step)
        total = max(1, int(trace.blocks.sum()))
        shares = [hit / total for hit in hits]
        rows += _rows(policy, sizes, shares, tiered=bool(tiers))
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
    )


def _rows(policy: str, sizes: list[int], shares: list[float], *, tiered: bool) -> list[Row]:
    if not tiered:
        return [Row(policy, size, hit) for size, hit in zip(sizes, shares, strict=True)]
    parts: list[float | None] = [b - a for a, b in zip([0.0, *shares], shares, strict=False)]
    parts += [None] * (3 - len(parts))
    return [Row(policy, sizes[-1], shares[-1], *parts)]


def _ranking(
    policy: str, tree: PromptTree, trace: Trace, order: IntArray, seed: int, answers: str
) -> Ranking:
    if policy == "belady":
        return Belady(tree, order)
    if policy == "lru":
        return Recency()
    timed = answers == "timed"
    ours = Policy(seed=seed, rank_running=timed)
    return Learned(tree, trace, order, ours, answers_take_time=timed)


def _run(
    ranking: Ranking,
    tree: PromptTree,
    order: IntArray,
    when: list[float],
    blocks: list[int],
    on_step: Callable[[int], None],
) -> list[int]:
    """Hit blocks at each capacity."""
    caches = [PrefixCache(tree, size, ranking.rank, ranking.owner) for size in blocks]
    for step, request in enumerate(order.tolist()):
        now = when[request]
        changed = ranking.arrive(step, request, now)
        leaf = tree.leaf[request]
        for cache in caches:
            for other in changed:
                cache.reconsider(other, now)
            if leaf >= 0:
                cache.access(leaf, step, now)
        on_step(step + 1)
    return [cache.hit for cache in caches]


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
