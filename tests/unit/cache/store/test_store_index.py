"""The index: a prefix-closed tree whose leaves go least recently used first."""

import random

import pytest

from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.errors import StoreError


def key(number):
    return number.to_bytes(32, "little")


def grow(index, number, parent=None, time_us=0, kind=0):
    above = NO_ROW if parent is None else index.rows[key(parent)]
    return index.add(key(number), above, number, 100, kind, time_us)


def numbers(gone):
    return [int.from_bytes(k, "little") for k, _ in gone]


def test_leaves_go_least_recently_used_first():
    index = Index()
    for number in range(5):
        grow(index, number, time_us=10 - number)
    assert numbers(index.evict(0, 2)) == [4, 3]
    index.check_integrity()


def test_a_parent_goes_after_its_children():
    index = Index()
    for number in range(5):
        grow(index, number, number - 1 if number else None, time_us=1)
    assert numbers(index.evict(0, 99)) == [4, 3, 2, 1, 0]
    assert len(index) == 0


def test_touching_a_page_refreshes_its_ancestors():
    index = Index()
    for name, start in (("old", 0), ("new", 10)):
        for number in range(start, start + 3):
            grow(index, number, number - 1 if number != start else None, 1 if name == "old" else 5)
    index.touch(index.rows[key(2)], 9)
    assert numbers(index.evict(0, 6)) == [12, 11, 10, 2, 1, 0]


def test_touching_an_ancestor_does_not_refresh_its_descendants():
    index = Index()
    grow(index, 0, time_us=1)
    grow(index, 1, 0, time_us=1)
    grow(index, 2, time_us=2)
    index.touch(index.rows[key(0)], 9)
    assert numbers(index.evict(0, 2)) == [1, 2]


def test_of_equal_times_the_deeper_goes_first():
    index = Index()
    grow(index, 0, time_us=1)
    grow(index, 1, 0, time_us=1)
    grow(index, 2, 1, time_us=1)
    grow(index, 3, time_us=1)
    assert numbers(index.evict(0, 4)) == [2, 1, 0, 3] or numbers(index.evict(0, 4)) == []
    index.check_integrity()


def test_pinned_rows_stay_and_can_go_later():
    index = Index()
    grow(index, 0, time_us=1)
    grow(index, 1, time_us=2)
    row = index.rows[key(0)]
    index.pin(row)
    index.pin(row)
    assert numbers(index.evict(0, 2)) == [1]
    index.unpin(row)
    assert numbers(index.evict(0, 2)) == []
    index.unpin(row)
    assert numbers(index.evict(0, 2)) == [0]


def test_chains_without_the_asked_kind_stay():
    index = Index()
    grow(index, 0, time_us=1, kind=1)
    grow(index, 1, time_us=2, kind=0)
    assert numbers(index.evict(0, 9)) == [1]
    assert index.next_to_go(0) is None
    assert index.next_to_go(1) == 1


def alternating(index, name, pages, time_us):
    """A chain of pages of kinds 0, 1, 0, 1, …"""
    start = 100 * name
    for number in range(start, start + pages):
        grow(index, number, number - 1 if number != start else None, time_us, number % 2)


def test_leaves_of_another_kind_go_where_they_end_a_chain_with_the_asked_one():
    index = Index()
    for name in (1, 2, 3):
        alternating(index, name, 4, time_us=name)
    assert numbers(index.evict(0, 1)) == [103, 102]
    assert numbers(index.evict(1, 1)) == [101]
    assert numbers(index.evict(0, 2)) == [100, 203, 202]
    index.check_integrity()
    assert numbers(index.evict(0, 99)) == [201, 200, 303, 302, 301, 300]


def test_a_pinned_leaf_of_another_kind_keeps_what_is_above_it():
    index = Index()
    alternating(index, 1, 2, time_us=1)
    alternating(index, 2, 2, time_us=2)
    index.pin(index.rows[key(101)])
    assert numbers(index.evict(0, 2)) == [201, 200]
    index.unpin(index.rows[key(101)])
    assert numbers(index.evict(0, 2)) == [101, 100]


def test_rows_of_one_kind_that_were_queued_are_evicted_as_another():
    index = Index()
    for name in range(50):
        for number in range(20 * name, 20 * name + 20):
            grow(index, number, number - 1 if number % 20 else None, number)
    index.evict(0, 0)  # every leaf has its entry
    for row in [row for row in index.rows.values() if not index.depth[row]]:
        index.remove_tree(row)
    for number in range(1000, 2000):
        grow(index, number, number - 1 if number % 20 else None, number, kind=1)
    index.check_integrity()
    assert len(index.evict(1, 9999)) == 1000
    index.check_integrity()


def test_more_kinds_than_heaps_are_told_apart():
    index = Index()
    for number in range(40):
        grow(index, number, time_us=number, kind=number)
    index.check_integrity()
    for number in range(40):
        assert number in numbers(index.evict(number, 1)) or key(number) not in index.rows
    assert len(index) < 16


def test_a_queued_leaf_that_got_a_child_stays():
    index = Index()
    grow(index, 0, time_us=1)
    assert index.next_to_go(0) == 1  # in the queue now
    grow(index, 1, 0, time_us=2)
    grow(index, 2, time_us=3)
    assert numbers(index.evict(0, 1)) == [1]
    assert numbers(index.evict(0, 1)) == [0]


def test_removing_a_tree_gives_children_before_parents():
    index = Index()
    grow(index, 0)
    grow(index, 1, 0)
    grow(index, 2, 0)
    grow(index, 3, 1)
    gone = numbers(index.remove_tree(index.rows[key(0)]))
    assert sorted(gone) == [0, 1, 2, 3]
    assert gone.index(3) < gone.index(1) < gone.index(0)
    index.check_integrity()


def test_a_row_that_was_used_again_goes_by_its_new_page():
    index = Index()
    grow(index, 0, time_us=1)
    index.next_to_go(0)
    index.remove_tree(index.rows[key(0)])
    grow(index, 1, time_us=7, kind=1)  # the same row, another kind
    grow(index, 2, time_us=3)
    assert numbers(index.evict(0, 9)) == [2]
    assert numbers(index.evict(1, 9)) == [1]


def test_random_trees_keep_their_invariants():
    chance = random.Random(5)
    index, parents = Index(), {}
    for number in range(2000):
        alive = [n for n in parents if key(n) in index.rows]
        what = chance.random()
        if what < 0.6 or not alive:
            parent = chance.choice([None, *alive]) if alive else None
            parents[number] = parent
            grow(index, number, parent, number, chance.randrange(3))
        elif what < 0.8:
            index.touch(index.rows[key(chance.choice(alive))], number)
        elif what < 0.9:
            index.evict(chance.randrange(3), chance.randrange(1, 6))
        else:
            index.remove_tree(index.rows[key(chance.choice(alive))])
        if number % 50 == 0:
            index.check_integrity()
        for n, parent in parents.items():
            if parent is not None and key(n) in index.rows:
                assert key(parent) in index.rows


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.parent.__setitem__(1, 2),
        lambda index: index.depth.__setitem__(1, 5),
        lambda index: index.child.__setitem__(0, NO_ROW),
        lambda index: index.free.append(1),
        lambda index: index.rows.pop(key(2)),
        lambda index: index.keys.__setitem__(3, 99),
        lambda index: setattr(index, "payload_total_bytes", 1),
        lambda index: index.reach.__setitem__(2, 2),
        lambda index: index._heaps.clear(),
        lambda index: index._queued.__setitem__(2, 0),
    ],
)
def test_check_integrity_notices(damage):
    index = Index()
    grow(index, 0)
    grow(index, 1, 0)
    grow(index, 2, 1)
    index.next_to_go(0)  # everything is queued
    index.check_integrity()
    damage(index)
    with pytest.raises(StoreError):
        index.check_integrity()


def chain(index, first, count, time_us):
    for number in range(first, first + count):
        grow(index, number, number - 1 if number > first else None, time_us=time_us)


def test_what_is_named_goes_before_all_others_with_its_chain():
    index = Index()
    chain(index, 0, 3, 10)
    chain(index, 10, 3, 20)
    index.evict_first(key(12), 30)
    assert numbers(index.evict(0, 2)) == [12, 11]
    index.check_integrity()
    assert numbers(index.evict(0, 2)) == [10, 2], "what is left of the chain, then recency"
    index.check_integrity()


def test_what_is_left_of_a_chain_keeps_its_name():
    index = Index()
    index.ends.know(key(3), None)
    chain(index, 0, 4, 10)
    chain(index, 10, 3, 20)
    assert numbers(index.evict(0, 1)) == [3]
    assert index.ends.row_of(key(3)) == index.rows[key(2)]
    index.check_integrity()
    index.touch(index.rows[key(2)], 40)
    index.evict_first(key(3), 50)
    assert numbers(index.evict(0, 1)) == [2]
    assert index.ends.name_of(index.rows[key(1)]) is None
    index.check_integrity()


def test_a_name_ends_where_others_go_on():
    index = Index()
    chain(index, 0, 3, 10)
    grow(index, 5, 1, time_us=20)
    index.ends.know(key(2), index.rows[key(2)])
    assert numbers(index.evict(0, 1)) == [2]
    index.evict_first(key(2), 30)
    assert numbers(index.evict(0, 1)) == [5]
    index.check_integrity()


def test_what_is_named_and_used_stays():
    index = Index()
    chain(index, 0, 2, 10)
    chain(index, 10, 2, 20)
    for number in (11, 99):
        index.evict_first(key(number), 30)
    assert len(index.first) == 1, "what is not there takes no place"
    index.touch(index.rows[key(11)], 40)
    assert numbers(index.evict(0, 2)) == [1, 0]
    assert not index.first


def test_what_is_named_has_no_children_and_is_not_read():
    index = Index()
    chain(index, 0, 3, 10)
    chain(index, 10, 2, 5)
    index.evict_first(key(1), 30)
    index.evict_first(key(2), 30)
    index.pin(index.rows[key(2)])
    assert numbers(index.evict(0, 9)) == [11, 10]
    index.unpin(index.rows[key(2)])
    index.check_integrity()


def test_the_oldest_leaf_that_nobody_looks_after():
    index = Index()
    assert index.oldest_stranger() == NO_ROW
    for number in range(4):
        grow(index, number, time_us=10 + number)
    for number in (0, 2):
        index.ends.know(key(number), index.rows[key(number)])
    assert index.oldest_stranger() == index.rows[key(1)]
    index.touch(index.rows[key(1)], 40)
    assert index.oldest_stranger() == index.rows[key(3)]
    assert numbers(index.evict(0, 2)) == [0, 2], "what is looked after goes by use, too"
    index.check_integrity()


def test_order_with_advice_holds_together_in_random_steps():
    rng = random.Random(4)
    index, held = Index(), []
    for step in range(3000):
        what = rng.random()
        live = [number for number in held if key(number) in index.rows]
        if what < 0.5 or not live:
            grow(index, step, rng.choice(live) if live and rng.random() < 0.8 else None, step)
            held = [*live, step]
        elif what < 0.6:
            index.touch(index.rows[key(rng.choice(live))], step)
        elif what < 0.63:
            name = key(rng.choice([*live, step + 1]))
            index.ends.know(name, index.rows.get(name))
        elif what < 0.65:
            index.ends.forget(key(rng.choice(live)))
        elif what < 0.7:
            index.evict_first(key(rng.choice(live)), step)
        elif what < 0.8:
            found = index.oldest_stranger()
            assert found == NO_ROW or index.ends.name_of(found) is None
        else:
            wanted = rng.randrange(1, 5)
            assert len(index.evict(0, wanted)) == min(wanted, len(live))
        index.check_integrity()
