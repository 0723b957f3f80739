"""Advice of clients, from the endpoint to the scheduler."""

import pytest

from sglang_ext.cache.advice import Advised, Outbox, read_advice
from sglang_ext.cache.sessions import session_hint
from sglang_ext.errors import AdviceError


def test_good_advice():
    session = session_hint(header="s")
    assert read_advice({"action": "pause", "session": "s", "seconds": 9}) == ("pause", session, 9.0)
    assert read_advice({"action": "end", "session": "s"}) == ("end", session, 0.0)
    by_user = read_advice({"action": "end", "user": "s"})
    assert by_user == ("end", session_hint(user="s"), 0.0)


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
    ],
)
def test_what_is_no_advice_is_refused(body):
    with pytest.raises(AdviceError):
        read_advice(body)


def test_each_advice_travels_and_counts_once():
    outbox, advised = Outbox(), Advised()
    outbox.put("pin", "s", 5.0)
    outbox.put("end", "t", 0.0)
    rows = outbox.take()
    assert outbox.take() == []
    assert advised.fresh(rows) == [("pin", "s", 5.0), ("end", "t", 0.0)]
    assert advised.fresh(rows) == []


def test_several_replicas_hear_it():
    outbox = Outbox(replicas=2)
    outbox.put("end", "s", 0.0)
    taken = [outbox.take() for _ in range(40)]
    assert sum(map(bool, taken)) == 32
    assert len({row[0][0] for row in taken if row}) == 1


def test_flood_is_bounded():
    outbox = Outbox()
    for number in range(10_000):
        outbox.put("end", str(number), 0.0)
    assert len(outbox.take()) == 64
    assert sum(len(outbox.take()) for _ in range(200)) == 4096 - 64


@pytest.mark.parametrize("rows", [None, "x", [5], [["a", "end", "s", 0.0]], [[1, "end", "s", "x"]]])
def test_wrong_rows_are_left_out(rows):
    assert Advised().fresh(rows) == []
