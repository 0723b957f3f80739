"""The store as its callers see it: reads, writes, eviction, bounds, faults."""

import contextlib
import errno
import os
import threading
import time

import numpy as np
import pytest
from support.store_crash import crash
from support.store_disks import FaultyDisk, fail_all
from support.store_pages import (
    NAMESPACE,
    OTHER_NAMESPACE,
    chain,
    key_of,
    options,
    pages_of,
    payload,
    read,
    write,
)

from sglang_ext.cache.store import Page, PageStore
from sglang_ext.cache.store import reader as reader_module
from sglang_ext.cache.store import transfer as transfer_module
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import ConfigError, StoreError

KEYS = chain("a", 20)


@pytest.fixture
def store(tmp_path):
    with PageStore(tmp_path / "store", options()) as store:
        yield store
        store.check_integrity()


@pytest.fixture
def disk():
    return FaultyDisk()


@pytest.fixture
def faulty(tmp_path, disk):
    """A store on a disk that can fail; calls give up after half a second."""
    store = PageStore(tmp_path / "store", options(stall_s=0.5), disk=disk)
    yield store
    disk.fault = lambda *what: 0
    disk.resume()
    store.close()


def healthy_again(store, act):
    """Whether ``act`` succeeds within ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if act():
            return True
        time.sleep(0.05)
    return False


def test_what_was_written_is_read(store):
    assert store.prefix(KEYS) == 0
    assert all(write(store, KEYS))
    assert store.prefix(KEYS) == 20
    assert all(read(store, KEYS))
    stats = store.stats()
    assert (stats.pages, stats.hits, stats.misses) == (20, 20, 0)
    assert stats.payload_bytes == 20 * 8000


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000, MIB])
@pytest.mark.parametrize("pieces", [1, 3])
def test_pages_of_any_size_and_number_of_pieces(store, size, pieces):
    keys = chain(size, 2)
    assert all(store.write(NAMESPACE, pages_of(keys, size, pieces=pieces)))
    assert all(read(store, keys, size))


def test_numpy_arrays_are_buffers(store):
    data = np.arange(3000, dtype=np.float32).reshape(2, 1500)
    assert store.write(NAMESPACE, [Page(KEYS[0], None, [data[0], data[1]])]) == [True]
    target = np.zeros_like(data)
    assert store.read(NAMESPACE, KEYS[:1], [[target[0], target[1]]]) == [True]
    assert (target == data).all()


def test_the_prefix_ends_at_the_first_page_that_is_missing(store):
    write(store, KEYS[:5])
    assert store.prefix([*KEYS[:5], key_of("no"), *KEYS[:5]]) == 5
    assert store.prefix([]) == 0


def test_what_is_resident_may_be_asked_for_pages_of_any_chain(store):
    write(store, KEYS[:5])
    assert store.resident([KEYS[4], key_of("no"), KEYS[0]]) == [True, False, True]
    assert store.resident([]) == []


def test_reading_goes_on_after_a_miss(store):
    write(store, KEYS[:5])
    keys = [KEYS[0], key_of("no"), KEYS[1]]
    assert read(store, keys) == [True, False, True]
    assert store.stats().misses == 1


def test_the_same_page_twice_in_a_call(store):
    pages = pages_of(KEYS[:2])
    assert store.write(NAMESPACE, [pages[0], pages[0], pages[1]]) == [True] * 3
    assert read(store, [KEYS[0], KEYS[0], KEYS[1]]) == [True] * 3
    assert store.stats().written_pages == 2


def test_a_duplicate_is_true_and_writes_nothing(store):
    write(store, KEYS)
    operations = store.stats().operations
    assert all(write(store, KEYS))
    assert store.stats().operations == operations
    assert store.stats().duplicates == 20


def test_a_page_without_its_parent_is_refused(store):
    assert write(store, KEYS[3:5], parent=KEYS[2]) == [False, False]
    assert store.stats().refused == {"orphan": 2}
    write(store, KEYS[:3])
    assert write(store, KEYS[3:5], parent=KEYS[2]) == [True, True]


def test_a_child_before_its_parent_is_refused(store):
    pages = pages_of(KEYS[:2])
    assert store.write(NAMESPACE, [pages[1], pages[0]]) == [False, True]


def test_another_namespace_is_a_miss(store):
    write(store, KEYS[:2])
    assert read(store, KEYS[:1], namespace=OTHER_NAMESPACE) == [False]
    assert store.stats().dropped == {"namespace": 2}


def test_another_length_is_a_miss(store):
    write(store, KEYS[:1])
    assert store.read(NAMESPACE, KEYS[:1], [[bytearray(7999)]]) == [False]
    assert store.stats().dropped == {"length": 1}


@pytest.mark.parametrize("read_ahead", [False, True])
def test_another_namespace_is_a_miss_when_read_ahead(store, read_ahead):
    write(store, KEYS)
    store.prefix(KEYS, read_ahead=True)
    time.sleep(0.2)
    assert not any(read(store, KEYS, namespace=OTHER_NAMESPACE))


@pytest.mark.parametrize(
    "call",
    [
        lambda store: store.prefix([b"short"]),
        lambda store: store.resident([b"short"]),
        lambda store: store.touch(b""),
        lambda store: store.read(b"short", [], []),
        lambda store: store.read(NAMESPACE, KEYS[:2], [[bytearray(8000)]]),
        lambda store: store.read(NAMESPACE, KEYS[:1], [[b"not writable"]]),
        lambda store: store.read(NAMESPACE, KEYS[:1], [[np.zeros((4, 4), np.uint8)[:, 1]]]),
        lambda store: store.write(b"short", []),
        lambda store: store.write(NAMESPACE, [Page(b"short", None, [])]),
        lambda store: store.write(NAMESPACE, [Page(KEYS[0], b"short", [])]),
        lambda store: store.write(NAMESPACE, [Page(KEYS[0], None, [bytes(3 * MIB)])]),
    ],
)
def test_wrong_arguments_raise(store, call):
    with pytest.raises(ValueError, match=r"\w"):
        call(store)


@pytest.mark.parametrize(
    "wrong",
    [
        {"capacity_bytes": 1000},
        {"io_threads": 1},
        {"staging_bytes": MIB},
        {"operation_bytes": 5000},
        {"stall_s": 0},
        {"admission": "third"},
        {"write_limit_bytes_per_day": -1},
    ],
)
def test_wrong_options_raise(wrong):
    with pytest.raises(ConfigError):
        options(**wrong)


def test_a_closed_store_answers_with_misses(tmp_path):
    store = PageStore(tmp_path / "s", options())
    write(store, KEYS)
    store.close()
    store.close()
    assert store.prefix(KEYS) == 0
    assert not any(store.resident(KEYS))
    assert not any(read(store, KEYS))
    assert not any(write(store, KEYS))
    store.touch(KEYS[0])
    store.flush()


# Eviction and bounds


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


# Faults


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_failing_read_is_a_miss_and_comes_back(faulty, disk, code, caplog):
    write(faulty, KEYS)
    disk.fault = fail_all(code, "read")
    for _ in range(50):
        assert not any(read(faulty, KEYS))
    stats = faulty.stats()
    assert stats.errors[errno.errorcode[code]] >= 1
    assert not stats.healthy
    assert stats.pages == 20, "a disk that is away for a moment costs no page"
    assert len(caplog.records) < 5
    disk.fault = lambda *what: 0
    assert healthy_again(faulty, lambda: all(read(faulty, KEYS)))
    assert faulty.stats().healthy


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("operations", [("write",), ("write", "sync", "allocate", "open")])
def test_a_failing_write_is_false_and_comes_back(faulty, disk, code, operations):
    write(faulty, KEYS[:5])
    disk.fault = fail_all(code, *operations)
    for _ in range(20):
        assert not any(write(faulty, chain("b", 5)))
    faulty.check_integrity()
    assert faulty.stats().refused["disk"] >= 100 - 5
    assert all(read(faulty, KEYS[:5])), "what is there is still read"
    disk.fault = lambda *what: 0
    assert healthy_again(faulty, lambda: all(write(faulty, chain("b", 5))))
    assert all(read(faulty, chain("b", 5)))
    faulty.check_integrity()


def test_a_full_disk_stops_growth_and_older_pages_go(faulty, disk):
    write(faulty, KEYS)
    disk.fault = lambda operation, path, offset: (
        errno.ENOSPC if operation == "allocate" and path.suffix == ".seg" else 0
    )
    for number in range(20):
        write(faulty, chain(number, 10))
    assert faulty.stats().evicted
    assert all(read(faulty, chain(19, 10)))
    faulty.check_integrity()


def test_a_journal_that_fails_refuses_pages(faulty, disk):
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "write" and ".log" in path.name else 0
    )
    assert not any(write(faulty, KEYS))
    disk.fault = lambda *what: 0
    assert healthy_again(faulty, lambda: all(write(faulty, KEYS)))
    faulty.check_integrity()


def test_a_bad_spot_costs_its_pages_and_heals(faulty, disk):
    write(faulty, KEYS)
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "read" and path.suffix == ".seg" and offset == 4096 else 0
    )
    assert not read(faulty, KEYS[:1])[0]
    assert faulty.prefix(KEYS) == 20, "once may be a disk that is away"
    assert healthy_again(faulty, lambda: read(faulty, KEYS[10:11])[0])

    def gone():
        read(faulty, KEYS[:1])
        read(faulty, KEYS[10:11])
        return faulty.prefix(KEYS) == 0

    assert healthy_again(faulty, gone)
    assert faulty.stats().dropped["unreadable"]
    disk.fault = lambda *what: 0
    assert healthy_again(faulty, lambda: all(write(faulty, KEYS)) and all(read(faulty, KEYS)))
    faulty.check_integrity()


def outage(store, disk, keys):
    """The disk is away for one read and comes back."""
    disk.fault = fail_all(errno.EIO, "read")
    assert not any(read(store, keys))
    disk.fault = lambda *what: 0
    store._reader.health._until = 0.0  # the pause is over


def test_a_page_that_was_read_well_in_between_survives_outages(faulty, disk):
    write(faulty, KEYS)
    for _ in range(5):
        outage(faulty, disk, KEYS[:1])
        assert all(read(faulty, KEYS))
    assert faulty.stats().pages == 20
    assert faulty.stats().dropped == {}


def test_what_failed_in_an_outage_is_no_bad_spot(faulty, disk):
    write(faulty, KEYS)
    for _ in range(3):
        outage(faulty, disk, KEYS[:1])
        outage(faulty, disk, KEYS[5:6])  # still away
        assert all(read(faulty, KEYS[10:11]))
    assert faulty.stats().dropped == {}


def test_another_page_in_the_place_of_a_suspect_is_none(faulty, disk):
    write(faulty, KEYS[:1])
    outage(faulty, disk, KEYS[:1])
    faulty.drop(KEYS[0])
    other = chain("b", 2)
    write(faulty, other)
    assert read(faulty, other[1:]) == [True]
    outage(faulty, disk, other[:1])
    assert faulty.prefix(other) == 2


def test_a_bad_spot_is_found_after_any_number_of_others(faulty, disk, monkeypatch):
    monkeypatch.setattr(reader_module, "_MOST_SUSPECTS", 3)
    write(faulty, KEYS)
    for key in KEYS[:10]:
        outage(faulty, disk, [key])
        assert read(faulty, KEYS[15:16]) == [True]
    outage(faulty, disk, KEYS[9:10])
    assert faulty.prefix(KEYS) == 9
    assert len(faulty._reader._suspects) <= 3


def test_children_of_a_page_that_was_not_written_are_not_resident(faulty, disk):
    size = 600_000  # a segment each
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "write" and path.name == "000002.seg" and offset else 0
    )
    assert write(faulty, KEYS[:4], size) == [True, False, False, False]
    assert faulty.stats().pages == faulty.prefix(KEYS)
    faulty.check_integrity()


@pytest.mark.parametrize("suffixes", [(".log", ".partial"), (".seg",)])
def test_a_sync_that_fails_is_told_and_tried_again(tmp_path, disk, suffixes):
    store = PageStore(tmp_path / "s", options(sync_interval_s=0.05), disk=disk)
    assert all(write(store, KEYS[:5]))  # there is a segment
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "sync" and path.suffix in suffixes else 0
    )
    write(store, KEYS[:10])
    for _ in range(3):
        time.sleep(0.03)  # the store's own thread tries as well
        with pytest.raises(StoreError, match="durable"):
            store.flush()
    disk.fault = lambda *what: 0
    assert healthy_again(store, lambda: all(write(store, KEYS)))
    assert healthy_again(store, lambda: store.flush() is None)
    store.check_integrity()
    crash(store)
    with PageStore(tmp_path / "s", options()) as store:
        assert all(read(store, KEYS))


def test_a_disk_that_hangs_costs_misses_and_touches_no_memory(faulty, disk):
    write(faulty, KEYS)
    disk.hang()
    targets = [[bytearray(4000), bytearray(4000)] for _ in KEYS]
    begin = time.monotonic()
    assert not any(faulty.read(NAMESPACE, KEYS, targets))
    assert 0.4 < time.monotonic() - begin < 3
    assert faulty.stats().errors["STALL"] == 1
    begin = time.monotonic()
    assert not any(read(faulty, KEYS))
    assert not any(write(faulty, chain("b", 3)))
    assert faulty.prefix(KEYS) == 20
    disk.resume()
    time.sleep(0.3)
    assert not any(any(piece) for target in targets for piece in target), "written into too late"
    assert healthy_again(faulty, lambda: all(read(faulty, KEYS)))
    faulty.check_integrity()


def test_a_write_that_hangs_never_stores_what_the_caller_changed_since(faulty, disk):
    write(faulty, KEYS[:1])
    disk.hang()
    many = chain("many", 40)  # more operations than workers: some have not been copied
    buffers = [bytearray(payload(key, 500_000)) for key in many]
    pages = [Page(key, None, [buffer]) for key, buffer in zip(many, buffers, strict=True)]
    assert not any(faulty.write(NAMESPACE, pages[:8]))
    for buffer in buffers:
        buffer[:] = bytes(len(buffer))
    disk.resume()
    assert healthy_again(faulty, lambda: all(write(faulty, chain("later", 1))))
    for key in many:
        read(faulty, [key], 500_000)  # a hit with other bytes would fail
    faulty.check_integrity()


def test_an_unforeseen_failure_of_verification_is_a_miss(store, monkeypatch):
    write(store, KEYS)
    monkeypatch.setattr(transfer_module, "mismatch", lambda *what: 1 / 0)
    assert not any(read(store, KEYS))
    monkeypatch.undo()
    assert all(read(store, KEYS))


def test_without_direct_io(tmp_path):
    with PageStore(tmp_path / "s", options(direct=False)) as store:
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
        assert not store.stats().direct


def test_a_file_system_without_direct_io_is_noted(tmp_path, disk, caplog):
    opened = disk.open

    def no_direct(path, flags):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return opened(path, flags)

    disk.open = no_direct
    with PageStore(tmp_path / "s", options(), disk=disk) as store:
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
        assert not store.stats().direct
    assert "O_DIRECT" in caplog.text


def test_many_threads(tmp_path):
    failures = []

    def work(store, name):
        try:
            for number in range(15):
                keys = chain((name, number % 4), 8)
                write(store, keys)
                store.prefix(keys, read_ahead=number % 2 == 0)
                read(store, keys)
                store.touch(keys[-1])
        except Exception as error:
            failures.append(error)

    with PageStore(tmp_path / "s", options(2 * MIB, sync_interval_s=0.01)) as store:
        threads = [threading.Thread(target=work, args=(store, name)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        store.check_integrity()
        assert not store.stats().dropped


# Read-ahead


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
