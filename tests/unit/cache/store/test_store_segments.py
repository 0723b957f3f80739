"""Slots: runs as long as possible, and a capacity that is never exceeded."""

import pytest
from support.store_pages import NAMESPACE, chain, options, pages_of

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.format import BLOCK_BYTES, RECORD_BYTES, slot_bytes_of
from sglang_ext.cache.store.options import MIB
from sglang_ext.cache.store.segments import (
    Segment,
    Segments,
    Space,
    locate,
    place,
    slots_that_fit,
)
from sglang_ext.errors import StoreError

SLOT = 8192


def filled(slots, *more):
    segments = Segments(Space(1 << 40))
    for number, count in enumerate((slots, *more), 1):
        segment = Segment(number, SLOT, count, -1)
        segments.insert(segment, BLOCK_BYTES + count * SLOT)
    return segments


def slots(locations):
    return [locate(location) for location in locations]


def test_locations_of_adjacent_slots_are_consecutive():
    assert place(3, 8) == place(3, 7) + 1
    assert locate(place(3, 7)) == (3, 7)


def test_a_batch_lies_together():
    segments = filled(10)
    assert slots(segments.take(SLOT, 4, None)) == [(1, n) for n in range(4)]
    segments.check_integrity()


def test_slots_after_the_parent_come_first():
    segments = filled(10)
    first = segments.take(SLOT, 2, None)
    other = segments.take(SLOT, 2, None)
    segments.give(other[0])
    segments.give(other[1])
    segments.take(SLOT, 1, place(1, 5))
    assert slots(segments.take(SLOT, 3, first[-1])) == [(1, 2), (1, 3), (1, 4)]


def test_the_longest_run_is_looked_for():
    segments = filled(10)
    taken = segments.take(SLOT, 10, None)
    for n in (0, 3, 4, 5, 8):
        segments.give(taken[n])
    assert slots(segments.take(SLOT, 3, None)) == [(1, 3), (1, 4), (1, 5)]
    assert slots(segments.take(SLOT, 5, None)) == [(1, 0), (1, 8)]
    assert segments.free_slots(SLOT) == 0
    segments.check_integrity()


def test_a_second_segment_is_used_when_the_first_is_full():
    segments = filled(2, 3)
    assert slots(segments.take(SLOT, 4, None)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert segments.take(4096 * 3, 1, None) == []


def test_giving_a_slot_of_a_segment_that_is_gone_is_no_error():
    segments = filled(2)
    taken = segments.take(SLOT, 1, None)
    segments.remove(segments.by_number[1])
    segments.give(taken[0])
    assert not list(segments)


@pytest.mark.parametrize("capacity", [MIB, 7 * MIB, 64 * MIB, 1024 * MIB, 10_000 * MIB])
@pytest.mark.parametrize("slot", [8192, 69632, 1052672])
def test_segments_and_what_is_reserved_stay_within_the_capacity(capacity, slot):
    space = Space(capacity)
    charged = count = made = 0
    while more := space.slots_of_next(slot, count, charged):
        charged += space.charge_bytes(more, BLOCK_BYTES + more * slot)
        count += more
        made += 1
    assert charged + space.reserved_bytes(count) <= capacity
    assert made <= 300
    if capacity >= 64 * slot:
        assert count * slot >= 0.9 * capacity - 256 * 1024
    # Not one more slot would fit.
    assert (
        charged + space.charge_bytes(1, BLOCK_BYTES + slot) + space.reserved_bytes(count + 1)
        > capacity
    )


@pytest.mark.parametrize("slots", [300_000, 1_000_000, 4_000_000])
def test_a_page_costs_as_much_checkpoint_in_a_large_store_as_in_a_small_one(slots):
    space = Space(slots * SLOT * 2)
    records = space.journal_bytes(slots) // RECORD_BYTES
    assert 0.9 * slots <= 4 * records <= 1.1 * slots + 4 * 65536


def test_journals_of_small_stores_are_small_and_of_large_ones_bounded():
    assert Space(MIB).journal_bytes(100) == 16384
    assert Space(256 * MIB).journal_bytes(4000) == MIB
    assert Space(10**13).journal_bytes(0) == 65536 * RECORD_BYTES
    assert Space(10**13).journal_bytes(10**8) == 2**20 * RECORD_BYTES


def test_a_journal_that_was_made_long_stays_charged():
    space = Space(10**12)
    before = space.reserved_bytes(1000)
    long = space.allot_journal(10**6)
    assert space.reserved_bytes(1000) - before == 2 * (long - space.journal_bytes(1000)) > 0
    space.allot_journal(1000)
    assert space.reserved_bytes(1000) > before


def test_check_integrity_notices_a_wrong_count():
    segments = filled(4)
    segments.by_number[1].free -= 1
    with pytest.raises(StoreError):
        segments.check_integrity()


@pytest.mark.parametrize("size", [4000, 60_000])
def test_a_store_comes_to_have_the_slots_that_fit(tmp_path, size):
    capacity = 3 * MIB
    slots = slots_that_fit(capacity, slot_bytes_of(size))
    with PageStore(tmp_path / "store", options(capacity)) as store:
        most = 0
        for number in range(2 * slots // 8 + 1):
            store.write(NAMESPACE, pages_of(chain(number, 8), size=size))
            most = max(most, store.stats().pages)
        assert store.stats().evicted
    assert 0.97 * slots - 8 <= most <= slots
