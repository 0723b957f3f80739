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
    first.trusted, first.lead_tokens = True, 10_000.0
    again = Policy()
    early = again.guard(1000)
    again.load(policy.save(), 0.0)
    late = again.guard(2000)
    assert (early.trusted, early.lead_tokens) == (True, 500.0)
    assert late.state() == second.state()
    assert not again.guard(3000).trusted


def test_a_lead_of_other_traffic_is_lost_in_a_few_hundred_requests():
    before = Guard(1000)
    hear(before, 4000, 100.0)
    after = Guard(1000)
    after.load([before.state()])
    assert after.trusted, "a restart keeps the verdict"
    for guard, bound in ((after, 500), (before, 5000)):
        lost = 0
        while guard.trusted:
            guard.hear(25.0, 0.0)
            lost += 1
        assert lost < bound
    assert lost > 2000, "which is what a lead that was not cut would take"


def test_a_lead_of_two_requests_can_lose_no_more_than_it_was():
    guard = Guard(1000)
    guard.hear(0.0, 100.0)
    assert not guard.trusted
    guard.hear(0.0, 100.0)
    assert guard.trusted
    lost = 0
    while guard.trusted:
        guard.hear(100.0, 0.0)
        lost += 1
    assert lost == 2
    for _ in range(2):  # what is earned again must outdo all that went before
        guard.hear(0.0, 100.0)
        assert not guard.trusted


def test_a_state_that_is_loaded_leaves_nothing_of_what_was_there():
    policy = Policy()
    guard = policy.guard(4)
    running, _ = policy.arrive(0.0, Arrival(3, [1, 2, 3]))
    for now in range(3):
        turn, _ = policy.arrive(float(now), Arrival(2, [10 * now + 10, 10 * now + 11]))
        policy.finish(turn, now + 0.5, 0, 5)
    policy.load(Policy().save(), 5.0)
    assert len(policy._shadow) == 0
    policy._shadow.check_integrity()
    policy.finish(running, 6.0, 0, 5)
    heard = []
    guard.hear = lambda *tokens: heard.append(tokens)
    for now in (7.0, 8.0):
        turn, _ = policy.arrive(now, Arrival(3, [1, 2, 3]))
        policy.finish(turn, now + 0.5, 0, 5)
    assert heard == [(0, 0), (3, 3)]
    policy._shadow.check_integrity()


def test_capacities_that_a_restart_rounds_otherwise_are_the_same():
    policy = Policy()
    for capacity, lead in ((1000, 500.0), (1100, 700.0)):
        guard = policy.guard(capacity)
        guard.trusted, guard.lead_tokens = True, 20.0 * lead
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
