"""A read-only view of a store that another process writes.

Ranks that hold the same KV (MLA) read what one of them writes. The view is the writer's checkpoint
and journal, read on whenever somebody asks; a page that was evicted and overwritten meanwhile does
not match when it is read, and is a miss.

One thread does all of that, so that a disk that fails or hangs holds up no lookup.
"""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sglang_ext.cache.store.admission import WriteHours
from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import Record, RecordKind
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.index import Index
from sglang_ext.cache.store.journal import JournalReader
from sglang_ext.cache.store.options import StoreOptions
from sglang_ext.cache.store.recovery import Replay, recover
from sglang_ext.cache.store.segment_files import SegmentFiles
from sglang_ext.cache.store.segments import Segment, Segments, Space
from sglang_ext.errors import StoreError

__all__ = ["Follower"]

logger = logging.getLogger(__name__)

# How often it is looked whether a writer came, or whether it began a new journal.
_LOOK_AGAIN_S = 0.2
# The most time between two attempts to use what was damaged and has not changed since.
_LONGEST_PAUSE_S = 30.0
# How long a lookup waits for what the writer did before. Default 0.1 s: reading on takes 0.1 ms,
# the rest is for a busy processor. Cost: once, until the view is up to date again.
_WAIT_S = 0.1


class Follower:
    """Keeps a catalog up to date with a writer's journal.

    Args:
        folder, options, disk: as for the store.

    Raises:
        StoreFolderError, StoreFormatError: the folder is there and must not be used.
    """

    def __init__(self, folder: Path, options: StoreOptions, disk: Disk) -> None:
        self.health = Health("following")
        self._path = folder
        self._options = options
        self._disk = disk
        self._space = Space(options.capacity_bytes)
        self._hours = WriteHours(None)
        self._changed = threading.Condition()
        self._asked = 0
        self._done = 0
        self._is_late = False
        self._ended = False
        self._tick: Callable[[], None] = lambda: None
        self._thread: threading.Thread | None = None
        # What follows is the thread's.
        self._reader: JournalReader | None = None
        self._next = 0
        self._look_s = 0.0
        self._seen: tuple[list[int], list[int]] | None = None
        self._was_usable = False
        self._pause_s = 0.0
        self._again_s = 0.0
        self._folder: StoreFolder | None = None
        self.files: SegmentFiles | None = None
        self.catalog = Catalog(Index(), Segments(self._space), self._hours, lambda record: None)
        self._replay = Replay(self.catalog.index, self.catalog.segments, self._hours)
        self._opened: tuple[Segment, int] | None = None
        self._idle: list[Segment] = []
        try:
            self._attach()
        except OSError as error:
            self.health.failed(error)  # looked at again later

    @property
    def direct(self) -> bool:
        """Whether O_DIRECT is in use."""
        return self.files is not None and self.files.direct

    def start(self, tick: Callable[[], None]) -> None:
        """Once somebody has asked: read on, and call ``tick``, each ``options.sync_interval_s``."""
        self._tick = tick

    def catch_up(self) -> None:
        """Have read what the writer did before this call.

        Waits for that 0.1 s at most, and not at all while the one before has not come back: the
        view is then as it was, and comes up to date by itself.
        """
        with self._changed:
            if self._ended:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="page-store-follow", daemon=True
                )
                self._thread.start()
            self._asked += 1
            asked = self._asked
            self._changed.notify_all()
            if not self._is_late and not self._changed.wait_for(
                lambda: self._done >= asked or self._ended, _WAIT_S
            ):
                self._is_late = True

    def close(self, *, idle: bool) -> None:
        """End the thread and close all files; blocks ``options.stall_s`` at most.

        Args:
            idle: no operation is under way; otherwise descriptors stay open for it.
        """
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(self._options.stall_s)
            idle = idle and not self._thread.is_alive()  # it may hang in a read
        if idle:
            self._detach()

    def leave(self) -> None:
        """In a process that was forked: close what is the parent's. No lock is taken."""
        self._close_reader()
        if self.files is not None:
            self.files.close_all([*self.catalog.segments, *self._idle])

    def _run(self) -> None:
        tick_s = time.monotonic() + self._options.sync_interval_s
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._ended or self._done < self._asked,
                    max(0.0, tick_s - time.monotonic()),
                )
                if self._ended:
                    return
                asked = self._asked
            try:
                if time.monotonic() >= tick_s:
                    tick_s = time.monotonic() + self._options.sync_interval_s
                    self._tick()
                self._look()
            except Exception:
                logger.exception("page store: following failed in an unforeseen way")
                self._detach()
            with self._changed:
                self._done = asked
                self._is_late = False
                self._changed.notify_all()

    def _look(self) -> None:
        """Read on. A disk that fails leaves the view as it was."""
        if (self._reader is None and not self._may_look()) or not self.health.allows():
            return
        try:
            if self._reader is None:
                self._attach()
            else:
                self._follow()
        except StoreError as error:
            logger.debug("page store %s: following: %s", self._path, error)
        except OSError as error:
            self.health.failed(error)
        else:
            self.health.succeeded()

    def _attach(self) -> None:
        """Load what there is; without a usable journal the writer has not begun yet."""
        try:
            folder = StoreFolder(self._path, self._disk, writer=False)
        except FileNotFoundError:
            return
        if not folder.load():
            return
        seen = folder.checkpoints(), folder.journals()
        if seen != self._seen:
            self._pause_s = 0.0
        elif self._was_usable or time.monotonic() < self._again_s:
            return  # still no writer
        self._was_usable = self._load(folder)
        self._seen = seen
        if not self._was_usable:
            self._pause_s = min(max(2 * self._pause_s, _LOOK_AGAIN_S), _LONGEST_PAUSE_S)
            self._again_s = time.monotonic() + self._pause_s

    def _load(self, folder: StoreFolder) -> bool:
        """Recover the view; whether it can be used, as while a writer opens it cannot."""
        files = SegmentFiles(folder, direct=self._options.direct, read_only=True)
        segments = Segments(self._space)
        usable = False
        try:
            for number in folder.segment_numbers():
                if found := self._open(files, number):
                    segments.insert(*found)
            usable = self._recover(folder, files, segments)
        except FileNotFoundError as error:
            logger.debug("page store %s: the writer is opening it: %s", self._path, error)
        finally:
            if not usable:
                for segment in segments:
                    files.close(segment)
        return usable

    def _recover(self, folder: StoreFolder, files: SegmentFiles, segments: Segments) -> bool:
        replace = partial(self._replace, files, segments)
        try:
            recovered = recover(folder, segments, self._hours, threads=0, on_segment=replace)
            # Clean: nobody writes; what is there can be read until somebody does.
            if recovered.how not in ("journal", "clean"):
                return False
            reader = None
            if recovered.how == "journal":
                reader = JournalReader(folder, recovered.position[0])
        except StoreError as error:
            logger.debug("page store %s: the writer is opening it: %s", self._path, error)
            return False
        self._detach()
        self._folder, self.files, self._reader = folder, files, reader
        self._next = recovered.position[1]
        self._switch(recovered.index, segments)
        return True

    def _open(self, files: SegmentFiles, number: int) -> tuple[Segment, int] | None:
        try:
            found = files.open(number)
        except FileNotFoundError:
            return None  # gone again by now, as the journal will tell
        return None if isinstance(found, str) else found

    def _replace(
        self, files: SegmentFiles, segments: Segments, number: int, slot_bytes: int
    ) -> None:
        """A segment was made anew or is gone, in a view that nobody has seen yet."""
        old = segments.by_number.get(number)
        if old is not None:
            segments.remove(old)
            files.close(old)
        if slot_bytes and (found := self._open(files, number)):
            segments.insert(*found)

    def _switch(self, index: Index, segments: Segments) -> None:
        """Put another view in place of the one that there is."""
        with self.catalog.lock:
            for segment in self.catalog.segments:
                segment.gone = True
                if not segment.users:
                    self._idle.append(segment)  # others are closed by their last user
            self.catalog.index = index
            self.catalog.segments = segments
        self._replay = Replay(index, segments, self._hours, self._on_segment)
        self._close_idle()

    def _detach(self) -> None:
        self._close_reader()
        self._seen = None
        self._switch(Index(), Segments(self._space))

    def _close_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            with contextlib.suppress(OSError):
                reader.close()

    def _follow(self) -> None:
        begin = self._next
        while self._reader is not None and (generation := self._read_on()):
            if self._folder is None:
                return
            try:
                reader = JournalReader(self._folder, generation)
            except (FileNotFoundError, StoreError):
                self._detach()  # too slow: the next journal is gone as well
                return
            self._close_reader()
            self._reader, self._next = reader, 0
        if self._reader is None or self._next != begin or not self._may_look():
            return
        if not self._reader.is_linked:
            self._detach()  # another writer, with another journal

    def _may_look(self) -> bool:
        now = time.monotonic()
        if now < self._look_s:
            return False
        self._look_s = now + _LOOK_AGAIN_S
        return True

    def _read_on(self) -> int:
        """Apply records up to the last whole one; generation of the next journal, or 0."""
        if self._reader is None:
            return 0
        for number, record in self._reader.records(self._next):
            if record is None:
                break
            if record.kind == RecordKind.NEXT:
                return record.time_us
            self._apply(record)
            self._next = number + 1
        return self._unnamed_next(self._reader)

    def _unnamed_next(self, reader: JournalReader) -> int:
        """Generation of the journal after a full one that the disk did not let name it, or 0."""
        if self._folder is None or not reader.is_full(self._next):
            return 0
        generation = reader.generation + 1
        return generation if generation in self._folder.journals() else 0

    def _apply(self, record: Record) -> None:
        """Apply a record; files are opened before the catalog's lock is taken, closed after."""
        if record.kind == RecordKind.SEGMENT and record.size and self.files is not None:
            self._opened = self._open(self.files, record.segment)
        with self.catalog.lock:
            self._replay.apply(record)
        self._close_idle()

    def _on_segment(self, number: int, slot_bytes: int) -> None:
        """A segment was made anew or is gone; the catalog's lock is held."""
        segments = self._replay.segments
        old = segments.by_number.get(number)
        if old is not None:
            segments.remove(old)
            if not old.users:
                self._idle.append(old)
        if slot_bytes and self._opened is not None:
            segments.insert(*self._opened)

    def _close_idle(self) -> None:
        if self.files is not None:
            for segment in self._idle:
                self.files.close(segment)
        self._idle.clear()
