"""Pins: their budget, their number, their end, and what they cost."""

import random
from math import inf

import pytest

from sglang_ext.cache import pins as module
from sglang_ext.cache.conversation import Conversation, Turn
from sglang_ext.cache.pins import Pins


def turn(number, tokens=10, tenant="t"):
    conversation = Conversation(number, "s", False, 0)
    conversation.tokens, conversation.tenant = tokens, tenant
    conversation.turn = Turn(conversation, 0.0)
    return conversation.turn


def held(pins):
    return sum(tokens for _, _, tokens in pins._held.values())


def test_a_refused_pin_is_counted_and_the_one_before_stays():
    pins = Pins(100, 3600.0)
    first = turn(1, 60)
    assert pins.pin(first, 0.0, 10.0)
    assert not pins.pin(turn(2, 60), 0.0, 10.0)
    first.conversation.tokens = 200
    assert not pins.pin(first, 1.0, 100.0), "it has grown"
    assert (pins.refused, first.pinned_until, len(pins)) == (2, 10.0, 1)


def test_a_pin_that_outgrows_the_budget_is_counted():
    pins = Pins(100, 3600.0)
    before = turn(1, 60)
    pins.pin(before, 0.0, 10.0)
    before.conversation.tokens = 101
    after = Turn(before.conversation, 1.0)
    pins.move(before, after)
    assert (pins.refused, before.pinned_until, after.pinned_until) == (1, 0.0, 0.0)
    assert len(pins) == 0


def test_pins_are_bounded_in_number_over_all_tenants():
    pins = Pins(100, 3600.0, most=3)
    for number in range(5):
        pins.pin(turn(number, tenant=f"t{number}"), 0.0, 10.0)
    assert (len(pins), pins.refused) == (3, 2)
    assert pins.pin(turn(9, tenant="late"), 10.0, 1.0), "the others are over"
    assert len(pins) == 1


def test_a_pin_is_dropped_and_gives_its_budget_back():
    pins = Pins(100, 3600.0)
    first = turn(1, 100)
    pins.pin(first, 0.0, 10.0)
    assert pins.drop(first.conversation)
    assert not pins.drop(first.conversation)
    assert first.pinned_until == 0.0
    assert pins.pin(turn(2, 100), 0.0, 10.0)


def test_all_are_cleared():
    pins = Pins(100, 3600.0)
    turns = [turn(number) for number in range(3)]
    for one in turns:
        pins.pin(one, 0.0, 10.0)
    assert pins.clear() == turns
    assert {one.pinned_until for one in turns} == {0.0}
    assert (len(pins), pins._spent, pins._ends) == (0, {}, [])


def test_books_agree_with_a_list_whatever_happens():
    rng = random.Random(1)
    pins, limit = Pins(50, 30.0), 50
    now, turns = 0.0, [turn(number, tenant=f"t{number % 3}") for number in range(12)]
    for _ in range(5000):
        now += rng.random()
        place = rng.randrange(len(turns))
        one = turns[place]
        if (what := rng.random()) < 0.6:
            pins.pin(one, now, rng.choice([0.0, 5.0, inf]))
        elif what < 0.8:
            one.conversation.tokens = rng.randrange(1, 40)
            turns[place] = after = one.conversation.turn = Turn(one.conversation, now)
            if one.pinned_until > now:
                pins.move(one, after)
        elif what < 0.95:
            pins.drop(one.conversation)
        pins._expire(now)
        holding = {one.conversation.number for one in turns if one.pinned_until > now}
        assert set(pins._held) == holding
        for tenant in ("t0", "t1", "t2"):
            spent = sum(n for _, name, n in pins._held.values() if name == tenant)
            assert spent == pins._spent[tenant] <= limit
        assert len(pins._ends) <= 2 * len(pins) + 65


@pytest.mark.parametrize("renewed", [False, True])
def test_a_pin_looks_at_few_others(monkeypatch, renewed):
    pins = Pins(1_000_000, 3600.0)
    for number in range(4000):
        pins.pin(turn(number, tenant=f"t{number}"), 0.0, 100.0 + number)
    looks = 0

    class Counting(dict):
        def __iter__(self):
            nonlocal looks
            looks += len(self)
            return super().__iter__()

        def items(self):
            nonlocal looks
            looks += len(self)
            return super().items()

        values = items

    pins._held = Counting(pins._held)
    for number in range(1000):
        pins.pin(turn(5 if renewed else 10_000 + number, 1), 1.0, 50.0)
    assert looks == 0
    assert module.PINS >= 4000
