"""A guard notices when recency would serve a tier better, and when it no longer would."""

from math import inf

import numpy as np

from sglang_ext.cache import guard as module
from sglang_ext.cache.conversation import Conversation, Stop
from sglang_ext.cache.guard import Guard
from sglang_ext.cache.policy import STALE, Policy
from sglang_ext.cache.sessions import Arrival


class Load:
    """Twenty conversations of 100 tokens: the first four come every other time, others in turn."""

    def __init__(self, capacity, rank):
        self.guard = Guard(capacity, rank)
        self.conversations = [Conversation(number, None, False, 0) for number in range(20)]
        self.others = self.conversations[4:]
        self.now = 0.0
        self.rng = np.random.default_rng(3)

    def run(self, count):
        for _ in range(count):
            if self.rng.random() < 0.5:
                one = self.conversations[int(self.rng.integers(4))]
            else:
                one = self.others.pop(0)
                self.others.append(one)
            self.now += 1.0
            one.arrive(self.now, 100)
            self.guard.arrive(one)
            one.finish(self.now, Stop.TOOL, 10)
            self.guard.finish(one, self.now)
            for held in (self.guard._recent, self.guard._learned):
                assert sum(held.values()) <= self.guard.capacity_tokens
                assert all(tokens > 0 for tokens in held.values())


def test_an_order_that_is_worse_than_recency_is_dropped_and_taken_back():
    good = False

    def rank(conversation, now):
        often = conversation.number < 4
        return (float(often) if good else -float(often)), now + 1.0

    load = Load(450, rank)
    assert not load.guard.trusted, "recency comes first"
    load.run(200)
    assert not load.guard.trusted
    assert load.guard.lead_tokens < 0.0
    good = True
    load.run(20_000)
    assert load.guard.trusted
    good = False
    load.run(20_000)
    assert not load.guard.trusted


def test_an_order_that_is_no_better_is_not_needed():
    load = Load(450, lambda conversation, now: (conversation.arrived_s, inf))
    load.run(2000)
    assert not load.guard.trusted
    assert load.guard.lead_tokens == 0.0


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


def test_what_runs_takes_no_room():
    guard = Guard(150, lambda conversation, now: (0.0, inf))
    first, second = (Conversation(number, None, False, 0) for number in range(2))
    for one in (first, second):
        one.arrive(0.0, 100)
        guard.arrive(one)
        guard.finish(one, 0.0)
    first.arrive(1.0, 120)
    guard.arrive(first)
    assert list(guard._recent.items()) == [(second, 100)]
    guard.finish(first, 2.0)
    assert list(guard._recent.items()) == [(second, 30), (first, 120)]


def test_a_capacity_of_nothing_holds_nothing():
    load = Load(0, lambda conversation, now: (0.0, inf))
    load.run(50)
    assert load.guard.lead_tokens == 0.0


def test_a_tier_whose_guard_does_not_trust_is_ranked_by_age():
    policy = Policy()
    guard = policy.guard(1000)
    now = 0.0
    turns = []
    for number in range(200):
        now += 1.0
        marks = [number % 40 * 100 + 1, number % 40 * 100 + 2]
        turn, _ = policy.arrive(now, Arrival(tokens=100, marks=marks, session=str(number % 50)))
        stop = Stop.END if number % 2 else Stop.TOOL
        policy.finish(turn, now, stop, 10)
        turns.append(turn)
    assert policy.model.steps
    guard.trusted = True
    left = turns[0]
    assert policy.worth(left, now, guard=guard)[0] == STALE
    assert policy.worth(left, now)[1] == inf
    assert now < policy.worth(left, now, guard=guard)[1] < inf, "the guard may change its mind"
    guard.trusted = False
    worths = [policy.worth(turn, now, guard=guard)[0] for turn in turns]
    assert worths == sorted(worths)
    assert worths[0] > 0.0
    assert all(now < policy.worth(turn, now, guard=guard)[1] < inf for turn in turns)


def test_small_prompts_do_not_make_it_grow(monkeypatch):
    monkeypatch.setattr(module, "_MOST", 50)
    policy = Policy()
    guard = policy.guard(10**6)
    for number in range(200):
        turn, _ = policy.arrive(float(number), Arrival(20, [number], None))
        policy.finish(turn, number + 0.5, Stop.END, 5)
    assert len(guard._recent) == len(guard._learned) == len(guard._order) == 50
    tokens = sum(conversation.tokens for conversation in guard._recent)
    assert guard._over == [tokens - 10**6] * 2
