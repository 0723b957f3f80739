"""A disk that fails, hangs or has a bad spot: misses, and what comes back."""

import errno
import time

import pytest
from support.store_crash import crash
from support.store_disks import fail_all
from support.store_pages import NAMESPACE, chain, healthy_again, options, payload, read, write

from sglang_ext.cache.store import Page, PageStore
from sglang_ext.cache.store import reader as reader_module
from sglang_ext.cache.store import transfer as transfer_module
from sglang_ext.errors import StoreError

KEYS = chain("a", 20)


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
