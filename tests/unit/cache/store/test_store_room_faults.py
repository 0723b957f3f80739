"""A disk that does not let a segment go, or makes none: what that costs, and what a kill leaves."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from support.store_crash import killed_when
from support.store_disks import FaultyDisk, SmallDisk, fail_all
from support.store_pages import chain, options, read, write

from sglang_ext.cache.store import PageStore, verify_store
from sglang_ext.cache.store.options import MIB

CAPACITY_BYTES = 8 * MIB
LARGE = 30_000
OLD = [chain(("old", number), 4) for number in range(200)]
EVERYTHING = ("remove", "open", "allocate", "write", "truncate", "rename", "sync")


@pytest.fixture
def disk():
    disk = FaultyDisk()
    yield disk
    disk.resume()


@pytest.fixture
def full(tmp_path, disk):
    """A full store of pages of one size."""
    with PageStore(tmp_path / "s", options(CAPACITY_BYTES, stall_s=5.0), disk=disk) as store:
        for keys in OLD:
            assert all(write(store, keys))
        yield store
        disk.fault = lambda *what: 0


def try_large(store, times=10):
    """Pages of another size, which want a segment; whether any was taken."""
    taken = []
    for number in range(times):
        store._writing._pause_s = 0.0  # no pause after a fault
        taken += write(store, chain(("large", number), 3), LARGE)
        store._keeper._room.recycle()
    return any(taken)


def open_segments():
    links = [Path("/proc/self/fd", file) for file in os.listdir("/proc/self/fd")]
    return [link for link in links if os.path.lexists(link) and ".seg" in str(link.readlink())]


@pytest.mark.parametrize(
    ("code", "operations"),
    [(errno.EIO, ["remove"]), (errno.EIO, ["allocate"]), (errno.EROFS, EVERYTHING)],
)
def test_a_disk_that_refuses_costs_one_segment_at_most(full, disk, code, operations, caplog):
    before, slots = full.stats(), max(s.slots for s in full._catalog.segments)
    descriptors = len(open_segments())
    disk.fault = fail_all(code, *operations)
    assert not try_large(full)
    after = full.stats()
    assert before.segments - 1 <= after.segments
    assert before.pages - slots - 4 <= after.pages  # a chain may end in another segment
    assert len(open_segments()) <= descriptors
    assert not any(record.exc_info for record in caplog.records)
    assert len(caplog.records) <= 2
    full.check_integrity()
    disk.fault = lambda *what: 0
    for _ in range(30):
        full._keeper._room.synced()
    assert try_large(full)
    full.check_integrity()


def test_a_file_that_does_not_go_counts_until_it_goes(full, disk):
    """The bound holds with it, and its number is nobody's."""
    disk.fault = fail_all(errno.EIO, "remove")
    assert not try_large(full)
    [number] = full._catalog.segments.leaving
    path = full._keeper.folder.segment_path(number)
    for more in range(100):
        full._catalog.may_grow = True
        full._writing._pause_s = 0.0
        write(full, chain(("more", more), 4))
        assert number not in full._catalog.segments.by_number
    assert path.exists()
    full.check_integrity()
    disk.fault = lambda *what: 0
    full._keeper._room.recycle()
    assert not path.exists()
    assert not full._catalog.segments.leaving
    full.check_integrity()


def test_what_could_not_be_cleared_counts_until_it_goes(full, disk):
    disk.fault = fail_all(errno.EIO, "remove")
    with pytest.raises(Exception, match="could not be removed"):
        full.clear()
    full.check_integrity()
    disk.fault = lambda *what: 0
    full._keeper._room.recycle()
    assert full._keeper.folder.segment_numbers() == []
    assert all(write(full, OLD[0]))
    assert all(read(full, OLD[0]))


def test_a_kill_while_a_segment_is_given_away_is_no_damage(full, disk, tmp_path):
    """After its file went; the journal tells of that by then."""
    gone = []
    remove = disk.remove

    def remove_and_hang(path):
        remove(path)
        if path.suffix == ".seg":
            gone.append(path)
            disk._check("removed", path)

    disk.remove = remove_and_hang
    act = lambda: write(full, chain("large", 3), LARGE)  # noqa: E731
    copy = killed_when(disk, tmp_path / "s", lambda what, path: what == "removed", act)
    assert gone
    assert list(verify_store(copy)) == []
    with PageStore(copy, options(CAPACITY_BYTES)) as store:
        store.check_integrity()


def test_a_kill_while_the_store_becomes_smaller_is_no_damage(tmp_path, disk):
    with PageStore(tmp_path / "s", options(CAPACITY_BYTES)) as store:
        for keys in OLD:
            assert all(write(store, keys))
    for when in ("rename", "truncate", "remove"):  # checkpoint, then files
        copy = tmp_path / "s"
        copy = killed_when(
            disk,
            shutil.copytree(copy, tmp_path / when / "s"),
            lambda what, path, when=when: what == when and path.suffix in (".ckpt", ".seg"),
            lambda when=when: PageStore(
                tmp_path / when / "s", options(CAPACITY_BYTES // 2), disk=disk
            ).close(),
        )
        assert list(verify_store(copy)) == []
        with PageStore(copy, options(CAPACITY_BYTES // 2)) as store:
            store.check_integrity()


def test_a_full_disk_gives_room_before_the_checkpoint(tmp_path):
    disk = SmallDisk(40 * MIB)
    with PageStore(tmp_path / "s", options(CAPACITY_BYTES), disk=disk) as store:
        for keys in OLD:
            assert all(write(store, keys))
    disk.room_bytes = sum(disk.taken.values())  # others took the rest
    with PageStore(tmp_path / "s", options(CAPACITY_BYTES // 2), disk=disk) as store:
        assert store.stats().pages > len(OLD) * 4 // 3
        store.check_integrity()
