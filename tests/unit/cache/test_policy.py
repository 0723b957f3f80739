"""The policy: what holding a node is worth, advice, pins, restarts."""

from math import inf

import numpy as np
import pytest

from sglang_ext.cache import conversation as conversation_module
from sglang_ext.cache import state as state_module
from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.policy import STALE, Policy, PolicyLimits
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.state import from_bytes, to_bytes
from sglang_ext.errors import DamagedStateError, StateBoundsError, StateFormError


def come(policy, now, marks, stop=Stop.TOOL, output=50, **hints):
    arrival = Arrival(tokens=100 * len(marks), marks=marks, **hints)
    turn, changed = policy.arrive(now, arrival)
    policy.finish(turn, now, stop, output)
    return turn, changed


def live(policy, count=1200, seed=0, advise=None, quits=0.0):
    """Sessions that come back 5 s after tool calls, and never after a finished turn.

    ``quits`` of them do not come back after a tool call either; ``advise`` knows which.
    """
    rng = np.random.default_rng(seed)
    now, coming, fresh = 0.0, [], 1000
    for _ in range(count):
        now += 1.0
        if coming and coming[0][0] <= now:
            _, session, marks = coming.pop(0)
        else:
            fresh += 1000
            session, marks = f"s{fresh}", [fresh, fresh + 1]
        marks = [*marks, marks[-1] + 1]
        stop = Stop.TOOL if rng.random() < 0.6 else Stop.END
        come(policy, now, marks, stop, session=session)
        quit_here = rng.random() < quits
        if advise is not None:
            advise(policy, session, now, quit_here)
        if stop == Stop.TOOL and not quit_here:
            coming.append((now + 5.0, session, marks))
            coming.sort()
    return now


def test_running_requests_are_held():
    policy = Policy()
    turn, _ = policy.arrive(0.0, Arrival(tokens=300, marks=[1, 2, 3]))
    assert policy.worth(turn, 5.0) == (inf, inf)
    policy.finish(turn, 6.0, Stop.TOOL, 10)
    worth, until = policy.worth(turn, 6.0)
    assert 0.0 < worth < inf
    assert until == 7.0
    judged = Policy(rank_running=True)
    turn, _ = judged.arrive(0.0, Arrival(tokens=300, marks=[1, 2, 3]))
    assert judged.worth(turn, 0.0)[0] < inf


def test_worth_holds_until_it_says():
    policy = Policy()
    live(policy)
    turn, _ = come(policy, 5000.0, [1, 2, 3])
    now = 5000.0
    for _ in range(40):
        worth, until = policy.worth(turn, now)
        assert until > now
        inside = [policy.worth(turn, now + part * (until - now)) for part in (0.0, 0.5, 0.999)]
        assert [until for _, until in inside] == [until] * 3
        low, high = sorted((worth, policy.worth(turn, until)[0]))
        assert all(low * (1 - 1e-9) <= value <= high * (1 + 1e-9) for value, _ in inside)
        now = until


def test_tool_calls_are_worth_more_than_finished_turns():
    policy = Policy()
    now = live(policy)
    tool, _ = come(policy, now, [1, 2], Stop.TOOL)
    end, _ = come(policy, now, [3, 4], Stop.END)
    assert policy.worth(tool, now)[0] > 5 * policy.worth(end, now)[0]
    # A tool call that should have been back long ago is not waited for.
    assert policy.worth(tool, now + 60.0)[0] < policy.worth(tool, now)[0] / 5


def test_what_was_rewritten_goes_first():
    policy = Policy()
    now = live(policy)
    before, _ = come(policy, now, [1, 2, 3], session="s")
    after, changed = come(policy, now + 1.0, [1, 2, 9, 10], session="s")
    assert after.conversation is before.conversation
    assert changed == [before]
    assert policy.worth(before, now + 1.0) == (STALE, inf)


def test_superseded_conversations_are_learned_to_be_dead():
    policy = Policy()
    rng = np.random.default_rng(1)
    now = 0.0
    for number in range(400):
        marks = [number * 100 + 10**6, number * 100 + 1 + 10**6]
        for _ in range(int(rng.integers(1, 6))):
            now += rng.uniform(2.0, 6.0)
            come(policy, now, marks, session=f"s{number // 4}")
            marks = [*marks, marks[-1] + 1]
        now += 3.0
    old, _ = come(policy, now, [1, 2], session="s")
    now += 3.0
    worth = policy.worth(old, now)[0]
    _, changed = come(policy, now, [5, 6], session="s")
    assert old in changed
    assert old.is_current, "it may come back: nothing is believed that was not seen"
    assert policy.worth(old, now)[0] < worth / 3


def test_advice_is_believed_as_far_as_it_came_true():
    def honest(policy, session, now, quits):
        if quits:
            policy.end(session, now)

    def liar(policy, session, now, quits):
        if not quits:
            policy.end(session, now)

    for advise, falls in ((honest, True), (liar, False)):
        policy = Policy()
        now = live(policy, 3000, advise=advise, quits=0.5)
        turn, _ = come(policy, now, [1, 2], Stop.TOOL, session="x")
        before = policy.worth(turn, now)[0]
        assert policy.end("x", now) == [turn]
        assert policy.end("x", now) == []
        assert (policy.worth(turn, now)[0] < before / 2) == falls


def test_announcements_reach_paused_conversations_only():
    policy = Policy()
    assert policy.announce("x", 0.0, 5.0) == []
    turn, _ = policy.arrive(0.0, Arrival(tokens=100, marks=[1], session="x"))
    assert policy.announce("x", 1.0, 5.0) == []
    policy.finish(turn, 2.0, Stop.TOOL, 5)
    assert policy.announce("x", 3.0, 5.0) == [turn]
    assert turn.conversation.announced_s == 5.0
    come(policy, 4.0, [1, 2], session="x")
    assert turn.conversation.announced_s < 0.0


def test_one_end_is_about_a_bounded_number_of_conversations():
    policy = Policy()
    for number in range(1000):
        come(policy, float(number), [number], session="user of an application")
    opened = policy.model.opened
    ended = policy.end("user of an application", 1000.0)
    assert [turn.conversation.marks for turn in ended] == [[mark] for mark in range(968, 1000)]
    assert policy.model.opened == opened
    assert policy.end("user of an application", 1001.0) == []


def test_a_flood_of_advice_leaves_what_was_learned():
    policy = Policy(limits=PolicyLimits(pauses=64))
    turn, _ = come(policy, 0.0, [1], session="flood")
    come(policy, 0.0, [2])
    opened, age = policy.model.opened, 0.0
    for number in range(200):
        age += 1.0
        changed = policy.announce("flood", age, 10.0 + number % 2)
        assert changed == [turn]
        assert policy.announce("flood", age, 10.0 + number % 2) == []
    assert policy.model.opened == opened
    assert policy.end("flood", age) == [turn]
    assert policy.model.opened == opened


def test_advice_on_a_pause_that_the_model_has_forgotten():
    policy = Policy(limits=PolicyLimits(pauses=64))
    turn, _ = come(policy, 0.0, [1], session="s")
    for number in range(100):
        come(policy, 1.0, [100 + number])
    opened = policy.model.opened
    assert policy.end("s", 2.0) == [turn]
    assert policy.model.opened == opened + 1


def test_pins_hold_within_a_budget():
    policy = Policy(limits=PolicyLimits(pin_tokens=500, pin_s=60.0))
    first, _ = come(policy, 0.0, [1, 2, 3], session="a", tenant="t")
    second, _ = come(policy, 0.0, [4, 5, 6], session="b", tenant="t")
    foreign, _ = come(policy, 0.0, [7, 8, 9], session="c", tenant="u")
    assert policy.pin("a", 0.0, 1e9) == [first]
    assert policy.worth(first, 59.0) == (inf, 60.0)
    assert policy.worth(first, 60.0)[0] < inf
    assert policy.pin("a", 1.0, 30.0) == [first], "a pin may be renewed"
    assert policy.pin("b", 1.0, 30.0) == [], "300 + 300 tokens are over the budget"
    assert policy.pin("c", 1.0, 30.0) == [foreign], "tenants have budgets of their own"
    assert policy.pin("b", 40.0, 5.0) == [second], "pins end"
    assert Policy().pin("a", 0.0, 5.0) == []


def test_a_pin_follows_its_conversation_within_the_budget():
    policy = Policy(limits=PolicyLimits(pin_tokens=400))
    first, _ = come(policy, 0.0, [1, 2, 3], session="a")
    policy.pin("a", 0.0, 100.0)
    second, _ = come(policy, 1.0, [1, 2, 3, 4], session="a")
    assert policy.worth(second, 2.0) == (inf, 100.0)
    assert policy.worth(first, 2.0)[0] < inf
    third, _ = come(policy, 3.0, [1, 2, 3, 4, 5], session="a")
    assert policy.worth(third, 4.0)[0] < inf


def test_an_end_undoes_the_pin_of_its_session():
    policy = Policy(limits=PolicyLimits(pin_tokens=300))
    policy.guard(1000)
    first, _ = come(policy, 0.0, [1, 2, 3], session="a")
    other, _ = come(policy, 0.0, [4, 5, 6], session="b")
    for _ in range(2):  # also where it has ended before
        assert policy.pin("a", 0.0, 100.0) == [first]
        assert policy.pin("b", 0.0, 100.0) == []
        assert policy.end("a", 1.0) == [first]
        assert policy.worth(first, 1.0)[0] < inf
    assert policy.end("a", 1.0) == []
    assert policy.pin("b", 1.0, 100.0) == [other]
    assert policy.pins.refused == 2


def test_a_restart_goes_on_where_it_was():
    policy = Policy()
    now = live(policy)
    paused, _ = come(policy, now, [1, 2, 3], Stop.TOOL, session="x", tenant="t")
    policy.arrive(now, Arrival(tokens=500, marks=[7, 8]))
    data = policy.save()
    assert len(data) < 8_000_000
    again = Policy(seed=5)
    again.load(data, now + 20.0)
    turn = again.turn_at(3)
    assert turn is not None
    assert again.worth(turn, now + 1.0) == policy.worth(paused, now + 1.0)
    aborted = again.turn_at(8)
    assert aborted is not None
    assert aborted.conversation.stop == Stop.OTHER
    assert again.inspect()["curves"] == policy.inspect()["curves"]
    next_turn, changed = come(again, now + 30.0, [1, 2, 3, 4], session="x")
    assert next_turn.conversation.turns == 2
    assert changed == [turn]
    assert again.model.closed == policy.model.closed + 1
    assert again.turn_at(99) is None


def test_what_was_learned_goes_to_another_server_without_whom_it_was_learned_from():
    policy = Policy()
    now = live(policy)
    paused, _ = come(policy, now, [1, 2, 3], Stop.TOOL, session="x")
    data = policy.save_learned(now + 5.0)
    assert policy.turn_at(3) is paused, "it goes on"
    again = Policy(seed=5)
    again.load(data, 0.0)
    found, before = again.inspect(), policy.inspect()
    assert found["conversations"] == 0
    assert again.turn_at(3) is None
    for name in ("pauses", "returns", "steps", "curves"):
        assert found[name] == before[name]
    assert not np.isnan(again.model._age[: again.model.opened]).any(), "nobody looks on"
    assert again.model._age[(again.model.opened - 1) % again.model.ring] == 5.0
    fresh, _ = come(again, 0.0, [1, 2, 3], Stop.TOOL, session="x")
    cold, _ = come(Policy(), 0.0, [1, 2, 3], Stop.TOOL, session="x")
    assert fresh.curve != cold.curve, "and what it learned counts"


def test_a_state_that_does_not_fit_changes_nothing():
    policy = Policy()
    live(policy, 200)
    data = policy.save()
    other = Policy(limits=PolicyLimits(pauses=100))
    before = other.save()
    with pytest.raises(StateBoundsError, match="100"):
        other.load(data, 0.0)
    with pytest.raises(DamagedStateError):
        other.load(data[:-1], 0.0)
    with pytest.raises(StateFormError):
        other.load(data[:4] + b"\xff\xff\xff\xff" + data[8:], 0.0)
    assert other.save() == before


def field(name, value):
    """Change a field of the state's first conversation."""
    place = list(conversation_module._KEPT).index(name)

    def change(state):
        state["sessions"]["conversations"][0][place] = value

    return change


def ended_before_it_began(state):
    names = list(conversation_module._KEPT)
    row = state["sessions"]["conversations"][0]
    row[names.index("stop")] = int(Stop.END)
    row[names.index("finished_s")] = row[names.index("arrived_s")] - 10.0


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["sessions"].update(parallel=[]),
        lambda state: state["guards"].append([1000.0, 5.0, -1.0, 1.0]),
        lambda state: state["guards"].append([1000.0, 5.0]),
        field("tokens", 10**400),
        field("output_tokens", 10**400),
        ended_before_it_began,
        lambda state: state["sessions"]["parallel"].update(s1000=-1),
        lambda state: state["sessions"]["parallel"].update(s1000=10**400),
        lambda state: state["model"]["counts"].__setitem__(0, 10**400),
        field("pace_at", [[0.0, -1.0]] * 2 * conversation_module._LENGTHS),
    ],
    ids=[
        *("parallel", "squares", "short guard", "tokens", "output", "times"),
        *("less than none", "too many", "counts", "cells"),
    ],
)
def test_a_wrong_state_with_a_right_checksum_changes_nothing(change):
    policy = Policy()
    live(policy, 200)
    state = from_bytes(policy.save())
    change(state)
    other = Policy()
    before = other.save()
    with pytest.raises(DamagedStateError):
        other.load(to_bytes(state), 0.0)
    assert other.save() == before


def test_a_state_that_is_nested_without_end_is_damaged():
    body = b"[" * 100_000
    data = state_module._HEAD.pack(b"SGXP", state_module.FORM, state_module._digest(body)) + body
    with pytest.raises(DamagedStateError):
        Policy().load(data, 0.0)


def test_strangers_rank_by_their_last_use():
    policy = Policy()
    now = live(policy)
    worths = [policy.worth(policy.stranger(now - age), now)[0] for age in (0.0, 30.0, 3000.0)]
    assert worths == sorted(worths, reverse=True)


def test_branches_that_share_a_node_keep_it_together():
    policy = Policy()
    policy.guard(1000)
    now = live(policy)
    turns = [come(policy, now, [5, n, n + 1], Stop.TOOL)[0] for n in (10, 20, 30)]
    worths = [policy.worth(turn, now + 1.0)[0] for turn in turns]
    assert policy.node_worth(turns[2], 1, now + 1.0)[0] == pytest.approx(sum(worths))
    assert policy.node_worth(turns[2], 2, now + 1.0)[0] == worths[2], "that part is its own"
    left, _ = come(policy, now + 2.0, [5, 10, 11, 12])
    assert turns[0].conversation is left.conversation
    rest = sum(policy.worth(turn, now + 3.0)[0] for turn in (left, *turns[1:]))
    assert policy.node_worth(turns[2], 1, now + 3.0)[0] == pytest.approx(rest)


def test_where_conversations_begin_others_will():
    policy = Policy()
    policy.guard(1000)
    now = live(policy)
    for number in range(6):
        turn, _ = come(policy, now + 10.0 * number, [5, 20 + number, 30 + number], Stop.END)
    now += 60.0
    assert policy.worth(turn, now)[0] < 0.05
    assert policy.node_worth(turn, 1, now)[0] == pytest.approx(5 / 60, rel=0.3)


@pytest.mark.parametrize("session", [None, "s"])
def test_the_answer_of_an_earlier_twin_lives_as_long(session):
    policy = Policy()
    first, _ = policy.arrive(0.0, Arrival(200, [1, 2], session))
    second, _ = policy.arrive(0.1, Arrival(200, [1, 2], session))
    stranger, _ = policy.arrive(0.2, Arrival(100, [9]))
    assert policy.worth(first, 0.3)[0] == inf, "it runs"
    policy.finish(stranger, 1.0, Stop.END, 5)
    policy.finish(first, 100.0, Stop.END, 5)
    policy.finish(second, 100.0, Stop.END, 5)
    worths = [policy.worth(turn, 101.0)[0] for turn in (first, second, stranger)]
    assert min(worths[:2]) > worths[2], "a cold policy goes by age"
    policy.model.steps = 1
    assert policy.worth(first, 101.0)[0] > 0.0, "both may be gone on with"


def test_a_branch_beside_another_leaves_it_alive():
    policy = Policy()
    now = live(policy)
    context = list(range(10**9, 10**9 + 80))
    first, _ = come(policy, now, [*context, 1, 2], session="s")
    second, changed = come(policy, now + 1.0, [*context, 3, 4], session="s")
    assert second.conversation is not first.conversation
    assert changed == [first]
    assert policy.worth(first, now + 2.0)[0] > STALE
    assert policy.model.closed, "the context was asked for again"
    third, changed = come(policy, now + 3.0, [*context, 1, 2, 5], session="s")
    assert third.conversation is first.conversation


def test_state_is_bounded():
    policy = Policy(limits=PolicyLimits(conversations=50, pauses=64))
    live(policy, 600)
    found = policy.inspect()
    assert found["conversations"] == 50
    assert policy.model.ring == 64
    assert set(found["curves"]) == {"tool", "end", "other"}
    back = found["curves"]["tool"]["back"]
    assert back == sorted(back)
