"""Closing, above all with a disk that hangs: nothing is closed under somebody who is in it."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
from support.store_disks import FaultyDisk
from support.store_pages import chain, options, read, write

from sglang_ext.cache import upkeep
from sglang_ext.cache.folder import remove_store
from sglang_ext.cache.store import PageStore, verify_store
from sglang_ext.cache.store import store as store_module
from sglang_ext.errors import StoreError, StoreInUseError

KEYS = chain("a", 20)
STALL_S = 0.3
LIMIT_S = 5


@pytest.fixture
def disk():
    disk = FaultyDisk()
    yield disk
    disk.resume()


def until(condition, limit_s=LIMIT_S):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "in vain"
        time.sleep(0.01)


def closed_in_time(store):
    begin = time.monotonic()
    store.close()
    return time.monotonic() - begin < LIMIT_S


def in_use(folder):
    try:
        PageStore(folder, options()).close()
    except StoreInUseError:
        return True
    return False


@pytest.mark.parametrize("operation", ["read", "write"])
@pytest.mark.parametrize("suffix", [".seg", ".log"])
def test_a_worker_that_hangs_keeps_its_files_and_the_lock(tmp_path, disk, operation, suffix):
    store = PageStore(tmp_path / "s", options(stall_s=STALL_S), disk=disk)
    write(store, KEYS)
    disk.hang(lambda what, path: what == operation and path.suffix == suffix)
    read(store, KEYS)
    write(store, chain("b", 3))
    hangs = (operation, suffix) != ("read", ".log")  # a writer reads no journal
    assert closed_in_time(store)
    assert in_use(tmp_path / "s") == hangs
    disk.resume()
    until(lambda: not in_use(tmp_path / "s"))
    with PageStore(tmp_path / "s", options()) as store:
        assert store.stats().recovery == "clean"
        assert all(read(store, KEYS))


@pytest.mark.parametrize(
    ("operation", "suffix"),
    [("sync", ".log"), ("sync", ".seg"), ("write", ".partial"), ("rename", ".ckpt")],
)
def test_a_sync_that_hangs_keeps_the_lock_until_it_is_through(tmp_path, disk, operation, suffix):
    store = PageStore(tmp_path / "s", options(stall_s=STALL_S, sync_interval_s=0.01), disk=disk)
    write(store, KEYS[:5])  # there is room in their segment
    disk.hang(lambda what, path: what == operation and path.suffix == suffix)
    store._keeper._want_checkpoint()
    write(store, chain("b", 3))
    until(lambda: (operation, suffix) in {(what, os.path.splitext(n)[1]) for what, n in disk.calls})
    assert closed_in_time(store)
    assert in_use(tmp_path / "s")
    disk.resume()
    until(lambda: not in_use(tmp_path / "s"))
    with PageStore(tmp_path / "s", options()) as store:
        assert store.stats().recovery == "clean"
        assert all(read(store, KEYS[:5]))


def test_no_descriptor_of_another_store_is_closed(tmp_path, disk):
    store = PageStore(tmp_path / "s", options(stall_s=STALL_S, sync_interval_s=0.01), disk=disk)
    write(store, KEYS[:5])
    disk.hang(lambda what, path: what == "sync" and path.suffix == ".log")
    write(store, chain("b", 3))
    time.sleep(0.1)
    store.close()
    with PageStore(tmp_path / "other", options()) as other:
        assert all(write(other, KEYS))
        files = [segment.file for segment in other._catalog.segments]
        files.append(other._keeper.journal._file)
        before = [os.fstat(file).st_ino for file in files]
        disk.resume()
        until(lambda: not in_use(tmp_path / "s"))
        assert [os.fstat(file).st_ino for file in files] == before
        other.flush()
        assert all(read(other, KEYS))


def test_a_forked_child_has_no_part_in_the_store(tmp_path):
    store = PageStore(tmp_path / "s", options())
    write(store, KEYS)
    child_is_done, ends = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        closed = store.prefix(KEYS) == 0 and not any(write(store, chain("b", 2)))
        store.close()
        os.write(child_is_done[1], b"yes" if closed else b"no")
        os.read(ends[0], 1)
        os._exit(0)
    try:
        assert os.read(child_is_done[0], 3) == b"yes"
        assert in_use(tmp_path / "s"), "the lock is the parent's"
        assert all(read(store, KEYS))
        store.close()
        assert not in_use(tmp_path / "s"), "and not the child's"
    finally:
        os.write(ends[1], b"x")
        os.waitpid(child, 0)
    with PageStore(tmp_path / "s", options()) as store:
        assert store.prefix(chain("b", 1)) == 0
        assert all(read(store, KEYS))


@pytest.mark.parametrize("part", ["Staging", "Engine", "Reader", "Writer"])
@pytest.mark.parametrize("error", [OSError(22, "Invalid argument"), MemoryError()])
def test_what_cannot_be_opened_holds_nothing(tmp_path, monkeypatch, part, error):
    def refuse(*_arguments):
        raise error

    PageStore(tmp_path / "s", options()).close()
    before = set(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(store_module, part, refuse)
    with pytest.raises(StoreError if isinstance(error, OSError) else MemoryError):
        PageStore(tmp_path / "s", options())
    assert set(os.listdir("/proc/self/fd")) == before
    monkeypatch.undo()
    PageStore(tmp_path / "s", options()).close()


def test_a_lock_whose_owner_cannot_be_noted_is_given_back(tmp_path, disk):
    PageStore(tmp_path / "s", options()).close()
    disk.fault = lambda what, path, offset: (
        errno.ENOSPC if (what, path.name) == ("write", "lock") else 0
    )
    with pytest.raises(StoreError):
        PageStore(tmp_path / "s", options(), disk=disk)
    assert not in_use(tmp_path / "s")


def test_closing_twice_is_closing_once(tmp_path):
    store = PageStore(tmp_path / "s", options())
    store.close()
    with PageStore(tmp_path / "s", options()):
        store.close()
        assert in_use(tmp_path / "s")


@pytest.mark.parametrize("call", ["read", "prefix", "write", "grow", "clear", "flush"])
def test_a_call_that_a_close_overtakes_returns_at_once(tmp_path, monkeypatch, call):
    """It has seen an open store, and goes on when the store is closed."""
    store = PageStore(tmp_path / "s", options(stall_s=20.0))
    write(store, KEYS)
    calls = {
        "read": (store._catalog, "find", lambda: not any(read(store, KEYS))),
        "prefix": (store._catalog, "find", lambda: store.prefix(KEYS, read_ahead=True) == 20),
        "write": (store._catalog, "plan", lambda: not any(write(store, chain("b", 3)))),
        "grow": (store._catalog, "plan", lambda: not any(write(store, chain("b", 3), 30_000))),
        "clear": (store._reader.ahead, "forget", lambda: store.clear() is None),
        "flush": (store._keeper, "sync", lambda: store.flush() is None),
    }
    where, name, act = calls[call]
    original = getattr(where, name)

    def close_first(*arguments):
        monkeypatch.undo()
        store.close()
        return original(*arguments)

    monkeypatch.setattr(where, name, close_first)
    begin = time.monotonic()
    assert act()
    assert time.monotonic() - begin < 10
    assert store.stats().errors == {}
    assert not store._catalog.index.pins
    assert not any(segment.users for segment in store._catalog.segments)
    assert store._staging.free_bytes() == store._staging.size_bytes
    with PageStore(tmp_path / "s", options()) as store:
        assert all(read(store, KEYS))


def test_a_lock_that_is_removed_lets_nobody_in(tmp_path):
    for _ in range(2):  # a store that is made, and one that was there
        with PageStore(tmp_path / "s", options()) as store:
            assert all(write(store, KEYS))
            (tmp_path / "s/lock").unlink()
            with pytest.raises(StoreInUseError, match="in use by process"):
                PageStore(tmp_path / "s", options())
            with pytest.raises(StoreInUseError, match="end that process first"):
                list(verify_store(tmp_path / "s"))
            assert upkeep.look(tmp_path / "s").in_use_by is not None
            assert not remove_store(tmp_path / "s")
            assert all(read(store, KEYS))
        assert not in_use(tmp_path / "s")
    assert upkeep.look(tmp_path / "s").in_use_by is None


def in_child(act):
    """What ``act`` gives, as JSON, in a process that is forked."""
    done = os.pipe()
    child = os.fork()
    if not child:
        signal.alarm(10)  # ends a child that waits for a lock
        try:
            os.write(done[1], json.dumps(act()).encode())
        finally:
            os._exit(0)
    os.close(done[1])
    with open(done[0]) as told:
        text = told.read()
    os.waitpid(child, 0)
    return json.loads(text)


def test_a_forked_child_has_no_file_of_writer_or_view(tmp_path):
    def files():
        links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
        return [str(link.readlink()) for link in links if os.path.lexists(link)]

    with PageStore(tmp_path / "s", options()) as store:
        assert all(write(store, KEYS))
        view = PageStore.follow(tmp_path / "s", options())
        assert view.prefix(KEYS) == 20
        # Once nothing is being made: a segment for the next pages, say.
        until(lambda: not [file for file in in_child(files) if str(tmp_path) in file])
        assert all(read(view, KEYS))
        view.close()
        assert all(write(store, chain("b", 3)))


def test_a_forked_child_tells_its_statistics_whoever_held_locks(tmp_path):
    with PageStore(tmp_path / "s", options()) as store:
        assert all(write(store, KEYS))
        with store._catalog.lock, store._reader.health._guard, store._writing._guard:
            assert in_child(lambda: store.stats().pages) == 20
