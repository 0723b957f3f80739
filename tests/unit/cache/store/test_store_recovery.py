"""Opening: from a checkpoint, from a journal, from the pages; never a wrong byte."""

import errno
import random
import shutil

import numpy as np
import pytest
from support.store_crash import crash
from support.store_disks import FaultyDisk
from support.store_pages import chain, key_of, options, read, write

from sglang_ext.cache.store import PageStore, verify_store
from sglang_ext.cache.store import format as f
from sglang_ext.cache.store.checkpoint import Columns, load_index
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.options import MIB
from sglang_ext.cache.store.segments import Segment, Segments, Space, place
from sglang_ext.errors import StoreError

KEYS = chain("a", 40)


@pytest.fixture
def crashed(tmp_path):
    """A store of 40 pages that was killed: no checkpoint, a journal."""
    store = PageStore(tmp_path / "store", options())
    assert all(write(store, KEYS))
    store.flush()
    crash(store)
    return tmp_path / "store"


@pytest.fixture
def closed(tmp_path):
    """A store of 40 pages that was closed: a checkpoint, no journal."""
    with PageStore(tmp_path / "store", options()) as store:
        assert all(write(store, KEYS))
    return tmp_path / "store"


def reopened(folder, how, **changes):
    store = PageStore(folder, options(**changes))
    assert store.stats().recovery == how
    store.check_integrity()
    return store


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


def flip(path, position, bit=3):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


# A byte of each field of the header, and two of the columns.
CHECKPOINT_FIELDS = [0, 9, 13, 33, 41, 49, 53, 61, 69, 77, 90, 200, 290, 4096, 5000]


@pytest.mark.parametrize("position", CHECKPOINT_FIELDS)
def test_a_bit_flip_in_the_checkpoint_leads_to_a_scan(closed, position):
    path = next(closed.glob("index-*.ckpt"))
    flip(path, position)
    with reopened(closed, "scan") as store:
        assert all(read(store, KEYS))
    assert len(list(closed.glob("index-*.ckpt"))) == 1


@pytest.mark.parametrize("length", [0, 1, 100, 300, 4095, 4096, 4100, 6000])
def test_a_truncated_checkpoint_leads_to_a_scan(closed, length):
    path = next(closed.glob("index-*.ckpt"))
    path.write_bytes(path.read_bytes()[:length])
    with reopened(closed, "scan") as store:
        assert all(read(store, KEYS))


@pytest.mark.parametrize("position", [0, 9, 13, 29, 37])
def test_a_bit_flip_in_the_journals_header_leads_to_a_scan(crashed, position):
    flip(next(crashed.glob("journal-*.log")), position)
    with reopened(crashed, "scan") as store:
        assert all(read(store, KEYS))


@pytest.mark.parametrize("field", range(0, 128, 7))
def test_a_bit_flip_in_any_field_of_a_durable_record_leads_to_a_scan(crashed, field):
    flip(next(crashed.glob("journal-*.log")), f.JOURNAL_HEADER_BYTES + 5 * 128 + field)
    with reopened(crashed, "scan") as store:
        assert all(read(store, KEYS))


def test_a_journal_truncated_at_every_record_leads_to_a_scan(crashed):
    path = next(crashed.glob("journal-*.log"))
    data = path.read_bytes()
    for records in range(0, 42, 3):
        for extra in (0, 77):
            copy = crashed.parent / f"copy-{records}-{extra}"
            shutil.copytree(crashed, copy)
            length = f.JOURNAL_HEADER_BYTES + records * 128 + extra
            (copy / path.name).write_bytes(data[:length])
            with reopened(copy, "scan") as store:
                assert all(read(store, KEYS))
            shutil.rmtree(copy)


@pytest.mark.parametrize("length", [0, 3, 100, 511])
def test_a_journal_without_a_header_leads_to_a_scan(crashed, length):
    path = next(crashed.glob("journal-*.log"))
    path.write_bytes(path.read_bytes()[:length])
    with reopened(crashed, "scan") as store:
        assert all(read(store, KEYS))


def test_a_journal_that_ends_early_gives_the_pages_before(tmp_path):
    store = PageStore(tmp_path / "s", options())
    assert all(write(store, KEYS))
    crash(store)  # before a sync: nothing tells that what is torn was durable once
    path = tmp_path / "s/journal-1.log"
    data = path.read_bytes()
    for records in range(0, 42, 3):
        keep = f.JOURNAL_HEADER_BYTES + records * 128
        path.write_bytes(data[:keep] + bytes(len(data) - keep))
        copy = tmp_path / f"copy-{records}"
        shutil.copytree(tmp_path / "s", copy)
        with reopened(copy, "journal") as store:
            assert store.prefix(KEYS) == max(records - 2, 0)  # two make segments
            assert sum(read(store, KEYS)) == max(records - 2, 0)


def test_a_journal_that_is_gone_leads_to_a_scan(crashed):
    next(crashed.glob("journal-*.log")).unlink()
    with reopened(crashed, "scan") as store:
        assert all(read(store, KEYS))


def test_a_checkpoint_that_is_gone_leads_to_a_scan(closed):
    next(closed.glob("index-*.ckpt")).unlink()
    with reopened(closed, "scan") as store:
        assert all(read(store, KEYS))


@pytest.mark.parametrize("offset", [0, 8, 12, 28, 32, 40])
def test_a_bit_flip_in_a_segments_header_drops_the_segment(closed, offset):
    flip(closed / "segments/000001.seg", offset)
    with PageStore(closed, options()) as store:
        store.check_integrity()
        hits = read(store, KEYS)
        assert not any(hits[:5]), "pages of the first segment"
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))


PAGE_FIELDS = {"magic": 0, "version": 8, "depth": 12, "namespace": 16, "key": 48, "parent": 80}
PAGE_FIELDS |= {"length": 112, "written": 120, "check": 128, "header check": 144}
PAGE_FIELDS |= {"payload": 4096, "payload end": 4096 + 7999}


@pytest.mark.parametrize("name", PAGE_FIELDS)
def test_a_bit_flip_in_any_field_of_a_page_is_a_miss_and_heals(closed, name):
    path = closed / "segments/000001.seg"
    flip(path, 4096 + 2 * 12288 + PAGE_FIELDS[name])  # the third page
    findings = list(verify_store(closed))
    assert [finding.key for finding in findings] == [KEYS[2].hex()]
    with reopened(closed, "clean") as store:
        assert store.prefix(KEYS) == 40
        hits = read(store, KEYS)
        assert hits[:2] == [True, True]
        assert not hits[2]
        assert store.prefix(KEYS) == 2, "a dropped page takes its descendants with it"
        assert sum(store.stats().dropped.values()) == 38
        store.check_integrity()
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
    assert not list(verify_store(closed))


@pytest.mark.parametrize("length", [0, 100, 4096, 4097, 4096 + 12288, 4096 + 5 * 12288 - 1])
def test_a_truncated_segment_gives_misses_and_heals(closed, length):
    path = closed / "segments/000001.seg"
    path.write_bytes(path.read_bytes()[:length])
    with PageStore(closed, options()) as store:
        store.check_integrity()
        read(store, KEYS)
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))
        store.check_integrity()


def test_a_segment_cut_while_the_store_is_open_gives_misses(closed):
    with PageStore(closed, options()) as store:
        path = closed / "segments/000001.seg"
        with path.open("r+b") as file:
            file.truncate(4096 + 12288 + 1000)
        hits = read(store, KEYS)
        assert hits[0]
        assert not hits[1]
        assert store.prefix(KEYS) == 1


def test_swapped_segments_are_noticed(tmp_path):
    with PageStore(tmp_path / "s", options(4 * MIB)) as store:
        write(store, KEYS)
        write(store, chain("b", 40))
    first, second = (tmp_path / f"s/segments/00000{n}.seg" for n in (1, 2))
    first.rename(tmp_path / "swap")
    second.rename(first)
    (tmp_path / "swap").rename(second)
    assert sum("another name" in finding.what for finding in verify_store(tmp_path / "s")) == 2
    with PageStore(tmp_path / "s", options(4 * MIB)) as store:
        store.check_integrity()
        read(store, KEYS)
        assert all(write(store, KEYS))
        assert all(read(store, KEYS))


def test_a_segment_of_another_store_is_noticed(tmp_path, closed):
    with PageStore(tmp_path / "other", options()) as store:
        write(store, chain("x", 40))
    shutil.copy2(tmp_path / "other/segments/000001.seg", closed / "segments/000001.seg")
    assert any("another store" in finding.what for finding in verify_store(closed))
    before = contents(closed)
    with pytest.raises(StoreError, match=r"000001\.seg belongs to another page store"):
        PageStore(closed, options())
    assert contents(closed) == before, "it is not ours to remove"
    (closed / "segments/000001.seg").unlink()
    with PageStore(closed, options()) as store:
        assert not any(read(store, KEYS)[:5])
        assert store.prefix(chain("x", 1)) == 0


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != "lock"}


def test_a_checkpoint_of_another_store_is_not_believed(tmp_path, closed):
    other = tmp_path / "other"
    with PageStore(other, options()) as store:
        write(store, chain("x", 40))
    shutil.copy2(next(other.glob("index-*.ckpt")), closed / "index-1.ckpt")
    not_believed(closed)


def test_a_journal_of_another_store_is_not_believed(tmp_path, crashed):
    other = tmp_path / "other"
    store = PageStore(other, options())
    write(store, chain("x", 40))
    crash(store)
    shutil.copy2(other / "journal-1.log", crashed / "journal-1.log")
    not_believed(crashed)


def not_believed(folder):
    with reopened(folder, "scan") as store:
        assert store.prefix(chain("x", 1)) == 0
        assert all(read(store, KEYS))


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


def test_pages_swapped_within_a_segment_are_misses(closed):
    path = closed / "segments/000001.seg"
    data = bytearray(path.read_bytes())
    one, two = (slice(4096 + n * 12288, 4096 + (n + 1) * 12288) for n in (1, 2))
    data[one], data[two] = data[two], data[one]
    path.write_bytes(data)
    with PageStore(closed, options()) as store:
        hits = read(store, KEYS)
        assert hits[0]
        assert not hits[1]
        assert not hits[2]
        assert store.stats().dropped["key"]


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


def random_index(rows, seed=1):
    """Columns of chains of 100, and segments that hold them."""
    chance = random.Random(seed)
    segments = Segments(Space(1 << 45))
    segments.insert(Segment(1, 8192, rows // 2, -1), 4096 + rows // 2 * 8192)
    segments.insert(Segment(3, 8192, rows, -1), 4096 + rows * 8192)
    index = Index()
    parent = NO_ROW
    for row in range(rows):
        if row % 100 == 0:
            parent = NO_ROW if chance.random() < 0.5 or not row else chance.randrange(row)
        slot = place(1, row) if row < rows // 2 else place(3, row - rows // 2)
        parent = index.add(key_of(row), parent, slot, 4000, 0, chance.randrange(100))
    return index, segments


def parent_key(index, key):
    parent = index.parent[index.rows[key]]
    return None if parent == NO_ROW else index.key_of(parent)


def test_a_loaded_index_is_the_saved_one():
    index, segments = random_index(1000)
    for row in (5, 250, 251, 999):
        if index.location[row] >= 0:
            index.remove_tree(row)
    rows, body = Columns.of(index).body()
    segments.kind_of(8192)
    loaded = load_index(rows, memoryview(body), segments)
    loaded.check_integrity()
    assert set(loaded.rows) == set(index.rows)
    for key, row in index.rows.items():
        other = loaded.rows[key]
        assert loaded.location[other] == index.location[row]
        assert parent_key(loaded, key) == parent_key(index, key)
        assert loaded.time_us[other] == index.time_us[row]
    order = [key for key, _ in loaded.evict(0, 2000)]
    assert set(order) == set(index.rows)


def test_loading_leaves_out_what_has_no_slot_any_more():
    index, segments = random_index(1000)
    rows, body = Columns.of(index).body()
    segments.remove(segments.by_number[1])
    segments.kind_of(8192)
    loaded = load_index(rows, memoryview(body), segments)
    loaded.check_integrity()
    assert all(location >> 32 == 3 for location in loaded.location)
    assert all(parent_key(index, key) in {None, *loaded.rows} for key in loaded.rows)


@pytest.mark.parametrize("column", range(6))
def test_columns_that_contradict_each_other_are_refused(column):
    index, segments = random_index(100)
    segments.kind_of(8192)
    rows, body = Columns.of(index).body()
    starts = np.cumsum([0, 32, 8, 4, 4, 8])[column] * rows
    data = bytearray(body)
    width = (32, 8, 4, 4, 8, 4)[column]
    data[starts + 7 * width : starts + 8 * width] = data[starts + 9 * width : starts + 10 * width]
    loaded = load_index(rows, memoryview(bytes(data)), segments)
    if column in (4, 5):  # times and lengths may be equal
        loaded.check_integrity()
    else:
        assert loaded is None
