"""The store's own thread leaves a disk alone that refuses journals and checkpoints."""

import errno
import shutil
import time

import pytest
from support.store_disks import fail_all
from support.store_pages import chain, healthy_again, options, read, write

from sglang_ext.cache.store import PageStore

# The thread runs 50 times a second here; a failing round costs it a dozen operations at most.
INTERVAL_S = 0.02
WATCHED_S = 1.0
MOST_OPERATIONS = 100


@pytest.fixture
def busy(tmp_path, disk):
    """A store whose thread syncs often, on a disk that can fail."""
    store = PageStore(tmp_path / "s", options(sync_interval_s=INTERVAL_S), disk=disk)
    assert all(write(store, chain("first", 20)))
    yield store
    disk.fault = lambda *what: 0
    store.close()


def fill_journal(store):
    """Write until pages are refused, as a server goes on offering them."""
    for number in range(1000):
        if not any(write(store, chain(number, 20))):
            return
    raise AssertionError("no page was refused")


def operations(disk):
    """What the store asks of the disk by itself in a while."""
    before = len(disk.calls)
    time.sleep(WATCHED_S)
    return len(disk.calls) - before


NO_NEW_FILE = {
    "full": (errno.ENOSPC, lambda operation, path: operation == "allocate"),
    "allocate": (errno.EIO, lambda operation, path: operation == "allocate"),
    "write": (errno.EIO, lambda operation, path: operation == "write" and "ckpt" in path.name),
    "sync": (errno.EIO, lambda operation, path: operation == "sync" and ".partial" in path.name),
    "rename": (errno.EIO, lambda operation, path: operation == "rename"),
    "folder": (errno.EIO, lambda operation, path: operation == "sync_folder"),
    "open": (errno.ENOENT, lambda operation, path: operation == "open"),
    "remove": (errno.EIO, lambda operation, path: operation == "remove"),
}


@pytest.mark.parametrize("name", NO_NEW_FILE)
def test_a_full_journal_is_not_tried_without_end(busy, disk, name):
    code, fails = NO_NEW_FILE[name]
    disk.fault = lambda operation, path, offset: code if fails(operation, path) else 0
    fill_journal(busy)
    assert operations(disk) < MOST_OPERATIONS
    assert not busy.stats().healthy
    disk.fault = lambda *what: 0
    assert healthy_again(busy, lambda: all(write(busy, chain("again", 20))))
    assert healthy_again(busy, lambda: busy.stats().healthy)
    assert all(read(busy, chain("again", 20)))
    busy.check_integrity()


def test_a_journal_that_cannot_be_synced_is_not_tried_without_end(busy, disk):
    disk.fault = fail_all(errno.EIO, "sync")
    write(busy, chain("more", 5))
    assert operations(disk) < MOST_OPERATIONS
    disk.fault = lambda *what: 0
    assert healthy_again(busy, lambda: busy.stats().healthy)


def test_a_folder_that_is_gone_is_not_tried_without_end(busy, disk, tmp_path):
    shutil.rmtree(tmp_path / "s")
    fill_journal(busy)
    assert operations(disk) < MOST_OPERATIONS


def test_an_unforeseen_failure_is_not_tried_without_end(busy, monkeypatch):
    tries = []

    def fail(*what, **more):
        tries.append(what)
        return 1 / 0

    monkeypatch.setattr(busy._keeper, "_checkpoint", fail)
    fill_journal(busy)
    before = len(tries)
    time.sleep(WATCHED_S)
    assert before > 0
    assert len(tries) - before < MOST_OPERATIONS


def test_pages_that_the_journal_does_not_take_are_counted(faulty, disk):
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "write" and ".log" in path.name else 0
    )
    assert not any(write(faulty, chain("a", 7)))
    assert faulty.stats().refused == {"disk": 7}
