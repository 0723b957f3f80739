"""A view on a disk that fails or hangs: lookups go on, nothing is kept open, and it comes back."""

import errno
import os
import threading
import time

import pytest
from support.store_disks import FaultyDisk, fail_all
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store import follower as follower_module
from sglang_ext.cache.store.format import RECORD_BYTES
from sglang_ext.cache.store.options import MIB

KEYS = chain("a", 20)


class StuckDisk(FaultyDisk):
    """Reads of files with ``suffix`` do not come back while ``free`` is not set."""

    def __init__(self):
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.suffix = ".log"

    def _check(self, operation, path, offset=0):
        super()._check(operation, path, offset)
        if operation == "read" and str(path).endswith(self.suffix):
            self.free.wait()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(follower_module, "_LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr(follower_module, "_WAIT_S", 20.0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def disk():
    disk = StuckDisk()
    yield disk
    disk.free.set()
    disk.resume()


@pytest.fixture
def writer(folder):
    with PageStore(folder, options()) as writer:
        write(writer, KEYS[:5])
        yield writer


@pytest.fixture
def view(writer, folder, disk):
    with PageStore.follow(folder, options(stall_s=0.5), disk=disk) as view:
        assert view.prefix(KEYS) == 5
        yield view


def open_files(folder, what):
    """Files of the store that this process has open and whose name contains ``what``."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    names = [os.readlink(link) for link in links if os.path.islink(link)]
    return [name for name in names if str(folder) in name and what in name]


def eventually(works):
    deadline = time.monotonic() + 20
    while not works():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def returns(action):
    """What ``action`` returns, on a thread of its own; it must come back."""
    results = []
    thread = threading.Thread(target=lambda: results.append(action()), daemon=True)
    thread.start()
    thread.join(10)
    assert results, "still waiting"
    return results[0]


def test_a_lookup_does_not_wait_for_a_journal_that_hangs(view, writer, disk, monkeypatch):
    monkeypatch.setattr(follower_module, "_WAIT_S", 0.05)
    disk.free.clear()
    write(writer, KEYS[5:], parent=KEYS[4])
    assert returns(lambda: view.prefix(KEYS)) == 5
    monkeypatch.setattr(follower_module, "_WAIT_S", 600.0)
    assert returns(lambda: view.prefix(KEYS)) == 5, "the next waits no more"
    assert returns(lambda: all(read(view, KEYS[:5]))), "what is known can be read"
    disk.free.set()
    eventually(lambda: view.prefix(KEYS) == 20)
    assert all(read(view, KEYS))


def test_many_pages_are_looked_up_with_one_look_at_the_journal(view, writer, disk):
    write(writer, KEYS[5:], parent=KEYS[4])
    disk.calls.clear()
    assert all(view.resident(KEYS))
    assert disk.calls.count(("read", "journal-1.log")) == 1


def test_a_lookup_does_not_wait_for_a_segment_that_hangs(view, writer, disk, monkeypatch):
    monkeypatch.setattr(follower_module, "_WAIT_S", 0.05)
    disk.suffix = ".seg"
    disk.free.clear()
    write(writer, chain("other", 5), 30_000)  # in a segment of its own
    assert returns(lambda: view.prefix(KEYS)) == 5
    assert returns(lambda: view.stats().pages) == 5
    disk.free.set()
    eventually(lambda: view.prefix(chain("other", 5)) == 5)
    assert all(read(view, chain("other", 5), 30_000))


def test_files_are_opened_and_closed_without_the_lock(view, writer, disk):
    held = []

    def fault(operation, path, offset):
        held.append(view._catalog.lock.locked())
        return 0

    close, view._disk.close = disk.close, lambda file: (fault("close", None, 0), close(file))
    disk.fault = fault
    write(writer, chain("other", 5), 30_000)
    assert view.prefix(chain("other", 5)) == 5
    writer.clear()
    assert view.prefix(KEYS) == 0
    view._disk.close = close
    assert held
    assert not any(held)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_journal_that_cannot_be_read_leaves_the_view_as_it_was(view, writer, disk, code):
    disk.fault = lambda operation, path, offset: (
        code if operation == "read" and path.suffix == ".log" else 0
    )
    write(writer, KEYS[5:], parent=KEYS[4])
    for _ in range(20):
        assert view.prefix(KEYS) == 5
    assert all(read(view, KEYS[:5]))
    stats = view.stats()
    assert stats.errors[errno.errorcode[code]] == 1, "it is left alone for a while"
    assert not stats.healthy
    disk.fault = lambda *what: 0
    eventually(lambda: view.prefix(KEYS) == 20)
    assert all(read(view, KEYS))
    assert view.stats().healthy


def test_a_view_goes_on_where_a_full_journal_could_not_name_the_next(folder):
    """And no checkpoint comes that would have it begin anew."""
    disk = FaultyDisk()
    failed = []

    def fault(operation, path, offset):
        is_link = path.name.endswith("1.log") and offset == path.stat().st_size - RECORD_BYTES
        if operation == "write" and is_link:
            failed.append(path.name)
            return errno.EIO
        return errno.EIO if ".ckpt" in path.name else 0

    with (
        PageStore(folder, options(), disk=disk) as writer,
        PageStore.follow(folder, options()) as view,
    ):
        write(writer, chain("first", 2))
        assert view.prefix(chain("first", 2)) == 2
        disk.fault = fault
        number = 0
        while not failed:
            number += 1
            assert number < 500, "the journal never was full"
            write(writer, chain(f"a{number}", 1))
        eventually(lambda: all(write(writer, chain("last", 3))))
        assert view.prefix(chain("last", 3)) == 3
        assert len(list(folder.glob("journal-*.log"))) == 2
        disk.fault = lambda *what: 0


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_failing_read_is_a_miss_and_comes_back(view, disk, code):
    disk.fault = fail_all(code, "read")
    assert not any(read(view, KEYS[:5]))
    assert view.prefix(KEYS) == 5
    assert view.stats().errors[errno.errorcode[code]] >= 1
    disk.fault = lambda *what: 0
    eventually(lambda: all(read(view, KEYS[:5])))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_cannot_be_written_is_nothing_to_a_view(view, writer, disk, code):
    disk.fault = fail_all(code, "write", "sync", "allocate", "rename", "remove")
    write(writer, KEYS[5:], parent=KEYS[4])
    assert view.prefix(KEYS) == 20
    assert all(read(view, KEYS))
    assert view.stats().errors == {}


def test_a_disk_that_hangs_costs_misses(view, disk):
    disk.hang(lambda operation, path: path.suffix == ".seg")
    assert not any(returns(lambda: read(view, KEYS[:5])))
    assert returns(lambda: view.prefix(KEYS)) == 5
    disk.resume()
    eventually(lambda: all(read(view, KEYS[:5])))


@pytest.mark.parametrize("suffix", [".log", ".seg", ".ckpt"])
@pytest.mark.parametrize("operation", ["open", "read"])
def test_files_of_a_failed_beginning_are_closed(folder, disk, operation, suffix):
    with PageStore(folder, options()) as writer:
        write(writer, KEYS)
        write(writer, chain("other", 5), 30_000)
    with PageStore(folder, options()):
        mine = len(open_files(folder, ""))
        calls = []

        def fault(what, path, offset):
            if what != operation or path.suffix != suffix:
                return 0
            calls.append(path)
            # Of the segments the last one.
            return errno.EIO if suffix != ".seg" or len(calls) % 2 == 0 else 0

        disk.fault = fault
        with PageStore.follow(folder, options(), disk=disk) as view:
            for _ in range(5):
                view._follower.health._until = 0.0
                view.prefix(KEYS)
            assert calls
            if (operation, suffix) != ("read", ".seg"):
                assert len(open_files(folder, "")) == mine
            assert view.prefix(KEYS) in (0, 20)
            disk.fault = lambda *what: 0
            view._follower.health._until = 0.0
            eventually(lambda: view.prefix(KEYS) == 20)
            assert all(read(view, KEYS))
        assert len(open_files(folder, "")) == mine


def test_following_outlives_what_nobody_foresaw(view, writer, monkeypatch):
    monkeypatch.setattr(view._follower, "_follow", lambda: 1 / 0)
    write(writer, KEYS[5:], parent=KEYS[4])
    assert view.prefix(KEYS) == 0
    monkeypatch.undo()
    eventually(lambda: view.prefix(KEYS) == 20)


def test_a_journal_that_cannot_be_closed_is_left(folder, disk, monkeypatch):
    small = options(MIB, sync_interval_s=0.01)
    close = disk.close

    def fail(file):
        close(file)
        if disk.paths[file].suffix == ".log":
            raise OSError(errno.EIO, "bad")

    with (
        PageStore(folder, small) as writer,
        PageStore.follow(folder, options(MIB), disk=disk) as view,
    ):
        monkeypatch.setattr(disk, "close", fail)
        for number in range(60):
            write(writer, chain(number, 8))
            assert view.prefix(chain(number, 8)) == 8
        assert {name for _, name in disk.calls} > {"journal-1.log", "journal-2.log"}


def test_a_clear_leaves_nothing_open(view, writer, folder):
    write(writer, chain("other", 5), 30_000)
    assert view.prefix(chain("other", 5)) == 5
    writer.clear()
    assert view.prefix(KEYS) == 0
    assert open_files(folder, "(deleted)") == []
    view.check_integrity()


def test_what_was_read_ahead_and_is_not_taken_is_given_up(folder, writer):
    short = options(sync_interval_s=0.02, read_ahead_s=0.1)
    with PageStore.follow(folder, short) as view:
        assert view.prefix(KEYS, read_ahead=True) == 5
        assert view._reader.ahead._held_bytes
        eventually(lambda: not view._reader.ahead._held_bytes)
        assert view._staging.free_bytes() == view._staging.size_bytes


def test_the_thread_begins_with_the_first_lookup_and_ends_with_the_view(folder, writer):
    view = PageStore.follow(folder, options())
    assert view._follower._thread is None
    view.prefix(KEYS)
    thread = view._follower._thread
    assert thread.is_alive()
    assert thread.daemon
    view.close()
    assert not thread.is_alive()
    assert view.prefix(KEYS) == 0


def test_closing_while_the_journal_hangs_returns(folder, writer, disk, monkeypatch):
    view = PageStore.follow(folder, options(stall_s=0.2), disk=disk)
    monkeypatch.setattr(follower_module, "_WAIT_S", 0.05)
    disk.free.clear()
    view.prefix(KEYS)
    returns(lambda: view.close() is None)


def test_lookups_of_many_threads_find_what_was_written_before(folder, writer):
    failures = []

    def look():
        for number in range(30):
            if view.prefix(KEYS[: 5 + number % 2]) < 5:
                failures.append(number)

    with PageStore.follow(folder, options()) as view:
        threads = [threading.Thread(target=look) for _ in range(8)]
        for thread in threads:
            thread.start()
        for number in range(20):
            keys = chain(("new", number), 3)
            write(writer, keys)
            assert view.prefix(keys) == 3
        for thread in threads:
            thread.join()
    assert not failures
