"""Requests of a server, as the policy and the log see them."""

from array import array
from types import SimpleNamespace

import pytest

from sglang_ext.cache import requests as module
from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.marks import Marks
from sglang_ext.cache.policy import Policy, PolicyLimits
from sglang_ext.cache.requests import Clock, Requests


@pytest.fixture
def ended():
    return []


@pytest.fixture
def requests(ended):
    clock = Clock("received")
    policy = Policy(limits=PolicyLimits(pin_tokens=1000))
    return Requests(policy, Marks(b"k", 4), clock, lambda *what: ended.append(what))


def arrive(requests, rid, count=16, received=0.0, **carried):
    tokens = array("q", range(count))
    known, _ = requests.arrive(rid, tokens, (None, None), {"received": received, **carried})
    return known


def test_only_the_first_sight_is_an_arrival(requests):
    first = arrive(requests, "a", received=5.0)
    assert arrive(requests, "a", received=9.0) is first
    assert requests.policy.inspect()["conversations"] == 1
    assert requests.clock() == 5.0


def test_next_turn_continues_the_conversation(requests, ended):
    first = arrive(requests, "a", 16, 1.0)
    requests.end("a", Stop.TOOL, 3)
    second = arrive(requests, "b", 32, 11.0)
    assert second.turn.conversation is first.turn.conversation
    assert second.turn.conversation.turns == 2
    assert [(known.rid, stop, tokens) for known, stop, tokens in ended] == [("a", Stop.TOOL, 3)]
    assert len(requests) == 1


def test_sessions_by_the_source_that_says_most(requests):
    def name(rid, stock=None, **carried):
        tokens = array("q", [hash(rid) % 1000 + n for n in range(16)])
        known, _ = requests.arrive(rid, tokens, (None, None), carried, session=stock)
        return known.session

    assert name("a") is None
    assert name("b", weak_session="w") == "w"
    assert name("c", previous="b") == "w"
    assert name("d", previous="b", weak_session="other") == "w"
    assert name("e", previous="unknown", weak_session="other") == "other"
    assert name("f", session="s", previous="b", stock="x") == "s"
    stock = name("g", stock="x", previous="b")
    assert len(stock) == 32
    assert stock == name("h", stock="x")


def test_what_never_ends_is_forgotten_in_the_end(requests, ended, monkeypatch):
    monkeypatch.setattr(module, "_MOST", 3)
    for rid in "abcd":
        arrive(requests, rid, session="s")
    assert len(requests) == 3
    assert [(known.rid, stop) for known, stop, _ in ended] == [("a", Stop.OTHER)]
    assert len(requests._answered) == 3
    assert requests.end("a", Stop.END, 1) == []


def test_what_ran_for_hours_has_ended_unseen(requests, ended):
    lost = arrive(requests, "lost", received=1.0)
    for hour in range(1, 7):
        arrive(requests, f"at {hour}", received=3600.0 * hour)
    assert not ended
    arrive(requests, "b", received=21_700.0)
    assert [(known.rid, stop) for known, stop, _ in ended] == [("lost", Stop.OTHER)]
    assert lost.turn.curve is not None or not lost.turn.is_current


def test_advice_reaches_the_policy(requests):
    arrive(requests, "a", session="s")
    requests.end("a", Stop.TOOL, 1)
    (turn,) = requests.advise("pause", "s", 30.0)
    assert turn.conversation.announced_s == 30.0
    assert requests.advise("pin", "s", 10.0) == [turn]
    assert turn.pinned_until == 10.0
    assert requests.advise("end", "s", 0.0) == [turn]
    assert turn.conversation.ended
    assert requests.advise("pause", "nobody", 1.0) == []
    assert requests.advise("dance", "s", 1.0) == []


def test_without_a_policy_requests_are_logged_all_the_same(ended):
    requests = Requests(None, Marks(b"k", 4), Clock(), lambda *what: ended.append(what))
    known = arrive(requests, "a")
    assert known.turn is None
    assert len(known.marks) == 4
    assert requests.end("a", Stop.END, 2) == []
    assert requests.advise("end", "s", 0.0) == []
    assert len(ended) == 1


def test_one_wrong_time_moves_what_is_received_by_an_hour_at_most():
    heard = Clock("received")
    heard.hear({"received": 1.7e9})
    heard.hear({"received": 3.9e9})
    assert heard() == 1.7e9 + 3600.0
    for _ in range(3):
        heard.hear({"received": 1.7e9 + 3 * 3600.0})
    assert heard() == 1.7e9 + 3 * 3600.0


def test_what_is_told_is_taken_as_it_is():
    told = Clock("told")
    for seconds in (0.0, 30.0, 3 * 86_400.0):
        told.hear({"told": seconds})
        assert told() == seconds


def test_clock_never_goes_back():
    heard = Clock("received")
    for received, now in ((5.0, 5.0), (3.0, 5.0), ("9", 5.0), (1e12, 5.0), (6, 6.0)):
        heard.hear({"received": received})
        assert heard() == now
    own = Clock()
    own.hear({"received": 4e8})
    assert own() > 1e9


def test_the_system_clock_may_be_set_to_anything(monkeypatch):
    system = SimpleNamespace(wall=1.7e9, steady=500.0)
    stub = SimpleNamespace(time=lambda: system.wall, monotonic=lambda: system.steady)
    monkeypatch.setattr(module, "time", stub)
    own = Clock()
    assert own() == 1.7e9
    for wall in (3.9e9, 1.7e9, 0.0):
        system.wall = wall
        system.steady += 10.0
        assert own() == 1.7e9 + system.steady - 500.0


def test_told_time_counts_where_it_is_asked_for_alone(ended):
    carried = {"received": 100.0, "told": 7.0}
    for heard, now in (("told", 7.0), ("received", 100.0)):
        clock = Clock(heard)
        requests = Requests(Policy(), Marks(b"k", 4), clock)
        known = arrive(requests, "a", **carried)
        assert (known.arrived_s, clock()) == (now, now)
        arrive(requests, "b", received=200.0)
        assert clock() == (now if heard == "told" else 200.0), "it stands still in between"


def test_a_session_is_its_tenants(requests):
    def come(rid, salt, first, **carried):
        tokens = array("q", range(first, first + 16))
        return requests.arrive(rid, tokens, (None, salt), carried)[0]

    a = come("a", "A", 0, session="s")
    requests.end("a", Stop.TOOL, 1)
    b = come("b", "B", 100, session="s")
    c = come("c", "B", 200, previous="a")
    assert len({a.session, b.session, "s"}) == 3
    assert c.session == b.session
    assert not a.turn.conversation.superseded
    assert requests.advise("end", "s", 0.0) == []
    assert requests.advise("end", a.session, 0.0) == [a.turn]


def test_an_adapter_is_no_tenant(requests):
    tokens = array("q", range(16))
    known = [
        requests.arrive(str(n), tokens, (key, None), {"session": "s"}, model=model)[0]
        for n, (key, model) in enumerate((("team", ""), ("teamlora", "lora"), ("lora", "lora")))
    ]
    assert known[0].tenant == known[1].tenant != ""
    assert known[2].tenant == ""
    assert len({known[n].marks[0] for n in range(3)}) == 3
