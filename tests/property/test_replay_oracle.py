"""Leaf-first caches against a dictionary of blocks, and the policy's tree after each step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.traces import agents, made

from sglang_ext.cache.policy import Policy
from sglang_ext.replay.cache import PrefixCache
from sglang_ext.replay.rankings import Belady, Learned, Recency, block_paths
from sglang_ext.replay.rivals import RIVALS
from sglang_ext.replay.tree import PromptTree


@st.composite
def traces(draw, most=30):
    parent, shared, blocks = [], [], []
    for request in range(draw(st.integers(1, most))):
        above = draw(st.integers(max(-1, request - 6), request - 1))
        common = draw(st.integers(0, blocks[above])) if above >= 0 else 0
        parent.append(above)
        shared.append(common)
        blocks.append(common + draw(st.integers(0, 4)))
    return made(parent, shared, blocks)


class Oracle:
    """One dictionary: block -> what it is ordered by; the lowest leaf goes first."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.held = {}
        self.above = {}

    def access(self, path, rank):
        hits = 0
        while hits < len(path) and path[hits] in self.held:
            hits += 1
        for depth, block in enumerate(path):
            self.above[block] = path[depth - 1] if depth else None
            self.held[block] = rank(depth, block)
        while len(self.held) > self.capacity:
            parents = {self.above[block] for block in self.held}
            leaves = [block for block in self.held if block not in parents]
            del self.held[min(leaves, key=self.held.__getitem__)]
        assert all(self.above[b] is None or self.above[b] in self.held for b in self.held)
        return hits


@given(traces(), st.integers(0, 25))
def test_recency_equals_a_dictionary(trace, capacity):
    tree = PromptTree.of(trace)
    ranking, oracle = Recency(), Oracle(capacity)
    cache = PrefixCache(tree, capacity, ranking.rank)
    for step, path in enumerate(block_paths(trace)):
        before = cache.hit
        if tree.leaf[step] >= 0:
            cache.access(tree.leaf[step], step, float(step))
        expected = oracle.access(path.tolist(), lambda depth, _, step=step: (step, -depth))
        assert cache.hit - before == expected
        assert cache.used == len(oracle.held)
        cache.check_integrity()


@given(traces(), st.integers(0, 25))
def test_belady_equals_a_dictionary(trace, capacity):
    tree = PromptTree.of(trace)
    order = np.arange(len(trace))
    ranking, oracle = Belady(tree, order), Oracle(capacity)
    cache = PrefixCache(tree, capacity, ranking.rank)
    paths = [path.tolist() for path in block_paths(trace)]
    total = 0
    for step, path in enumerate(paths):

        def rank(depth, block, step=step):
            later = (s for s in range(step + 1, len(paths)) if block in paths[s])
            return (-next(later, len(paths)), step, -depth)

        ranking.arrive(step, step, float(step))
        if tree.leaf[step] >= 0:
            cache.access(tree.leaf[step], step, float(step))
        total += oracle.access(path, rank)
        cache.check_integrity()
    assert cache.hit == total


@given(traces(), st.integers(0, 25), st.lists(st.floats(0, 500), min_size=30, max_size=30))
def test_a_cold_policy_equals_recency(trace, capacity, gaps):
    tree = PromptTree.of(trace)
    order = np.arange(len(trace))
    when = np.cumsum(gaps).tolist()
    policy = Policy()
    cold = Learned(tree, trace, order, policy)
    ours = PrefixCache(tree, capacity, cold.rank, cold.owner)
    lru = PrefixCache(tree, capacity, Recency().rank)
    for step in range(len(trace)):
        for other in (*cold.arrive(step, step, when[step]), *cold.finish(step, when[step])):
            ours.reconsider(other, when[step])
        if tree.leaf[step] >= 0:
            ours.access(tree.leaf[step], step, when[step])
            lru.access(tree.leaf[step], step, when[step])
        assert ours.resident == lru.resident
        ours.check_integrity()
    assert policy.model.steps == 0


@given(traces(), st.integers(0, 25), st.lists(st.integers(0, 4), min_size=30, max_size=30))
def test_what_is_held_stays_and_takes_no_room(trace, capacity, answers):
    tree = PromptTree.of(trace)
    cache = PrefixCache(tree, capacity, Recency().rank)
    running = []
    for step in range(len(trace)):
        for until, leaf in [one for one in running if one[0] <= step]:
            running.remove((until, leaf))
            cache.release(leaf, float(step))
            cache.check_integrity()
        leaf = tree.leaf[step]
        if leaf >= 0:
            cache.access(leaf, step, float(step), hold=True)
            running.append((step + answers[step], leaf))
        cache.check_integrity()
        for _, held in running:
            assert all(cache.resident[x] == tree.end[x] - tree.begin[x] for x in tree.path(held))
    for _, leaf in running:
        cache.release(leaf, 1e3)
    cache.check_integrity()
    assert cache.used <= capacity


@pytest.mark.parametrize("share", [0.02, 0.1, 0.4])
def test_a_learned_policy_stays_prefix_closed(share):
    trace = agents()
    tree = PromptTree.of(trace)
    order = np.arange(len(trace))
    ranking = Learned(tree, trace, order, Policy())
    sizes = [int(trace.footprint_tokens * part / 64) for part in (share, share * 2, share * 4)]
    tiers = [PrefixCache(tree, size, ranking.tier(size), ranking.owner) for size in sizes]
    for step, now in enumerate(trace.time_s.tolist()):
        changed = [*ranking.arrive(step, step, now), *ranking.finish(step, now)]
        for tier in tiers:
            for leaf in changed:
                tier.reconsider(leaf, now)
            tier.access(tree.leaf[step], step, now)
            if step % 7 == 0:
                tier.check_integrity()
    assert ranking.policy.model.steps > 10
    assert [tier.hit for tier in tiers] == sorted(tier.hit for tier in tiers)


@given(traces(), st.integers(1, 25), st.sampled_from(sorted(RIVALS)))
def test_rivals_keep_prefixes_and_capacity(trace, capacity, name):
    paths = block_paths(trace)
    depth = np.zeros(int((trace.blocks - trace.shared).sum()), dtype=np.int64)
    for path in paths:
        depth[path] = np.arange(len(path))
    cache = RIVALS[name](depth, capacity)
    for path in paths:
        before = cache.queue >= 0
        hits = cache.access(path)
        assert before[path[:hits]].all()
        assert hits == len(path) or not before[path[hits]]
        resident = cache.queue >= 0
        assert cache.used == resident.sum() == sum(cache.size) <= capacity
        children = np.zeros(len(depth), dtype=int)
        for block in np.flatnonzero(resident):
            if cache.above[block] >= 0:
                assert resident[cache.above[block]]
                children[cache.above[block]] += 1
        assert (children[resident] == cache.children[resident]).all()
