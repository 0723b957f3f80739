import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import pytest

from sglang_ext.bench import bfcl
from sglang_ext.bench.agents import (
    Agent,
    Workload,
    _at_once,
    _Break,
    parse_arguments,
    workload,
)
from sglang_ext.bench.answers import Answer, Call, Exchange, Tokens
from sglang_ext.errors import DemoError

Send = Callable[[Mapping[str, Any]], Answer]


def answering(*calls: Call, prompt: int = 2500, reason: str = "tool_calls") -> Send:
    def send(body: Mapping[str, Any]) -> Answer:
        return Answer("", calls, reason, (1,) * prompt, (2, 3), Tokens(prompt), 0.1, 0.2)

    return send


def run(send: Send, load: Workload, number: int = 1) -> list[Exchange]:
    tasks = bfcl.load_tasks(load.classes)
    return list(Agent(number, 4, tasks, load).run(send, lambda: None))


def test_messages_are_only_ever_appended() -> None:
    exchanges = run(answering(Call("c1", "ls", "{}")), workload(6))
    for before, after in pairwise(exchanges):
        earlier = before.body["messages"]
        assert after.body["messages"][: len(earlier)] == earlier
        assert len(after.body["messages"]) > len(earlier)
        assert after.body["tools"] == before.body["tools"]


def test_each_turn_asks_for_a_call() -> None:
    exchanges = run(answering(Call("c1", "pwd", "{}")), workload(6))
    assert [one.turn for one in exchanges] == [1, 2, 3, 4, 5, 6]
    assert {one.body["tool_choice"] for one in exchanges} == {"required"}


def test_calls_are_executed_and_their_results_go_back() -> None:
    exchanges = run(answering(Call("c1", "mkdir", '{"dir_name": "made-by-a-call"}')), workload(6))
    messages = exchanges[1].body["messages"]
    assert messages[-2] == {"role": "tool", "tool_call_id": "c1", "content": '{"result": null}'}
    again = exchanges[2].body["messages"][-2]["content"]
    assert "exists" in json.loads(again)["error"]


@pytest.mark.parametrize(
    ("arguments", "reason", "said"),
    [('{"path": "un', "length", "cut off"), ("[1]", "tool_calls", "malformed")],
)
def test_a_call_that_cannot_be_read_is_answered_with_an_error(
    arguments: str, reason: str, said: str
) -> None:
    exchanges = run(answering(Call("c1", "find", arguments), reason=reason), workload(6))
    call, result = exchanges[1].body["messages"][2:4]
    assert call["tool_calls"][0]["function"] == {"name": "find", "arguments": "{}"}
    assert said in json.loads(result["content"])["error"]
    assert len(exchanges) == workload(6).turns


def test_results_are_cut_and_a_full_context_stops_growing() -> None:
    load = workload(6)
    send = answering(Call("c1", "find", '{"path": "."}'))
    roomy = run(send, load)[load.listing_from - 1].body["messages"]
    listings = ["The workspace now" in one["content"] for one in roomy if one["role"] == "user"]
    assert listings == [False] * (load.listing_from - 1) + [True]
    assert "(cut after 300 of" in roomy[3]["content"]
    full = run(answering(Call("c1", "find", '{"path": "."}'), prompt=7000), load)
    messages = full[load.listing_from - 1].body["messages"]
    assert "(cut after 37 of" in messages[3]["content"]
    assert "The workspace now" not in messages[-1]["content"]


def test_agents_begin_with_different_tasks_and_share_their_beginning() -> None:
    first = [run(answering(), workload(6), number)[0].body["messages"] for number in (1, 2, 3, 4)]
    assert len({messages[0]["content"] for messages in first}) == 1
    assert len({messages[1]["content"] for messages in first}) == 4


def test_an_agent_without_tasks_says_so() -> None:
    with pytest.raises(DemoError, match="no task"):
        Agent(1, 4, [], workload(6))


def test_runs_go_on_together_and_each_begins_after_the_first_answer_of_the_one_before() -> None:
    log: list[str] = []
    both = threading.Barrier(2, timeout=10)

    def of(number: int) -> Iterator[Exchange]:
        for turn in (1, 2):
            log.append(f"{number}.{turn}")
            if turn == 2:
                both.wait()  # passes only while the two are running at the same time
            yield Exchange(number, turn, {}, answering()({}))

    done = _at_once([of(1), of(2)], lambda exchange: None, _Break(2))
    assert [(one.agent, one.turn) for one in done] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert log.index("1.1") < log.index("2.1")


def test_each_agent_waits_for_all_others_before_its_last_turn() -> None:
    load = workload(6)
    tasks = bfcl.load_tasks(load.classes)
    turns: list[int] = []
    log: list[object] = []
    for exchange in Agent(1, 4, tasks, load).run(
        answering(), lambda: log.append(("pause", list(turns)))
    ):
        turns.append(exchange.turn)
    assert log == [("pause", [1, 2, 3, 4, 5])]


def test_agents_come_back_from_their_break_one_after_another() -> None:
    pause = _Break(3)
    log: list[str] = []

    def of(index: int) -> Iterator[Exchange]:
        yield Exchange(index, 1, {}, answering()({}))
        pause.wait(index)
        log.append(f"{index} back")
        time.sleep(0.05)  # another one that did not wait would come in between
        log.append(f"{index} answered")
        yield Exchange(index, 2, {}, answering()({}))

    _at_once([of(0), of(1), of(2)], lambda exchange: None, pause)
    assert log == [f"{index} {what}" for index in range(3) for what in ("back", "answered")]


def test_a_failure_wakes_the_agents_that_wait_for_the_last_turn() -> None:
    pause = _Break(2)

    def waiting() -> Iterator[Exchange]:
        yield Exchange(1, 1, {}, answering()({}))
        pause.wait(0)

    def failing() -> Iterator[Exchange]:
        time.sleep(0.2)  # the other is waiting by now
        raise DemoError("the second")
        yield

    before = set(threading.enumerate())
    with pytest.raises(DemoError, match="the second"):
        _at_once([waiting(), failing()], lambda exchange: None, pause)
    assert pause._barrier.broken
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=5)
    assert set(threading.enumerate()) <= before


def test_a_run_that_fails_does_not_keep_the_others_waiting() -> None:
    def failing() -> Iterator[Exchange]:
        time.sleep(0.2)  # the other is waiting by now
        raise DemoError("the first")
        yield

    raised: list[str] = []

    def run_both() -> None:
        try:
            _at_once([failing(), iter([])], lambda exchange: None, _Break(2))
        except DemoError as error:
            raised.append(str(error))

    thread = threading.Thread(target=run_both, daemon=True)
    thread.start()
    thread.join(timeout=10)
    assert raised == ["the first"]


def test_after_a_failure_nobody_waits_for_the_others_and_they_end_with_their_request() -> None:
    under_way, answered = threading.Event(), threading.Event()
    asked_for_more: list[int] = []

    def slow() -> Iterator[Exchange]:
        yield Exchange(1, 1, {}, answering()({}))
        under_way.set()
        answered.wait(10)
        yield Exchange(1, 2, {}, answering()({}))
        asked_for_more.append(3)

    def failing() -> Iterator[Exchange]:
        under_way.wait(10)
        raise DemoError("the second")
        yield

    before = set(threading.enumerate())
    seen: list[Exchange] = []
    with pytest.raises(DemoError, match="the second"):
        _at_once([slow(), failing()], seen.append, _Break(2))
    assert len(seen) == 1
    answered.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
    assert len(seen) == 2
    assert not asked_for_more


@pytest.mark.parametrize(
    ("text", "value"), [('{"a": 1}', {"a": 1}), ("{}", {}), ("[]", None), ("", None), ('{"a', None)]
)
def test_arguments(text: str, value: object) -> None:
    assert parse_arguments(text) == value
