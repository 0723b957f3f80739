"""Advice of clients, from the endpoint to the scheduler."""

import pytest

from sglang_ext.cache.advice import Advised, Outbox, read_advice
from sglang_ext.cache.names import session_of, tenant_of
from sglang_ext.cache.sessions import session_hint
from sglang_ext.errors import AdviceError


def test_good_advice():
    session = session_hint(header="s")
    assert read_advice({"action": "pause", "session": "s", "seconds": 9}) == ("pause", session, 9.0)
    assert read_advice({"action": "end", "session": "s"}) == ("end", session, 0.0)
    by_user = read_advice({"action": "end", "user": "s"})
    assert by_user == ("end", session_hint(user="s"), 0.0)


def test_advice_is_about_a_session_of_a_tenant():
    plain = read_advice({"action": "end", "session": "s"}, b"k")[1]
    salted = read_advice({"action": "end", "session": "s", "cache_salt": "a"}, b"k")[1]
    assert plain == session_hint(header="s", key=b"k")
    assert salted == session_of(b"k", tenant_of(b"k", None, "a"), plain)


@pytest.mark.parametrize(
    "body",
    [
        [],
        {},
        {"action": "dance", "session": "s"},
        {"action": "end"},
        {"action": "end", "session": ""},
        {"action": "end", "session": "x" * 513},
        {"action": "pin", "session": "s"},
        {"action": "pin", "session": "s", "seconds": "long"},
        {"action": "pin", "session": "s", "seconds": True},
        {"action": "pin", "session": "s", "seconds": -1},
        {"action": "pin", "session": "s", "seconds": float("nan")},
        {"action": "pin", "session": "s", "seconds": 1e9},
        {"action": "pin", "session": "s", "seconds": 10**400},
        {"action": "end", "session": "s", "cache_salt": 5},
        {"action": "end", "session": "s", "extra_key": []},
    ],
)
def test_what_is_no_advice_is_refused(body):
    with pytest.raises(AdviceError):
        read_advice(body)


def test_each_advice_counts_once():
    outbox, advised = Outbox(), Advised()
    outbox.put("pin", "s", 5.0)
    outbox.put("end", "t", 0.0)
    rows = outbox.take()
    assert advised.fresh(rows) == [("pin", "s", 5.0), ("end", "t", 0.0)]
    assert advised.fresh(rows) == []


def test_advice_outlives_requests_that_are_refused():
    outbox, advised = Outbox(), Advised()
    outbox.put("end", "s", 0.0)
    for _ in range(2):
        outbox.take()  # with a request that never reaches the scheduler
    assert advised.fresh(outbox.take()) == [("end", "s", 0.0)]
    assert outbox.take() == []


def test_several_replicas_hear_it():
    outbox = Outbox(replicas=2)
    outbox.put("end", "s", 0.0)
    taken = [outbox.take() for _ in range(40)]
    assert sum(map(bool, taken)) == 32
    assert len({row[0][0] for row in taken if row}) == 1


def test_flood_is_bounded():
    outbox, advised = Outbox(), Advised()
    for number in range(10_000):
        outbox.put("end", str(number), 0.0)
    rows = [outbox.take() for _ in range(300)]
    assert max(map(len, rows)) == 64
    assert sum(len(advised.fresh(row)) for row in rows) == 4096


@pytest.mark.parametrize(
    "rows",
    [
        None,
        "x",
        [5],
        [["a", "end", "s", 0.0]],
        [[1, "end", "s", "x"]],
        [[1, "dance", "s", 1.0]],
        [[1, "pin", "s", float("nan")]],
        [[1, "pin", "s", 10**400]],
        [[1, "pin", 5, 1.0]],
        [[1, [], "s", 1.0]],
    ],
)
def test_wrong_rows_are_left_out(rows):
    assert Advised().fresh(rows) == []
