"""Wrong and hostile hints cost no more than LRU would.

Sizes run from a few conversations to nearly all: at the last nothing can be gained, only lost.
"""

import numpy as np
import pytest
from support.traces import agents

from sglang_ext.cache.policy import Policy, PolicyLimits
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.settings import TreeSettings
from sglang_ext.replay.cache import PrefixCache
from sglang_ext.replay.rankings import Learned, Recency
from sglang_ext.replay.tree import PromptTree

SIZES = (0.03, 0.05, 0.1, 0.2)


class Lying(Policy):
    """A policy whose clients say ``lie(arrival, rng)``, and now and then advise at random."""

    def __init__(self, lie, advice=True, pin_tokens=0):
        super().__init__(limits=PolicyLimits(pin_tokens=pin_tokens))
        self._lie, self._advice = lie, advice
        self._random = np.random.default_rng(7)

    def arrive(self, now, arrival):
        told = self._lie(arrival, self._random)
        turn, changed = super().arrive(now, told)
        if self._advice and told.session is not None and self._random.random() < 0.3:
            say = self._random.integers(3)
            if say == 0:
                changed += self.end(told.session, now)
            elif say == 1:
                changed += self.announce(told.session, now, self._random.uniform(0, 1e4))
            else:
                changed += self.pin(told.session, now, 1e9)
        return turn, changed


class Pinning(Lying):
    """A policy whose clients pin whatever comes."""

    granted = 0

    def arrive(self, now, arrival):
        turn, changed = Policy.arrive(self, now, arrival)
        if arrival.session is not None and self._random.random() < 0.3:
            pinned = self.pin(arrival.session, now, 3600.0)
            self.granted += bool(pinned)
            changed += pinned
        return turn, changed


def hits(trace, make, sizes=SIZES):
    tree = PromptTree.of(trace)
    ranking = make(tree)
    caches = [
        PrefixCache(tree, tokens // 64, ranking.tier(tokens), ranking.owner)
        for tokens in (int(trace.footprint_tokens * size) for size in sizes)
    ]
    for step, now in enumerate(trace.time_s.tolist()):
        changed = [*ranking.arrive(step, step, now), *ranking.finish(step, now)]
        for cache in caches:
            for leaf in changed:
                cache.reconsider(leaf, now)
            cache.access(tree.leaf[step], step, now)
    return np.array([cache.hit for cache in caches]) / trace.blocks.sum()


def told(arrival, **changes):
    values = {name: getattr(arrival, name) for name in Arrival.__slots__}
    return Arrival(**{**values, **changes})


LIES = {
    "one name for all": lambda a, rng: told(a, session="everybody"),
    "a new name each time": lambda a, rng: told(a, session=str(rng.integers(2**60))),
    "names of others": lambda a, rng: told(a, session=str(rng.integers(60))),
    "agents at random": lambda a, rng: told(a, agent=bool(rng.integers(2))),
    "models at random": lambda a, rng: told(a, model=str(rng.integers(100))),
    "half of them lie": lambda a, rng: (
        told(a, session=str(rng.integers(60)), agent=True) if rng.random() < 0.5 else a
    ),
}


@pytest.fixture(scope="module")
def trace():
    return agents(sessions=150, turns=40, spread_s=8000.0)


@pytest.fixture(scope="module")
def lru(trace):
    return hits(trace, lambda tree: Recency())


def learned(trace, policy, sizes=SIZES):
    order = np.arange(len(trace))
    return hits(trace, lambda tree: Learned(tree, trace, order, policy), sizes)


def test_without_lies_the_policy_beats_recency(trace, lru):
    assert (learned(trace, Policy()) - lru).mean() > 0.02


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_costs_no_more_than_recency(trace, lru, lie):
    difference = learned(trace, Lying(lie)) - lru
    assert difference.min() > -0.003
    assert difference.mean() > 0.0


@pytest.mark.parametrize(("place", "size"), list(enumerate(SIZES)))
def test_hostile_pins_cost_no_more_than_recency(trace, lru, place, size):
    budget = int(trace.footprint_tokens * size * TreeSettings().pin_share)
    policy = Pinning(lambda arrival, rng: arrival, pin_tokens=budget)
    (hit,) = learned(trace, policy, (size,))
    assert hit - lru[place] > -0.003
    assert policy.granted or budget < 40_000
