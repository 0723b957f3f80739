"""Which conversation a request continues."""

import json

import pytest

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.sessions import Arrival, Sessions, session_hint


def come(sessions, now, marks, **hints):
    arrival = Arrival(tokens=100 * len(marks), marks=marks, **hints)
    conversation, superseded = sessions.arrive(now, arrival)
    conversation.finish(now, Stop.TOOL, 10)
    return conversation, superseded


def test_a_prompt_that_extends_another_continues_it():
    sessions = Sessions()
    first, _ = come(sessions, 0.0, [1, 2, 3])
    again, _ = come(sessions, 5.0, [1, 2, 3, 4, 5])
    other, _ = come(sessions, 6.0, [7, 8])
    assert again is first
    assert other is not first
    assert (first.turns, first.blocks, len(sessions)) == (2, 5, 2)


def test_the_last_block_may_change():
    sessions = Sessions()
    first, _ = come(sessions, 0.0, [1, 2, 3])
    again, _ = come(sessions, 5.0, [1, 2, 30, 4])
    assert again is first
    forked, _ = come(sessions, 6.0, [1, 2, 9])
    assert forked is not first, "two blocks of the last prompt are gone"


@pytest.mark.parametrize(("kept", "known"), [(99, True), (92, True), (80, False)])
def test_a_session_may_change_a_tenth(kept, known):
    sessions = Sessions()
    first, _ = come(sessions, 0.0, list(range(100)), session="s")
    marks = [*range(kept), *range(1000, 1030)]
    again, superseded = come(sessions, 5.0, marks, session="s")
    assert (again is first) == (kept == 99), "more than a block may be a branch beside it"
    assert superseded == ([] if again is first else [first])
    assert again.turns == (2 if known else 1)
    assert again.rewrites == (first.number if kept == 92 else -1)
    back, _ = come(sessions, 9.0, list(range(110)), session="s")
    assert (back is first) == (again is not first)


def test_a_request_beside_one_that_runs_is_another_conversation():
    sessions = Sessions()
    first, _ = sessions.arrive(0.0, Arrival(tokens=300, marks=[1, 2, 3], session="s"))
    twin, superseded = sessions.arrive(1.0, Arrival(tokens=300, marks=[1, 2, 3], session="s"))
    assert twin is not first
    assert superseded == []
    first.finish(2.0, Stop.TOOL, 10)
    twin.finish(2.0, Stop.TOOL, 10)
    again, _ = come(sessions, 3.0, [1, 2, 3, 4], session="s")
    assert again in (first, twin)


def test_two_sessions_are_one_conversation_only_by_the_whole_prompt():
    sessions = Sessions()
    first, _ = come(sessions, 0.0, [1, 2, 3], session="a")
    other, _ = come(sessions, 1.0, [1, 2, 9], session="b")
    assert other is not first
    again, _ = come(sessions, 2.0, [1, 2, 3, 4], session="c")
    assert again is first, "a wrong name does not part a conversation"


def test_a_new_conversation_supersedes_those_of_its_kind():
    sessions = Sessions()
    main, _ = come(sessions, 0.0, [1, 2, 3], session="s")
    agent, superseded = come(sessions, 1.0, [5, 6], session="s", agent=True)
    assert superseded == []
    newer, superseded = come(sessions, 2.0, [7, 8], session="s")
    assert superseded == [main]
    assert main.superseded
    assert not agent.superseded
    back, _ = come(sessions, 3.0, [1, 2, 3, 4], session="s")
    assert back is main
    assert not main.superseded
    x = sessions.features(newer).tolist()
    newer.superseded = True
    assert sessions.features(newer).tolist() != x


def test_without_marks_nothing_is_continued():
    sessions = Sessions()
    first, _ = sessions.arrive(0.0, Arrival(tokens=100, session="s"))
    first.finish(0.5, Stop.TOOL, 10)
    again, _ = sessions.arrive(1.0, Arrival(tokens=150, session="s"))
    assert again is not first


def test_what_was_quiet_longest_is_forgotten():
    sessions = Sessions(limit=3)
    for number in range(3):
        come(sessions, number, [number * 10, number * 10 + 1], session="s")
    come(sessions, 4.0, [0, 1, 2], session="s")
    come(sessions, 5.0, [90, 91], session="s")
    assert len(sessions) == 3
    assert sessions.head(11) is None
    assert sessions.head(2) is not None
    numbers = [c.number for c in sessions.of_session("s")]
    assert len(numbers) == 3
    assert 1 not in numbers


def test_a_state_comes_back():
    sessions = Sessions()
    come(sessions, 0.0, [1, 2, 3], session="a", model="m")
    come(sessions, 1.0, [1, 2, 3, 4], session="a", model="m")
    come(sessions, 2.0, [8, 9], session="b", model="n")
    again = Sessions()
    loaded = again.load(json.loads(json.dumps(sessions.state(10))))
    assert [c.row() for c in loaded] == [c.row() for c in sessions.latest(10)]
    continued, _ = come(again, 9.0, [1, 2, 3, 4, 5], session="a")
    assert continued is loaded[0]
    fresh, _ = come(again, 9.0, [50], session="z", model="n")
    assert fresh.number == 2
    assert fresh.model == 1
    assert len(sessions.state(1)["conversations"]) == 1


def test_the_first_source_that_names_a_session_wins():
    by_hint = session_hint(kv_hints={"session_id": "x"}, user="u")
    assert by_hint == session_hint(metadata={"session_id": "x"}) == session_hint(header="x")
    assert by_hint != session_hint(user="x")
    assert session_hint(previous_session=by_hint, header="y") == by_hint
    assert session_hint(kv_hints={"session_id": 7}, metadata={}, user="") is None
    assert "x" not in str(by_hint).replace("x", "", 0) or len(str(by_hint)) == 32
