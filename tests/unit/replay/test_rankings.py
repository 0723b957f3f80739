"""What a policy is told in a replay, and when."""

import dataclasses

import numpy as np
from support.traces import agents, made

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.policy import Policy
from sglang_ext.replay.rankings import Learned, block_paths
from sglang_ext.replay.run import _Run
from sglang_ext.replay.tree import PromptTree


def test_blocks_are_numbered_as_they_are_shared():
    paths = block_paths(made([-1, 0, 0], [0, 2, 1], [3, 4, 2]))
    assert [path.tolist() for path in paths] == [[0, 1, 2], [0, 1, 3, 4], [0, 5]]


class Spy(Policy):
    def __init__(self):
        super().__init__()
        self.told = []

    def arrive(self, now, arrival):
        self.told.append(("arrive", now, arrival.session, arrival.tokens))
        return super().arrive(now, arrival)

    def finish(self, turn, now, stop, output_tokens):
        self.told.append(("finish", now, stop, output_tokens))
        super().finish(turn, now, stop, output_tokens)


def run(trace, ranking, **given):
    tree = PromptTree.of(trace)
    steps = _Run(ranking, tree, np.arange(len(trace)), [100], 1, **given)
    for step, now in enumerate(trace.time_s.tolist()):
        steps.step(step, now)
    return steps


def told(**given):
    trace = made(
        [-1, 0, -1], [0, 2, 0], [2, 3, 1], time_s=[0, 10, 11], session=[0, 0, -1],
        stop=["tool_use", "end_turn", "max_tokens"],
    )  # fmt: skip
    spy = Spy()
    run(trace, Learned(PromptTree.of(trace), trace, np.arange(3), spy), **given)
    return spy.told


def test_answers_at_once():
    assert told() == [
        ("arrive", 0.0, "0", 2),
        ("finish", 0.0, Stop.TOOL, 100),
        ("arrive", 10.0, "0", 3),
        ("finish", 10.0, Stop.END, 100),
        ("arrive", 11.0, None, 1),
        ("finish", 11.0, Stop.OTHER, 100),
    ]


def test_answers_that_take_time():
    assert [event[:2] for event in told(answer_s=[4.0, 0.5, 0.0])] == [
        ("arrive", 0.0),
        ("finish", 4.0),
        ("arrive", 10.0),
        ("finish", 10.5),
        ("arrive", 11.0),
    ]


def test_what_has_changed_is_ranked_anew():
    trace = made([-1, 0], [0, 2], [2, 3], session=[0, 0])
    ranking = Learned(PromptTree.of(trace), trace, np.arange(2), Policy())
    leaves = PromptTree.of(trace).leaf
    assert list(ranking.arrive(0, 0, 0.0)) == []
    assert list(ranking.finish(0, 1.0)) == [leaves[0]]
    assert list(ranking.arrive(1, 1, 2.0)) == [leaves[0]]


def test_a_guarded_tier_asks_under_the_eyes_of_its_guard():
    trace = agents(sessions=5)
    ranking = Learned(PromptTree.of(trace), trace, np.arange(len(trace)), Policy())
    _, by_recency = ranking.tier(1000)
    assert by_recency()
    ((guard, *_),) = ranking.policy._guards
    assert guard.capacity_tokens == 1000
    guard.trusted = True
    assert not by_recency()


def test_conversations_of_agents_are_found_without_names():
    trace = agents(sessions=20)
    names = dataclasses.replace(trace, session=np.full(len(trace), -1))
    for one in (trace, names):
        policy = Policy()
        ranking = Learned(PromptTree.of(one), one, np.arange(len(one)), policy)
        for step, now in enumerate(one.time_s.tolist()):
            ranking.arrive(step, step, now)
            ranking.finish(step, now)
        assert len(policy.sessions) == 20
        assert policy.model.closed == len(one) - 20


def test_prompts_below_a_block_are_told_to_nobody_as_in_the_server():
    trace = made([-1, -1, 0], [0, 0, 2], [2, 0, 3], time_s=[0, 1, 2], session=[0, 0, 0])
    for given in ({}, {"answer_s": [0.5] * 3, "answers": "pooled"}):
        spy = Spy()
        steps = run(trace, Learned(PromptTree.of(trace), trace, np.arange(3), spy), **given)
        assert [row[1] for row in spy.told if row[0] == "arrive"] == [0.0, 2.0]
        assert steps.caches[0].hit == 2
