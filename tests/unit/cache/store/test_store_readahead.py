"""Pages that are read before they are asked for."""

import threading
import time

from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.options import MIB

KEYS = chain("a", 20)


def test_pages_that_were_announced_come_from_staging(store):
    write(store, KEYS)
    assert store.prefix(KEYS, read_ahead=True) == 20
    time.sleep(0.3)
    before = store.stats().operations
    assert all(read(store, KEYS))
    assert store.stats().operations == before
    assert store.stats().read_ahead_used == 20
    assert store._staging.free_bytes() == store._staging.size_bytes


def test_read_ahead_stays_within_its_bound_and_goes_on_as_pages_are_taken(tmp_path):
    size = 65536
    bounds = {"staging_bytes": 16 * MIB, "read_ahead_bytes": 8 * (size + 4096)}
    bounds |= {"operation_bytes": 4 * (size + 4096)}
    with PageStore(tmp_path / "s", options(32 * MIB, **bounds)) as store:
        keys = chain("long", 100)
        assert all(write(store, keys, size))
        store.prefix(keys, read_ahead=True)
        for start in range(0, 100, 5):
            time.sleep(0.02)
            held = store._staging.size_bytes - store._staging.free_bytes()
            assert held <= bounds["read_ahead_bytes"]
            assert all(read(store, keys[start : start + 5], size))
        assert store.stats().read_ahead_used > 50


def test_no_page_is_read_ahead_twice(tmp_path):
    size = 65536
    bounds = {"read_ahead_bytes": 8 * (size + 4096), "operation_bytes": 4 * (size + 4096)}
    with PageStore(tmp_path / "s", options(32 * MIB, **bounds)) as store:
        keys = chain("long", 100)
        assert all(write(store, keys, size))
        before = store.stats().read_bytes
        store.prefix(keys, read_ahead=True)
        for start in range(0, 100, 4):
            assert all(read(store, keys[start : start + 4], size))
        time.sleep(0.1)
        assert store.stats().read_bytes - before == 100 * (size + 4096)


class Busy:
    """Keeps a worker until ``free`` is set."""

    def __init__(self, free):
        self.run = free.wait


def test_two_readers_of_one_run_that_no_worker_has_begun_with(tmp_path, monkeypatch):
    """The second took its page when the first took the run back from the queue."""
    with PageStore(tmp_path / "s", options(stall_s=60.0)) as store:
        write(store, KEYS)
        free, both, cancel = threading.Event(), threading.Barrier(2), store._engine.cancel_ahead

        def cancel_together(run):
            both.wait(10)
            try:
                return cancel(run)
            finally:
                free.set()

        monkeypatch.setattr(store._engine, "cancel_ahead", cancel_together)
        store._engine.submit([Busy(free) for _ in range(4)], "read")
        store.prefix(KEYS, read_ahead=True)
        results = {}

        def work(number):
            results[number] = read(store, [KEYS[number]])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert results == {0: [True], 1: [True]}
        assert store._reader.ahead._held_bytes == 0


def test_a_page_that_is_announced_twice_is_read_once(store):
    write(store, KEYS[:3])
    store.prefix([*KEYS[:3], *KEYS[:3]], read_ahead=True)
    assert all(read(store, KEYS[:3]))
    store._reader.ahead.forget()
    store._engine.call(lambda: None, "write", time.monotonic() + 10)  # behind the read-ahead
    assert store._reader.ahead._held_bytes == 0
    assert store._staging.free_bytes() == store._staging.size_bytes


def test_a_page_that_is_larger_than_the_room_is_not_read_ahead(tmp_path):
    with PageStore(tmp_path / "s", options(read_ahead_bytes=65536)) as store:
        assert all(write(store, KEYS[:3], 100_000))
        assert store.prefix(KEYS[:3], read_ahead=True) == 3
        assert all(read(store, KEYS[:3], 100_000))
        assert store.stats().read_ahead_pages == 0


def test_what_nobody_takes_is_given_up(tmp_path):
    with PageStore(tmp_path / "s", options(read_ahead_s=0.1, sync_interval_s=0.05)) as store:
        write(store, KEYS)
        store.prefix(KEYS, read_ahead=True)
        end = time.monotonic() + 5
        while store._staging.free_bytes() < store._staging.size_bytes or time.monotonic() < end - 4:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert all(read(store, KEYS))


def test_read_ahead_of_what_is_dropped_meanwhile(store):
    write(store, KEYS)
    store.prefix(KEYS, read_ahead=True)
    store.clear()
    assert not any(read(store, KEYS))
    write(store, KEYS)
    assert all(read(store, KEYS))


def test_read_ahead_of_a_damaged_page_is_a_miss(tmp_path):
    with PageStore(tmp_path / "s", options()) as store:
        write(store, KEYS)
        path = tmp_path / "s/segments/000001.seg"
        with path.open("r+b") as file:
            file.seek(4096 + 3 * 12288 + 5000)
            file.write(b"XXXX")
        store.prefix(KEYS, read_ahead=True)
        time.sleep(0.2)
        hits = read(store, KEYS)
        assert hits[:4] == [True, True, True, False]
        assert store.prefix(KEYS) == 3
