"""Opening: from a checkpoint, from a journal, from the pages; on a disk that fails meanwhile."""

import errno

import pytest
from support.store_crash import crash
from support.store_disks import FaultyDisk
from support.store_pages import chain, options, read, reopened, write

from sglang_ext.cache.store import PageStore
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import StoreError

KEYS = chain("a", 40)


def test_what_was_written_is_there_after_a_crash(crashed):
    with reopened(crashed, "journal") as store:
        assert store.prefix(KEYS) == 40
        assert all(read(store, KEYS))


def test_what_was_written_is_there_after_a_clean_end(closed):
    with reopened(closed, "clean") as store:
        assert all(read(store, KEYS))


def test_recency_survives(tmp_path):
    first, second = chain("first", 30), chain("second", 30)
    with PageStore(tmp_path / "s", options(MIB)) as store:
        write(store, first)
        write(store, second)
        store.touch(first[-1])
    with PageStore(tmp_path / "s", options(MIB)) as store:
        write(store, chain("third", 60))
        assert store.prefix(first) > store.prefix(second)


def test_touches_survive_a_crash_after_a_sync(tmp_path):
    first, second = chain("first", 30), chain("second", 30)
    store = PageStore(tmp_path / "s", options(MIB))
    write(store, first)
    write(store, second)
    store.touch(first[-1])
    store.flush()
    crash(store)
    with PageStore(tmp_path / "s", options(MIB)) as store:
        write(store, chain("third", 60))
        assert store.prefix(first) > store.prefix(second)


def test_many_checkpoints_and_journals_leave_one_of_each(tmp_path):
    with PageStore(tmp_path / "s", options(MIB, sync_interval_s=0.01)) as store:
        for number in range(60):
            write(store, chain(number, 10))
        store.flush()
        store.check_integrity()
        pages = store.stats().pages
        assert store.stats().checkpoints > 2
        crash(store)
    assert len(list((tmp_path / "s").glob("journal-*.log"))) <= 2
    with reopened(tmp_path / "s", "journal", capacity_bytes=MIB) as store:
        assert store.stats().pages == pages


@pytest.mark.parametrize("operation", ["open", "read"])
@pytest.mark.parametrize("name", ["000001.seg", "000002.seg"])
def test_a_segment_that_cannot_be_read_now_is_not_lost(closed, operation, name):
    disk = FaultyDisk()
    disk.fault = lambda what, path, offset: (
        errno.EIO if what == operation and path.name == name else 0
    )
    with pytest.raises(StoreError, match=name):
        PageStore(closed, options(), disk=disk)
    with reopened(closed, "clean") as store:
        assert all(read(store, KEYS))


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS])
def test_a_disk_that_takes_nothing_while_the_store_is_opened_costs_nothing(crashed, code):
    disk = FaultyDisk()
    disk.fault = lambda operation, path, offset: (
        code if operation in ("write", "sync") and path.suffix == ".partial" else 0
    )
    for _ in range(2):
        with pytest.raises(StoreError, match="cannot be opened"):
            PageStore(crashed, options(), disk=disk)
    with reopened(crashed, "journal") as store:
        assert all(read(store, KEYS))


def test_a_scan_does_without_a_bad_spot_and_not_without_most_of_the_disk(closed):
    next(closed.glob("index-*.ckpt")).unlink()
    disk = FaultyDisk()
    first_slot = 4096
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "read" and path.suffix == ".seg" and offset >= first_slot else 0
    )
    with pytest.raises(StoreError, match="cannot be opened"):
        PageStore(closed, options(), disk=disk)
    disk.fault = lambda operation, path, offset: (
        errno.EIO if (operation, path.name, offset) == ("read", "000002.seg", first_slot) else 0
    )
    with PageStore(closed, options(), disk=disk) as store:
        assert store.stats().recovery == "scan"
        assert 0 < store.stats().pages == store.prefix(KEYS) < 40
    with PageStore(closed, options()) as store:
        assert all(write(store, KEYS))


@pytest.mark.parametrize("what", ["index-", "journal-"])
def test_a_full_disk_after_a_kill_costs_one_segment(tmp_path, what):
    folder = tmp_path / "store"
    store = PageStore(folder, options())
    chains = chain("first", 20), chain("second", 20), chain("third", 20)
    assert all(all(write(store, keys)) for keys in chains)
    crash(store)
    segments = len(list(folder.glob("segments/*")))
    assert segments >= 3
    disk = FaultyDisk()

    def full(operation, path, offset):
        is_full = len(list(folder.glob("segments/*"))) == segments
        return errno.ENOSPC if is_full and operation == "allocate" and what in path.name else 0

    disk.fault = full
    with PageStore(folder, options(), disk=disk) as store:
        store.check_integrity()
        disk.fault = lambda *what: 0
        assert len(list(folder.glob("segments/*"))) == segments - 1
        assert [store.prefix(keys) for keys in chains[1:]] == [20, 20]
        assert all(read(store, chains[2]))
        assert all(write(store, chains[0]))
    with reopened(folder, "clean") as store:
        assert all(all(read(store, keys)) for keys in chains)


def test_a_smaller_capacity_gives_segments_back(tmp_path):
    with PageStore(tmp_path / "s", options(8 * MIB)) as store:
        for number in range(12):
            write(store, chain(number, 40))
    with PageStore(tmp_path / "s", options(2 * MIB)) as store:
        store.check_integrity()
        assert 0 < store.stats().pages < 200
        for number in range(12):
            read(store, chain(number, 40))
    with PageStore(tmp_path / "s", options(8 * MIB)) as store:
        write(store, chain("more", 40))
        store.check_integrity()


def test_a_scan_keeps_the_younger_of_two_and_drops_orphans(closed):
    path = closed / "segments/000001.seg"
    data = bytearray(path.read_bytes())
    # The first page again, in place of the second: the third has lost its parent.
    data[4096 + 12288 : 4096 + 2 * 12288] = data[4096 : 4096 + 12288]
    path.write_bytes(data)
    next(closed.glob("index-*.ckpt")).unlink()
    with reopened(closed, "scan") as store:
        assert store.stats().pages == 1
        assert read(store, KEYS)[:2] == [True, False]
