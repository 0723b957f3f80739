"""Pages are written from where they lie, where the disk takes them from there."""

import errno
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.store_disks import FaultyDisk
from support.store_pages import NAMESPACE, aligned, chain, healthy_again, options, payload, read

from sglang_ext.cache.store import Page, PageStore
from sglang_ext.cache.store import outgoing as outgoing_module
from sglang_ext.cache.store.outgoing import Alignment
from sglang_ext.cache.store.staging import address_of, flat

KEYS = chain("a", 20)


def pages(keys, size, pieces=1, shift=0):
    """Pages whose memory begins ``shift`` bytes behind a page of the machine."""
    result, parent = [], None
    for key in keys:
        memory = aligned(bytes(shift) + payload(key, size))[shift:]
        step = size // pieces
        result.append(Page(key, parent, [memory[at : at + step] for at in range(0, size, step)]))
        parent = key
    return result


@pytest.mark.parametrize("shift", [0, 512, 3584])
@pytest.mark.parametrize(("size", "pieces"), [(512, 1), (4096, 1), (6144, 3), (65536, 2)])
def test_aligned_pages_are_written_without_a_copy(store, size, pieces, shift):
    assert all(store.write(NAMESPACE, pages(KEYS, size, pieces, shift)))
    assert all(read(store, KEYS, size))
    assert store.stats().uncopied_pages == store.stats().written_pages == 20


@pytest.mark.parametrize(
    ("size", "pieces", "shift"), [(4096, 1, 64), (5000, 1, 0), (1536, 2, 0), (100, 1, 0)]
)
def test_others_are_copied(store, size, pieces, shift):
    assert all(store.write(NAMESPACE, pages(KEYS, size, pieces, shift)))
    assert all(read(store, KEYS, size))
    assert store.stats().uncopied_pages == 0


def test_one_page_that_does_not_fit_is_copied_with_its_neighbours(store):
    offered = pages(KEYS, 4096)
    offered[7] = pages(KEYS[6:8], 4096, shift=1)[1]
    assert all(store.write(NAMESPACE, offered))
    assert all(read(store, KEYS, 4096))


def test_memory_that_is_read_only_has_an_address():
    data = b"abc"
    assert address_of(flat(data)) == address_of(flat(memoryview(data)))
    writable = bytearray(8)
    assert address_of(flat(memoryview(writable)[3:])) == address_of(flat(writable)) + 3


def test_pages_without_bytes_are_written(store):
    assert all(store.write(NAMESPACE, [Page(KEYS[0], None, [b""]), Page(KEYS[1], None, [])]))
    assert read(store, KEYS[:2], 0) == [True, True]


class Choosy(FaultyDisk):
    """Takes segments' pieces from memory that is aligned to ``size_bytes``; 0: only one piece."""

    def __init__(self, size_bytes, code=errno.EINVAL):
        super().__init__()
        self.size_bytes = size_bytes
        self.code = code
        self.refused = 0

    def write(self, file, pieces, offset):
        if self.paths[file].suffix == ".seg" and any(map(self._dislikes, pieces)):
            self.refused += 1
            raise OSError(self.code, os.strerror(self.code))
        return super().write(file, pieces, offset)

    def _dislikes(self, piece):
        if not self.size_bytes:
            return len(piece) == 2048  # what the caller has here, and nothing of ours
        return len(piece) % self.size_bytes or address_of(flat(piece)) % self.size_bytes


def test_a_disk_with_larger_sectors_is_found_out_once(tmp_path):
    disk = Choosy(4096)
    with PageStore(tmp_path / "store", options(), disk=disk) as store:
        for name in range(3):
            keys = chain(name, 5)
            assert all(store.write(NAMESPACE, pages(keys, 2048, shift=512)))
            assert all(read(store, keys, 2048))
        assert (disk.refused, store.stats().uncopied_pages) == (1, 0)
        keys = chain("whole", 5)
        assert all(store.write(NAMESPACE, pages(keys, 8192)))
        assert all(read(store, keys, 8192))
        assert (disk.refused, store.stats().uncopied_pages) == (1, 5)
        assert store.stats().healthy
        store.check_integrity()


@pytest.mark.parametrize(("code", "refused"), [(errno.EINVAL, 1), (errno.EFAULT, 3)])
def test_memory_that_the_kernel_does_not_take_is_copied(tmp_path, code, refused):
    disk = Choosy(0, code)
    with PageStore(tmp_path / "store", options(), disk=disk) as store:
        for name in range(3):
            keys = chain(name, 5)
            assert all(store.write(NAMESPACE, pages(keys, 2048)))
            assert all(read(store, keys, 2048))
        assert disk.refused == refused
        assert store.stats().uncopied_pages == 0
        assert store.stats().errors == {}


def test_a_disk_that_refuses_everything_tells_nothing_of_memory(tmp_path):
    disk = FaultyDisk()
    with PageStore(tmp_path / "store", options(), disk=disk) as store:
        disk.fault = lambda operation, path, offset: (
            errno.EINVAL if operation == "write" and path.suffix == ".seg" and offset else 0
        )
        assert not any(store.write(NAMESPACE, pages(KEYS, 4096)))
        assert store.stats().errors["EINVAL"]
        disk.fault = lambda *what: 0
        assert healthy_again(store, lambda: all(store.write(NAMESPACE, pages(KEYS, 4096))))
        assert store.stats().uncopied_pages == 20


def test_alignment_grows_with_what_was_refused():
    alignment = Alignment()
    alignment.refused(512)
    alignment.refused(512)  # by another worker at the same time
    assert alignment.size_bytes == 4096
    alignment.refused(4096)
    assert not alignment.fits([flat(aligned(bytes(4096)))])


def test_a_caller_that_gave_up_may_change_what_is_being_written(faulty, disk):
    offered = pages(KEYS, 4096)
    assert all(faulty.write(NAMESPACE, offered[:1]))
    disk.hang(lambda operation, path: operation == "write" and path.suffix == ".seg")
    begin = time.monotonic()
    assert faulty.write(NAMESPACE, offered) == [True] + [False] * 19
    assert time.monotonic() - begin < 3, "nobody waits for a disk that hangs"
    for page in offered:
        page.buffers[0][:] = bytes(4096)
    disk.resume()
    assert healthy_again(faulty, lambda: all(faulty.write(NAMESPACE, pages(chain("b", 1), 4096))))
    assert faulty.prefix(KEYS) == 1, "what the caller may have changed is not resident"
    faulty.check_integrity()
    assert all(faulty.write(NAMESPACE, pages(KEYS, 4096)))
    assert all(read(faulty, KEYS, 4096))


def test_memory_that_changes_before_the_call_returns_is_a_miss(tmp_path):
    """Against what `Page` asks for: a miss is the worst that comes of it."""
    disk = FaultyDisk()
    offered = pages(KEYS, 4096)

    def change(operation, path, offset):
        if operation == "write" and path.suffix == ".seg" and offset:
            offered[3].buffers[0][:] = bytes(4096)
        return 0

    with PageStore(tmp_path / "store", options(), disk=disk) as store:
        disk.fault = change
        assert all(store.write(NAMESPACE, offered))
        hits = read(store, KEYS, 4096)
        assert hits[:3] == [True] * 3
        assert not hits[3]
        assert store.stats().dropped["payload"]
        store.check_integrity()


def test_pages_are_resident_while_others_are_on_their_way(tmp_path, disk, monkeypatch):
    monkeypatch.setattr(outgoing_module, "_COMMIT_PAGES", 1)
    size, keys = 600_064, chain("long", 4)  # a segment each
    with PageStore(tmp_path / "store", options(), disk=disk) as store:
        assert all(store.write(NAMESPACE, pages(chain("first", 4), size)))  # which makes them
        store.drop(chain("first", 1)[0])
        # Freed from the last page on, so the first segment is taken last.
        disk.hang(lambda operation, path: operation == "write" and path.name == "000001.seg")
        with ThreadPoolExecutor() as pool:
            writing = pool.submit(store.write, NAMESPACE, pages(keys, size))
            assert healthy_again(store, lambda: store.prefix(keys) == 3)
            assert not writing.done()
            disk.resume()
            assert writing.result() == [True] * 4
        assert all(read(store, keys, size))
        store.check_integrity()


def test_what_is_resident_early_stays_when_the_rest_fails(faulty, disk, monkeypatch):
    monkeypatch.setattr(outgoing_module, "_COMMIT_PAGES", 1)
    size, keys = 600_064, chain("long", 4)
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "write" and path.name == "000003.seg" and offset else 0
    )
    assert faulty.write(NAMESPACE, pages(keys, size)) == [True, True, False, False]
    assert faulty.prefix(keys) == 2
    faulty.check_integrity()


def test_what_was_resident_early_goes_where_the_journal_takes_nothing(faulty, disk, monkeypatch):
    monkeypatch.setattr(outgoing_module, "_COMMIT_PAGES", 1)
    disk.fault = lambda operation, path, offset: (
        errno.EIO if operation == "write" and ".log" in path.name else 0
    )
    size, keys = 600_064, chain("long", 4)
    assert not any(faulty.write(NAMESPACE, pages(keys, size)))
    assert faulty.prefix(keys) == 0
    disk.fault = lambda *what: 0
    assert healthy_again(faulty, lambda: all(faulty.write(NAMESPACE, pages(keys, size))))
    faulty.check_integrity()
