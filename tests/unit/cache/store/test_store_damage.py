"""Opening what was damaged, swapped or belongs to another store: never a wrong byte."""

import os
import shutil

import pytest
from support.store_crash import crash
from support.store_pages import chain, options, read, reopened, write

from sglang_ext.cache import upkeep
from sglang_ext.cache.store import PageStore, verify_store
from sglang_ext.cache.store import format as f
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import StoreError

KEYS = chain("a", 40)


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


def test_a_checkpoint_of_any_length_leads_to_a_scan(closed):
    path = next(closed.glob("index-*.ckpt"))
    for size_bytes in (path.stat().st_size + 1, 1 << 40):
        copy = closed.with_name(str(size_bytes))
        shutil.copytree(closed, copy)
        os.truncate(copy / path.name, size_bytes)
        assert {finding.file for finding in verify_store(copy)} == {path.name, "journal"}
        assert upkeep.look(copy).problem == ""
        with reopened(copy, "scan") as store:
            assert all(read(store, KEYS))


def test_a_segment_of_any_length_costs_no_memory(closed):
    os.truncate(closed / "segments/000001.seg", 1 << 42)
    [finding] = verify_store(closed)
    assert finding.file == "segments/000001.seg"
    assert f"made {1 << 42} bytes long" in finding.what
    assert f"made {1 << 42} bytes long" in upkeep.look(closed).problem
    with PageStore(closed, options()) as store:
        store.check_integrity()
        assert all(write(store, KEYS))
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


@pytest.mark.parametrize("offset", [0, 8, 12, 28, 32, 33, 40, "all"])
def test_a_segments_header_that_is_damaged_is_mended(closed, offset):
    path = closed / "segments/000001.seg"
    good = path.read_bytes()[:4096]
    if offset == "all":
        with path.open("r+b") as file:
            file.write(bytes(range(1, 256)) * 16)
    else:
        flip(path, offset)
    assert [finding.file for finding in verify_store(closed)] == ["segments/000001.seg"]
    with reopened(closed, "clean") as store:
        assert all(read(store, KEYS))
    assert path.read_bytes()[:4096] == good
    assert not list(verify_store(closed))


def test_a_segment_without_header_and_pages_that_is_all_zeros_is_removed(closed):
    path = closed / "segments/000009.seg"
    path.write_bytes(bytes(65536))
    path.chmod(0o600)
    with reopened(closed, "clean") as store:
        assert all(read(store, KEYS))
        assert not path.exists()


@pytest.mark.parametrize("text", ["mine", "mine" * 5000])
def test_a_file_of_somebody_else_with_a_segments_name_is_left_alone(closed, text):
    foreign = closed / "segments/000777.seg"
    in_the_way = closed / f"segments/{len(list(closed.glob('segments/*'))) + 1:06d}.seg"
    for path in (foreign, in_the_way):
        path.write_text(text)
        path.chmod(0o600)
    with PageStore(closed, options(16 * MIB)) as store:
        for number in range(30):
            assert all(write(store, chain(number, 40)))
        store.clear()
        assert all(write(store, KEYS))
    for path in (foreign, in_the_way):
        assert path.read_text() == text


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
