"""The journal: what happened to the index since the last checkpoint, in records of 128 bytes.

Records are collected in memory under the catalog's lock, in the order in which the index changed,
and written outside of it: a disk that hangs must not hold up a lookup. A file is allocated whole
when it is made; a full one ends with a record that names the next.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator

from sglang_ext.cache.store.disk import read_fully, write_fully
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import (
    JOURNAL_HEADER_BYTES,
    RECORD_BYTES,
    JournalHeader,
    Record,
    RecordKind,
)
from sglang_ext.errors import StoreError

__all__ = ["Journal", "JournalFullError", "JournalReader"]

logger = logging.getLogger(__name__)

# A record that does nothing: no page has that key.
_NOTHING = Record(RecordKind.TOUCH)
# Records kept in memory while the disk takes none. Cost: 128 bytes each. Past that the journal is
# abandoned, and the next checkpoint begins a new one.
_MOST_PENDING = 1 << 17


class JournalFullError(OSError):
    """No record can be written before a checkpoint: both journals are full, or one is missing."""


class Journal:
    """Writes records.

    ``add`` is called with the catalog's lock held and does no I/O. ``write`` and ``sync`` may
    block; they are called by workers and by the store's own thread.

    Args:
        folder: where.
        size_bytes: gives the length of the next journal file.
        on_full: called when a checkpoint is needed.
    """

    def __init__(
        self, folder: StoreFolder, size_bytes: Callable[[], int], on_full: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._size_bytes = size_bytes
        self._most_records = 0
        self._on_full = on_full
        self._guard = threading.Lock()
        self._pending: list[Record] = []
        self._file: int | None = None
        self._unsynced: list[int] = []
        self.generation = 0
        self.records = 0
        self.oldest = 0
        self._losing = threading.Lock()
        self._losses = 0
        self._covered = 0
        self._torn = 0
        self._spoilt = 0

    @property
    def waits(self) -> bool:
        """Whether records are in memory that no ``write`` has taken to the disk."""
        return bool(self._pending) or self._torn > self._covered

    @property
    def lost(self) -> bool:
        """Whether records may be missing on disk, and no checkpoint is known that has them."""
        return self._losses != self._covered

    def lose(self) -> None:
        """Records may be missing on disk: a checkpoint is needed."""
        with self._losing:
            self._losses += 1
        self._on_full()

    def begin(self, generation: int) -> None:
        """Make the file of ``generation``, the only one that there is."""
        with self._guard:
            self._begin(generation)
            self.oldest = generation

    def add(self, record: Record) -> None:
        """Take a record; it is on disk after the next ``write``."""
        if len(self._pending) >= _MOST_PENDING:
            self.lose()
            self._torn = self._losses
            return
        self._pending.append(record)

    def write(self) -> None:
        """Write what was added.

        Raises:
            JournalFullError: a checkpoint has to be written first.
            OSError: the disk did not take it; the records are kept and written next time.
        """
        with self._guard:
            self._write()

    @contextlib.contextmanager
    def standing(self) -> Iterator[Callable[[bytes], bool]]:
        """For the time of a ``with`` nobody writes: tells of a key whether its page is on disk."""
        with self._guard:
            torn = self._torn > self._covered
            waiting = {record.key for record in self._pending if record.kind == RecordKind.PUT}
            yield lambda key: not torn and key not in waiting

    def position(self) -> tuple[int, int]:
        """Generation and number of the next record, once what was added is written.

        What the disk does not take now is written later.
        """
        with self._guard:
            try:
                self._write()
            except OSError as error:
                # Replaying records that the checkpoint has seen leads to the same state.
                logger.debug("journal before a checkpoint: %s", error)
            return self.generation, self.records

    def sync(self) -> None:
        """Make what was written durable. One call at a time: it closes files that are full."""
        with self._guard:
            files, self._unsynced = self._unsynced, []
        failed = None
        for file in files:
            try:
                self._folder.disk.sync(file)
            except OSError as error:
                failed = error
            with self._guard:
                is_over = file != self._file and file not in self._unsynced
            if is_over:
                self._folder.disk.close(file)
        if failed is not None:
            # The kernel may have dropped what it could not write and report success next time:
            # only what is written anew, above a new checkpoint, can be relied on.
            self.lose()
            raise failed

    def renew(self) -> int:
        """Before a checkpoint: where records were lost, go on in a new file if there is room.

        With two files the checkpoint has to come first: it covers what was written to the second
        one, and what is written there after it is as good as in a new one.

        Returns:
            For `forget_before`: the losses that a checkpoint made from here on covers.

        Raises:
            OSError: the disk did not take it; it is tried again.
        """
        with self._guard:
            losses = self._losses
            if self._torn > self._covered:
                # The checkpoint has them. Replayed above it, without those that were not taken,
                # they would lead elsewhere.
                self._pending.clear()
            if self.lost and self.oldest == self.generation:
                self._begin(self.generation + 1)
            elif self._torn > self._covered and self._spoilt and self._file is not None:
                # A part of what is forgotten may be on disk, where the checkpoint says to go on.
                self._put(self._file, [_NOTHING] * self._spoilt)
            return losses

    def forget_before(self, generation: int, losses: int = 0) -> None:
        """A checkpoint covers all before ``generation``, and ``losses``: remove those files."""
        for number in self._folder.journals():
            if number < generation:
                self._folder.remove(self._folder.journal_path(number))
        with self._guard:
            self.oldest = max(self.oldest, generation)
            self._covered = max(self._covered, losses)

    def close(self) -> None:
        """Close the files; nothing is written."""
        with self._guard:
            self.leave()

    def leave(self) -> None:
        """As ``close``, in a process that was forked, where nobody else is about."""
        for file in {*self._unsynced, *([] if self._file is None else [self._file])}:
            with contextlib.suppress(OSError):
                self._folder.disk.close(file)
        self._unsynced = []
        self._file = None

    def _write(self) -> None:
        if self._torn > self._covered:
            raise JournalFullError("records are missing until a checkpoint is written")
        while self._pending:
            room = self._most_records - 1 - self.records  # one is kept for the way on
            if room <= 0:
                self._next()
                continue
            if self._file is None:
                raise JournalFullError("the journal is closed")
            batch = self._pending[:room]
            self._put(self._file, batch)
            del self._pending[: len(batch)]

    def _put(self, file: int, batch: list[Record]) -> None:
        data = b"".join(
            record.pack(self.records + number, self.generation)
            for number, record in enumerate(batch)
        )
        offset = JOURNAL_HEADER_BYTES + self.records * RECORD_BYTES
        self._spoilt = max(self._spoilt, len(batch))
        write_fully(self._folder.disk, file, memoryview(data), offset)
        self._spoilt = max(0, self._spoilt - len(batch))
        self.records += len(batch)
        if file not in self._unsynced:
            self._unsynced.append(file)

    def _next(self) -> None:
        """Go on in a new file; at most two exist."""
        self._on_full()
        if self.oldest < self.generation:
            raise JournalFullError("both journals are full until a checkpoint is written")
        old = self._file
        if old is None:
            raise JournalFullError("the journal is closed")
        generation, records = self.generation, self.records
        self._begin(generation + 1)
        # Last, so that whoever follows the journal finds the file that is named.
        link = Record(RecordKind.NEXT, time_us=generation + 1).pack(records, generation)
        offset = JOURNAL_HEADER_BYTES + records * RECORD_BYTES
        write_fully(self._folder.disk, old, memoryview(link), offset)

    def _begin(self, generation: int) -> None:
        disk, path = self._folder.disk, self._folder.journal_path(generation)
        size_bytes = self._size_bytes()
        # Under another name until it is whole: a journal without a good header is a damaged one.
        partial = self._folder.partial(path)
        self._folder.remove(partial)
        file = self._folder.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            disk.allocate(file, size_bytes)
            header = JournalHeader(self._folder.store_id, generation, size_bytes).pack()
            write_fully(disk, file, memoryview(header), 0)
            disk.sync(file)
            disk.rename(partial, path)
            disk.sync_folder(self._folder.path)
        except BaseException:
            disk.close(file)
            self._folder.remove(partial)
            self._folder.remove(path)
            raise
        if self._file is not None and self._file not in self._unsynced:
            self._unsynced.append(self._file)  # the next sync closes it
        self._file = file
        self.generation, self.records, self._spoilt = generation, 0, 0
        self._most_records = (size_bytes - JOURNAL_HEADER_BYTES) // RECORD_BYTES


class JournalReader:
    """Reads a journal from a record on, again and again where somebody writes it.

    Args:
        folder: where.
        generation: which.

    Raises:
        FileNotFoundError: it does not exist (any more).
        StoreError: its header is damaged or another store's.
    """

    def __init__(self, folder: StoreFolder, generation: int) -> None:
        self.generation = generation
        self._file_bytes = 0
        self._disk = folder.disk
        self._file = folder.open(folder.journal_path(generation), os.O_RDONLY)
        header = bytearray(JOURNAL_HEADER_BYTES)
        try:
            read_fully(self._disk, self._file, memoryview(header), 0)
            wrong = self._wrong(JournalHeader.unpack(bytes(header)), folder.store_id)
            if wrong:
                raise StoreError(f"{folder.journal_path(generation).name} {wrong}")
        except BaseException:
            self.close()
            raise

    def records(self, first: int) -> Iterator[tuple[int, Record | None]]:
        """Numbers and records from ``first`` to the end of the journal; None: not whole."""
        buffer = memoryview(bytearray(64 * 1024))
        number = first
        while (offset := JOURNAL_HEADER_BYTES + number * RECORD_BYTES) < self._file_bytes:
            most = self._file_bytes - offset
            got = read_fully(self._disk, self._file, buffer[:most], offset)
            for start in range(0, got - RECORD_BYTES + 1, RECORD_BYTES):
                data = buffer[start : start + RECORD_BYTES]
                yield number, Record.unpack(data, number, self.generation)
                number += 1
            if got < RECORD_BYTES:
                return

    def _wrong(self, header: JournalHeader | None, store: bytes) -> str:
        if header is None:
            return "has a damaged header"
        if header[:2] != (store, self.generation):
            return "is another journal under this name"
        self._file_bytes = header.file_bytes
        size = self._disk.stat(self._file).st_size
        return "" if size >= header.file_bytes else f"was cut to {size} bytes"

    def is_full(self, number: int) -> bool:
        """Whether records before ``number`` are all there is room for, the way on left out."""
        return number >= (self._file_bytes - JOURNAL_HEADER_BYTES) // RECORD_BYTES - 1

    @property
    def is_linked(self) -> bool:
        """Whether the file still has its name."""
        return self._disk.stat(self._file).st_nlink > 0

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._file)
