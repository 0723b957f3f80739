"""What stays and what goes when a store is full, and the bounds of its writes."""

import contextlib

import pytest
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.options import MIB

KEYS = chain("a", 20)


def allocated_bytes(folder):
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a journal that a checkpoint has replaced
            total += path.stat().st_blocks * 512 * path.is_file()
    return total


@pytest.mark.parametrize("size", [3000, 8000, 65536])
def test_the_capacity_is_never_exceeded(tmp_path, size):
    capacity = 3 * MIB
    with PageStore(tmp_path / "s", options(capacity, sync_interval_s=0.01)) as store:
        for number in range(1500 * 3000 // size):
            write(store, chain(number, 5), size)
            assert allocated_bytes(tmp_path / "s") <= capacity
        store.check_integrity()
        assert store.stats().evicted
        assert store.stats().used_bytes > 0.7 * capacity
    assert allocated_bytes(tmp_path / "s") <= capacity


def test_reachable(tmp_path):
    """20-page shared prefix and 4 x 100-page chains into room for 350 pages: all of it is used."""
    size = 65536
    with PageStore(tmp_path / "s", options(350 * size, staging_bytes=64 * MIB)) as store:
        shared = chain("shared", 20)
        assert all(write(store, shared, size))
        tails = [chain(("tail", number), 100) for number in range(4)]
        for tail in tails:
            write(store, tail, size, parent=shared[-1])
        stored = store.stats().pages
        assert stored >= 300
        reachable = store.prefix(shared)
        assert reachable == 20
        for tail in tails:
            count = store.prefix(tail)
            assert all(read(store, tail[:count], size))
            reachable += count
        assert reachable / stored == 1.0
        store.check_integrity()


def fill(store):
    """Write chains until pages go; returns how many were written."""
    number = 0
    while not store.stats().evicted:
        write(store, chain(("filler", number), 10))
        number += 1
    return number


def test_chains_lose_their_ends_first(tmp_path):
    with PageStore(tmp_path / "s", options(MIB)) as store:
        write(store, chain("old", 20))
        fill(store)
        keys = chain("old", 20)
        count = store.prefix(keys)
        assert 0 < count < 20
        assert read(store, keys) == [True] * count + [False] * (20 - count)


@pytest.mark.parametrize("use", ["read", "touch", "write"])
def test_what_was_used_stays(tmp_path, use):
    with PageStore(tmp_path / "s", options(MIB)) as store:
        write(store, chain("used", 10))
        write(store, chain("unused", 10))
        for number in range(60):
            if use == "read":
                read(store, chain("used", 10))
            elif use == "touch":
                store.touch(chain("used", 10)[-1])
            else:
                write(store, chain("used", 10))
            write(store, chain(number, 5))
        assert store.prefix(chain("used", 10)) == 10
        assert store.prefix(chain("unused", 10)) == 0


def test_using_pages_alone_asks_for_no_checkpoint_after_another(tmp_path):
    with PageStore(tmp_path / "s", options(MIB)) as store:
        keys = [chain(number, 1)[0] for number in range(60)]
        for key in keys:
            assert write(store, [key]) == [True]
        store._keeper._checkpoint_now()
        before = store.stats().checkpoints
        for _ in range(20):
            for key in keys:
                store.touch(key)
            store.flush()
            store._keeper._checkpoint_now()
        assert store.stats().checkpoints <= before + 1


def test_a_batch_larger_than_the_store_keeps_its_beginning(tmp_path):
    with PageStore(tmp_path / "s", options(MIB)) as store:
        keys = chain("large", 300)
        hits = write(store, keys)
        count = hits.index(False)
        assert count > 40
        assert hits == [True] * count + [False] * (300 - count)
        assert store.prefix(keys) == count
        store.check_integrity()


def test_another_slot_size_takes_over_the_room(tmp_path):
    with PageStore(tmp_path / "s", options(2 * MIB)) as store:
        for number in range(30):
            write(store, chain(number, 10), 8000)
        for number in range(30):
            assert any(write(store, chain(("big", number), 4), 60_000))
            store.check_integrity()
        assert store.prefix(chain(("big", 29), 4)) == 4
        for number in range(30):
            read(store, chain(number, 10), 8000)
            read(store, chain(("big", number), 4), 60_000)


def test_a_chain_is_read_in_few_operations(tmp_path):
    with PageStore(tmp_path / "s", options(64 * MIB, staging_bytes=32 * MIB)) as store:
        keys = chain("long", 64)
        for start in range(0, 64, 16):
            parent = keys[start - 1] if start else None
            write(store, keys[start : start + 16], 32768, parent)
        before = store.stats().operations
        assert all(read(store, keys, 32768))
        assert store.stats().operations - before <= 6


def test_the_write_budget_holds_and_is_reported(tmp_path):
    limit = 10 * 12288
    with PageStore(tmp_path / "s", options(write_limit_bytes_per_day=limit)) as store:
        assert write(store, KEYS) == [True] * 10 + [False] * 10
        assert store.stats().refused == {"budget": 10}
        assert store.stats().written_today_bytes == limit
    with PageStore(tmp_path / "s", options(write_limit_bytes_per_day=limit)) as store:
        assert write(store, chain("b", 2)) == [False, False]
        assert all(write(store, KEYS[:10])), "what is there needs no writing"


def test_second_admits_what_comes_again(tmp_path):
    with PageStore(tmp_path / "s", options(admission="second")) as store:
        assert not any(write(store, KEYS))
        assert store.stats().refused == {"admission": 20}
        assert all(write(store, KEYS))
