"""What ``flush`` promises, with a disk that fails, and what that may cost in space."""

import contextlib
import errno
import itertools
import os
import time

import pytest
from support.store_crash import crash
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import StoreError

KEYS = chain("a", 6)


def is_checkpoint(path):
    return path.name.startswith("index-")


def until(condition):
    """Tried again while the store pauses after a fault."""
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


def no_checkpoint(operation, path, offset):
    return errno.ENOSPC if operation == "allocate" and is_checkpoint(path) else 0


def no_journal_sync(operation, path, offset):
    return errno.EIO if operation == "sync" and path.suffix == ".log" else 0


def test_flush_fails_until_a_checkpoint_has_what_a_sync_has_lost(tmp_path, disk):
    store = PageStore(tmp_path / "s", options(), disk=disk)
    assert all(write(store, KEYS[:3]))
    store.flush()
    assert all(write(store, KEYS[3:], parent=KEYS[2]))
    disk.fault = no_journal_sync
    with pytest.raises(StoreError, match="durable"):
        store.flush()
    disk.fault = no_checkpoint
    for _ in range(3):
        with pytest.raises(StoreError, match="durable"):
            store.flush()
    disk.fault = lambda *what: 0
    checkpoints = store.stats().checkpoints
    store.flush()
    assert store.stats().checkpoints == checkpoints + 1
    store.check_integrity()
    crash(store)
    with PageStore(tmp_path / "s", options()) as store:
        assert all(read(store, KEYS))


def test_clearing_takes_what_can_be_removed_and_tells_of_the_rest(tmp_path, disk):
    with PageStore(tmp_path / "s", options(), disk=disk) as store:
        assert all(write(store, chain("many", 40)))
        disk.fault = lambda operation, path, offset: (
            errno.EIO if (operation, path.name) == ("remove", "000001.seg") else 0
        )
        with pytest.raises(StoreError, match="could not be removed"):
            store.clear()
        assert store.prefix(chain("many", 1)) == 0
        assert [path.name for path in tmp_path.glob("s/segments/*")] == ["000001.seg"]
        disk.fault = lambda *what: 0
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
        store.check_integrity()


@pytest.mark.parametrize("operation", ["write", "remove", "sync_folder"])
def test_clearing_a_disk_that_hangs_returns_and_is_done_later(tmp_path, disk, operation):
    store = PageStore(tmp_path / "s", options(stall_s=0.3), disk=disk)
    assert all(write(store, KEYS))
    disk.hang(lambda what, path: what == operation)
    try:
        begin = time.monotonic()
        with pytest.raises(StoreError, match="hangs"):
            store.clear()
        with pytest.raises(StoreError, match="hangs"):
            store.clear()
        assert not any(write(store, chain("b", 3))), "it would be cleared as well"
        assert time.monotonic() - begin < 5
    finally:
        disk.resume()
    until(lambda: all(write(store, chain("c", 3))))
    assert store.prefix(KEYS) == 0
    assert all(read(store, chain("c", 3)))
    store.check_integrity()
    store.close()
    with PageStore(tmp_path / "s", options()) as store:
        assert store.prefix(KEYS) == 0
        assert all(read(store, chain("c", 3)))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_checkpoint_that_fails_leaves_nothing_and_is_tried_again(tmp_path, disk, code):
    store = PageStore(tmp_path / "s", options(MIB), disk=disk)
    disk.fault = lambda operation, path, offset: (
        code if operation in ("allocate", "write") and is_checkpoint(path) else 0
    )
    kept = [number for number in range(40) if all(write(store, chain(number, 12), 3000))]
    assert 3 < len(kept) < 40, "both journals are full"
    # The store's own thread may still be at the last attempt; then it sleeps.
    until(lambda: not list((tmp_path / "s").glob("*.partial")))
    store.check_integrity()
    disk.fault = lambda *what: 0
    until(lambda: all(write(store, chain("after", 12), 3000)))
    store.flush()
    store.check_integrity()
    store.close()
    with PageStore(tmp_path / "s", options(MIB)) as store:
        assert store.stats().recovery == "clean"
        assert all(read(store, chain("after", 12), 3000))


@pytest.mark.parametrize("fails", ["allocate", "sync", "rename", "sync_folder", "remove"])
def test_a_disk_that_fails_is_asked_now_and_then_and_not_all_the_time(tmp_path, disk, fails):
    store = PageStore(tmp_path / "s", options(MIB), disk=disk)
    assert all(write(store, chain("before", 12), 3000))
    asked = []

    def fault(operation, path, offset):
        if operation != fails or path.suffix == ".seg" or path.name == "segments":
            return 0
        asked.append(path)
        return errno.EIO

    disk.fault = fault
    for number in range(60):  # more than both journals take
        write(store, chain(number, 12), 3000)
    assert asked
    time.sleep(1.0)
    before = len(asked)
    time.sleep(1.0)
    assert len(asked) - before < 50, "1,000 and more where the thread wakes itself"
    disk.fault = lambda *what: 0
    until(lambda: all(write(store, chain("after", 12), 3000)))
    store.close()


def test_pages_that_the_journal_does_not_take_are_counted(tmp_path, disk):
    store = PageStore(tmp_path / "s", options(MIB), disk=disk)
    disk.fault = no_checkpoint
    numbers = itertools.count()
    until(lambda: not all(write(store, chain(next(numbers), 12), 3000)))
    assert store.stats().refused["disk"] > 0
    disk.fault = lambda *what: 0
    store.close()


def test_failing_syncs_make_no_third_journal(tmp_path, disk):
    store = PageStore(tmp_path / "s", options(MIB), disk=disk)
    disk.fault = no_checkpoint
    numbers = itertools.count()

    def has_two():
        write(store, chain(next(numbers), 12), 3000)
        return len(list((tmp_path / "s").glob("journal-*.log"))) == 2

    until(has_two)
    disk.fault = lambda *what: no_journal_sync(*what) or no_checkpoint(*what)
    for _ in range(5):
        with pytest.raises(StoreError):
            store.flush()
        assert len(list((tmp_path / "s").glob("journal-*"))) == 2
        store.check_integrity()
    disk.fault = lambda *what: 0
    store.flush()
    store.close()


def test_no_descriptor_is_left_when_opening_fails(tmp_path, disk):
    with PageStore(tmp_path / "s", options()) as store:
        assert all(write(store, KEYS))
    before = set(os.listdir("/proc/self/fd"))
    for operation in ("open", "read", "write", "allocate", "sync", "rename", "sync_folder"):
        for last in range(1, 40):
            left = [last]

            def fault(what, path, offset, operation=operation, left=left):
                left[0] -= what == operation
                return errno.EIO if what == operation and not left[0] else 0

            disk.fault = fault
            with contextlib.suppress(StoreError):
                PageStore(tmp_path / "s", options(), disk=disk).close()
            assert set(os.listdir("/proc/self/fd")) == before, (operation, last)
            if left[0] > 0:
                break
        else:
            pytest.fail(f"{operation} never came to an end")
    disk.fault = lambda *what: 0
    with PageStore(tmp_path / "s", options()) as store:
        assert all(read(store, KEYS)), "no fault of the disk costs a page"
