"""The journal: records in order, files of a fixed size, at most two of them."""

import errno
import itertools
import os

import pytest
from support.store_pages import key_of

from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import JOURNAL_HEADER_BYTES, Record, RecordKind
from sglang_ext.cache.store.journal import Journal, JournalFullError, JournalReader
from sglang_ext.errors import StoreError

RECORDS = 8
SIZE = JOURNAL_HEADER_BYTES + RECORDS * 128


@pytest.fixture
def folder(tmp_path, disk):
    folder = StoreFolder(tmp_path / "store", disk, writer=True)
    folder.create()
    return folder


@pytest.fixture
def full():
    return []


@pytest.fixture
def journal(folder, full):
    journal = Journal(folder, lambda: SIZE, lambda: full.append(1))
    journal.begin(1)
    yield journal
    journal.close()


def drop(number):
    return Record(RecordKind.DROP, key_of(number))


def written(folder, generation):
    reader = JournalReader(folder, generation)
    try:
        return [record for _, record in reader.records(0) if record is not None]
    finally:
        reader.close()


def test_records_are_on_disk_after_a_write_and_not_before(folder, journal):
    journal.add(drop(1))
    assert written(folder, 1) == []
    journal.write()
    journal.add(drop(2))
    journal.write()
    assert written(folder, 1) == [drop(1), drop(2)]


def test_a_full_file_names_its_successor_and_asks_for_a_checkpoint(folder, journal, full):
    for number in range(10):
        journal.add(drop(number))
    journal.write()
    assert written(folder, 1) == [*map(drop, range(7)), Record(RecordKind.NEXT, time_us=2)]
    assert written(folder, 2) == [*map(drop, range(7, 10))]
    assert full


def test_a_third_file_waits_for_a_checkpoint(folder, journal):
    for number in range(20):
        journal.add(drop(number))
    with pytest.raises(JournalFullError):
        journal.write()
    assert folder.journals() == [1, 2]
    journal.forget_before(2)
    journal.write()
    assert folder.journals() == [2, 3]
    assert written(folder, 3) == [*map(drop, range(14, 20))]


def test_what_the_disk_did_not_take_is_written_later(folder, journal, disk):
    disk.fault = lambda operation, path, offset: errno.EIO if operation == "write" else 0
    journal.add(drop(1))
    with pytest.raises(OSError, match="Input/output"):
        journal.write()
    disk.fault = lambda *what: 0
    journal.add(drop(2))
    journal.write()
    assert written(folder, 1) == [drop(1), drop(2)]


def test_a_journal_whose_sync_failed_is_not_relied_on(folder, journal, disk, full):
    journal.add(drop(1))
    journal.write()
    disk.fault = lambda operation, path, offset: errno.EIO if operation == "sync" else 0
    with pytest.raises(OSError, match="Input/output"):
        journal.sync()
    assert journal.lost
    assert full
    disk.fault = lambda *what: 0
    losses = [journal.renew() for _ in range(3)][-1]
    assert journal.generation == 2, "one new file is enough until there is a checkpoint"
    journal.sync()
    assert journal.lost, "no sync makes durable what another one lost"
    journal.forget_before(2, losses)
    assert not journal.lost


def test_a_loss_after_the_checkpoint_was_begun_is_not_covered_by_it(journal):
    journal.lose()
    losses = journal.renew()
    journal.lose()
    journal.forget_before(2, losses)
    assert journal.lost


def test_no_third_file_is_made_for_what_was_lost(folder, journal):
    for number in range(10):
        journal.add(drop(number))
    journal.write()
    assert folder.journals() == [1, 2]
    journal.lose()
    losses = journal.renew()
    assert folder.journals() == [1, 2]
    journal.forget_before(2, losses)
    assert not journal.lost
    assert folder.journals() == [2]


def test_records_are_not_replayed_without_those_that_were_not_taken(folder, journal, monkeypatch):
    monkeypatch.setattr("sglang_ext.cache.store.journal._MOST_PENDING", 3)
    for number in range(5):
        journal.add(drop(number))
    with pytest.raises(JournalFullError, match="missing"):
        journal.write()
    losses = journal.renew()
    assert journal.waits, "what was not taken is not on disk before a checkpoint is"
    journal.add(drop(5))
    with pytest.raises(JournalFullError, match="missing"):
        journal.write()
    journal.forget_before(2, losses)
    journal.write()
    assert written(folder, 2) == [drop(5)]


def test_a_part_of_what_is_forgotten_is_not_replayed(folder, journal, disk, monkeypatch):
    """It was written to the second file, whose successor has to wait for the checkpoint."""
    for number in range(9):
        journal.add(drop(number))
    journal.write()
    monkeypatch.setattr("sglang_ext.cache.store.journal._MOST_PENDING", 3)
    for number in range(9, 14):
        journal.add(drop(number))
    journal._torn, torn = 0, journal._torn
    whole = disk.write

    def partly(file, pieces, offset):
        done = whole(file, [bytes(pieces[0])[:256]], offset)
        disk.fault = lambda *what: errno.EIO
        return done

    with monkeypatch.context() as patch:
        patch.setattr(disk, "write", partly)
        with pytest.raises(OSError, match="Input/output"):
            journal.write()
    disk.fault = lambda *what: 0
    assert written(folder, 2) == [drop(7), drop(8), drop(9), drop(10)]
    journal._torn = torn
    losses = journal.renew()
    generation, record = journal.position()
    journal.forget_before(generation, losses)
    journal.add(drop(20))
    journal.write()
    reader = JournalReader(folder, generation)
    after = [record for _, record in reader.records(record) if record is not None]
    every = [record for _, record in reader.records(0) if record is not None]
    reader.close()
    assert after == [drop(20)]
    assert [record.kind for record in every[2:]] == [RecordKind.TOUCH] * 3 + [RecordKind.DROP]


def test_a_reader_reads_as_far_as_the_header_says(folder, journal):
    journal.add(drop(1))
    journal.write()
    os.truncate(folder.journal_path(1), 1 << 40)
    reader = JournalReader(folder, 1)
    read = list(itertools.islice(reader.records(0), 20))
    reader.close()
    assert read[:2] == [(0, drop(1)), (1, None)]
    assert len(read) == RECORDS


def test_a_reader_that_cannot_read_leaves_nothing_open(folder, journal, disk):
    before = set(os.listdir("/proc/self/fd"))
    disk.fault = lambda operation, path, offset: errno.EIO if operation == "read" else 0
    with pytest.raises(OSError, match="Input/output"):
        JournalReader(folder, 1)
    assert set(os.listdir("/proc/self/fd")) == before


def test_memory_is_bounded_while_the_disk_takes_nothing(journal, monkeypatch, full):
    monkeypatch.setattr("sglang_ext.cache.store.journal._MOST_PENDING", 5)
    for number in range(9):
        journal.add(drop(number))
    assert len(journal._pending) == 5
    assert journal.lost
    assert full


def test_a_reader_goes_on_where_it_stopped(folder, journal):
    reader = JournalReader(folder, 1)
    journal.add(drop(1))
    journal.write()
    assert next(reader.records(0)) == (0, drop(1))
    assert next(reader.records(1)) == (1, None)
    journal.add(drop(2))
    journal.write()
    assert next(reader.records(1)) == (1, drop(2))
    assert reader.is_linked
    journal.renew()
    journal.forget_before(2)
    assert not reader.is_linked
    reader.close()


def test_a_reader_refuses_what_is_not_the_journal(folder, journal):
    path = folder.journal_path(1)
    path.rename(folder.journal_path(5))
    with pytest.raises(StoreError, match="another journal"):
        JournalReader(folder, 5)
    with pytest.raises(FileNotFoundError):
        JournalReader(folder, 1)
