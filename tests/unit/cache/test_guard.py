"""A guard notices when recency would serve a tier better, and when it no longer would."""

import numpy as np

from sglang_ext.cache.guard import Guard
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.ranks import Learned
from sglang_ext.cache.sessions import Arrival


def hear(guard, requests, lead, noise=10.0):
    rng = np.random.default_rng(3)
    for _ in range(requests):
        guard.hear(100.0, 100.0 + lead + noise * rng.standard_normal())


def test_an_order_that_is_worse_than_recency_is_dropped_and_taken_back():
    guard = Guard(1000)
    assert guard.by_recency(), "recency comes first"
    hear(guard, 300, -3.0)
    assert not guard.trusted
    assert guard.lead_tokens < 0.0
    hear(guard, 3000, 3.0)
    assert guard.trusted
    assert not guard.by_recency()
    hear(guard, 3000, -3.0)
    assert not guard.trusted


def test_an_order_that_is_no_better_is_not_needed():
    guard = Guard(1000)
    hear(guard, 2000, 0.0, noise=0.0)
    assert not guard.trusted
    assert guard.lead_tokens == 0.0


def test_a_restart_keeps_what_was_found_of_a_tier():
    policy = Policy()
    first, second = policy.guard(1000), policy.guard(2000)
    first.trusted, first.lead_tokens = True, 500.0
    again = Policy()
    early = again.guard(1000)
    again.load(policy.save(), 0.0)
    late = again.guard(2000)
    assert (early.trusted, early.lead_tokens) == (True, 500.0)
    assert late.state() == second.state()
    assert not again.guard(3000).trusted


def test_capacities_that_a_restart_rounds_otherwise_are_the_same():
    policy = Policy()
    for capacity, lead in ((1000, 500.0), (1100, 700.0)):
        guard = policy.guard(capacity)
        guard.trusted, guard.lead_tokens = True, lead
    again = Policy()
    again.load(policy.save(), 0.0)
    assert [again.guard(size).lead_tokens for size in (1016, 1090, 1100)] == [500.0, 700.0, 700.0]
    assert not again.guard(940).trusted


def test_a_guard_hears_what_each_order_would_have_kept():
    policy = Policy(block_tokens=100)
    guard = policy.guard(200)
    rank = Learned(policy, guard)
    heard = []
    guard.hear = lambda *tokens: heard.append(tokens)
    for now, marks in enumerate(([1, 2], [3], [1, 2, 4], [3])):
        turn, _ = policy.arrive(float(now), Arrival(100 * len(marks), marks))
        policy.finish(turn, now + 0.5, 0, 5)
    # Two blocks: of the first prompt one is left after the second, of the third two.
    assert heard == [(0, 0), (0, 0), (100, 100), (0, 0)]
    assert rank.by_recency()
