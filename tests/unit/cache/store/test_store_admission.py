"""A daily budget that rolls, and a filter that lets through what comes again."""

import struct
import time

import pytest
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.admission import SeenTwice, TouchBudget, WriteHours
from sglang_ext.cache.store.options import MIB

HOUR = 3600


class Clock:
    def __init__(self, hours=1000.0):
        self.hours = hours

    def __call__(self):
        return self.hours * HOUR


def test_what_was_written_counts_for_a_day():
    clock = Clock()
    hours = WriteHours(100, clock)
    hours.add(60)
    clock.hours += 10
    hours.add(30)
    assert hours.left_bytes() == 10
    clock.hours += 14
    assert hours.left_bytes() == 70
    clock.hours += 10
    assert hours.left_bytes() == 100


def test_without_a_limit_as_much_as_you_like():
    hours = WriteHours(None, Clock())
    hours.add(10**15)
    assert hours.left_bytes() is None
    assert hours.total_bytes() == 10**15


def test_hours_survive_a_restart():
    clock = Clock()
    before = WriteHours(100, clock)
    before.add(40)
    clock.hours += 3
    before.add(5)
    clock.hours += 2
    after = WriteHours(100, clock)
    after.unpack(*before.pack())
    assert after.left_bytes() == 55
    clock.hours += 19
    assert after.left_bytes() == 95


def test_a_recorded_hour_replaces_and_is_not_added():
    clock = Clock()
    hours = WriteHours(100, clock)
    hours.restore_hour(999, 20)
    hours.restore_hour(999, 30)
    hours.restore_hour(900, 50)  # too long ago
    hours.restore_hour(2000, 50)  # in the future
    assert hours.total_bytes() == 30


def test_a_clock_that_is_set_back_forgets_nothing():
    clock = Clock()
    hours = WriteHours(100, clock)
    hours.add(40)
    clock.hours -= 500
    hours.add(1)
    assert hours.left_bytes() == 59


def test_a_clock_before_1970_is_at_its_beginning():
    hours = WriteHours(100, Clock(-500.0))
    hours.add(40)
    hour, data = hours.pack()
    assert hour == 0
    after = WriteHours(100, Clock(-500.0))
    after.unpack(hour, data)
    assert after.left_bytes() == 60


@pytest.mark.parametrize("back", [5, 500])
def test_a_clock_that_was_set_back_still_lets_hours_pass(back):
    clock = Clock()
    hours = WriteHours(100, clock)
    hours.add(40)
    clock.hours -= back
    hours.add(1)
    clock.hours += 24 + min(back, 24)
    assert hours.left_bytes() == 100


def test_damaged_hours_have_a_fixed_size():
    assert len(WriteHours(None, Clock()).pack()[1]) == struct.calcsize("<24Q") == 192


def test_the_second_offer_passes():
    seen = SeenTwice()
    assert [seen.passes(bytes([n]) * 32) for n in (1, 2, 1, 2, 3)] == [
        False,
        False,
        True,
        True,
        False,
    ]


def test_the_filter_is_bounded_and_forgets_the_oldest():
    seen = SeenTwice(most=10)
    keys = [n.to_bytes(8, "little") for n in range(30)]
    assert not any(seen.passes(key) for key in keys)
    assert len(seen._young) + len(seen._old) <= 20
    assert not seen.passes(keys[0])
    assert seen.passes(keys[29])


def test_touches_alone_fill_a_journal_in_no_less_than_an_hour():
    now = [1000.0]
    budget = TouchBudget(lambda: now[0])
    assert budget.take(10**6, 4000) == 1000
    assert budget.take(10**6, 4000) == 0
    taken = 0
    for _ in range(3600):
        now[0] += 1
        taken += budget.take(1024, 4000)
    assert taken == pytest.approx(4000, abs=1)


def test_touches_that_are_not_written_are_saved_up_to_a_quarter_of_a_journal():
    now = [0.0]
    budget = TouchBudget(lambda: now[0])
    assert budget.take(3, 400) == 3
    now[0] += 10**6
    assert budget.take(10**6, 400) == 100


def test_a_clock_before_1970_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: -(10**18))
    monkeypatch.setattr(time, "time", lambda: -(10.0**9))
    with PageStore(tmp_path / "s", options(write_limit_bytes_per_day=MIB)) as store:
        assert all(write(store, chain("a", 5)))
        store.flush()
        assert all(read(store, chain("a", 5)))
    monkeypatch.undo()
    with PageStore(tmp_path / "s", options()) as store:
        assert store.stats().recovery == "clean"
        assert all(read(store, chain("a", 5)))
