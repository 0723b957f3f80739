"""A read-only view of a store that another process writes.

Ranks that hold the same KV (MLA) read what one of them writes. The view is the writer's checkpoint
and journal, read on whenever somebody asks; a page that was evicted and overwritten meanwhile does
not match when it is read, and is a miss.
"""

import contextlib
import logging
import threading
import time
from pathlib import Path

from sglang_ext.cache.store.admission import WriteHours
from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import Record, RecordKind
from sglang_ext.cache.store.index import Index
from sglang_ext.cache.store.journal import JournalReader
from sglang_ext.cache.store.options import StoreOptions
from sglang_ext.cache.store.recovery import Replay, recover
from sglang_ext.cache.store.segment_files import SegmentFiles
from sglang_ext.cache.store.segments import Segments, Space
from sglang_ext.errors import StoreError

__all__ = ["Follower"]

logger = logging.getLogger(__name__)

# How often it is looked whether a writer came, or whether it began a new journal.
_LOOK_AGAIN_S = 0.2


class Follower:
    """Keeps a catalog up to date with a writer's journal.

    Args:
        folder, options, disk: as for the store.

    Raises:
        StoreFolderError, StoreFormatError: the folder is there and must not be used.
    """

    def __init__(self, folder: Path, options: StoreOptions, disk: Disk) -> None:
        self._path = folder
        self._options = options
        self._disk = disk
        self._space = Space(options.capacity_bytes)
        self._hours = WriteHours(None)
        self._guard = threading.Lock()
        self._reader: JournalReader | None = None
        self._next = 0
        self._looked_s = -_LOOK_AGAIN_S
        self._folder: StoreFolder | None = None
        self._seen: tuple[list[int], list[int]] | None = None
        self.files: SegmentFiles | None = None
        self.catalog = Catalog(Index(), Segments(self._space), self._hours, lambda record: None)
        self._replay = Replay(self.catalog.index, self.catalog.segments, self._hours)
        with contextlib.suppress(OSError):  # as later: looked at again
            self._attach()

    @property
    def direct(self) -> bool:
        """Whether O_DIRECT is in use."""
        return self.files is not None and self.files.direct

    def catch_up(self) -> None:
        """Read what the writer has done since. A disk that fails leaves the view as it was."""
        with self._guard:
            try:
                if self._reader is None:
                    if self._may_look():
                        self._attach()
                    return
                self._follow()
            except (OSError, StoreError) as error:
                logger.debug("page store %s: following: %s", self._path, error)

    def close(self) -> None:
        """Close all files."""
        with self._guard:
            self._detach()

    def _may_look(self) -> bool:
        now = time.monotonic()
        if now - self._looked_s < _LOOK_AGAIN_S:
            return False
        self._looked_s = now
        return True

    def _attach(self) -> None:
        """Load what there is; without a usable journal the writer has not begun yet."""
        try:
            folder = StoreFolder(self._path, self._disk, writer=False)
        except FileNotFoundError:
            return
        if not folder.load():
            return
        seen = folder.checkpoints(), folder.journals()
        if seen == self._seen:
            return  # still no writer
        self._detach()
        self._seen = seen
        self._folder = folder
        self.files = SegmentFiles(folder, direct=self._options.direct, read_only=True)
        segments = Segments(self._space)
        for segment, size in self.files.open_all()[0]:
            segments.insert(segment, size)
        attached = False
        try:
            self._switch(Index(), segments)
            recovered = recover(
                folder, segments, self._hours, threads=0, on_segment=self._on_segment
            )
            if recovered.how == "journal":
                self._reader = JournalReader(folder, recovered.position[0])
                self._next = recovered.position[1]
            # Clean: nobody writes; what is there can be read until somebody does.
            attached = recovered.how in ("journal", "clean")
            if attached:
                self._switch(recovered.index, segments)
        except (FileNotFoundError, StoreError) as error:
            logger.debug("page store %s: the writer is opening it: %s", self._path, error)
        finally:
            if not attached:
                self._detach()

    def _switch(self, index: Index, segments: Segments) -> None:
        with self.catalog.lock:
            self.catalog.index = index
            self.catalog.segments = segments
        self._replay = Replay(index, segments, self._hours, self._on_segment)

    def _detach(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self._seen = None
        with self.catalog.lock:
            segments = list(self.catalog.segments)
            for segment in segments:
                segment.gone = True
            idle = [segment for segment in segments if not segment.users]
        self._switch(Index(), Segments(self._space))
        if self.files is not None:
            for segment in idle:
                self.files.close(segment)

    def _follow(self) -> None:
        begin = self._next
        while self._reader is not None and (generation := self._read_on()):
            self._reader.close()
            self._reader = None
            if self._folder is not None:
                with contextlib.suppress(FileNotFoundError, StoreError):
                    self._reader = JournalReader(self._folder, generation)
            self._next = 0
        if self._reader is None:
            self._detach()  # too slow: the next journal is gone as well
        elif self._next == begin and self._may_look() and not self._reader.is_linked:
            self._detach()  # another writer, with another journal

    def _read_on(self) -> int:
        """Apply records up to the last whole one; generation of the next journal, or 0."""
        if self._reader is None:
            return 0
        for number, record in self._reader.records(self._next):
            if record is None:
                return 0
            self._next = number + 1
            if record.kind == RecordKind.NEXT:
                return record.time_us
            self._apply(record)
        return 0

    def _apply(self, record: Record) -> None:
        with self.catalog.lock:
            self._replay.apply(record)

    def _on_segment(self, number: int, slot_bytes: int) -> None:
        """A segment was made anew or is gone; the catalog's lock is held, or nobody reads yet."""
        segments = self._replay.segments
        old = segments.by_number.get(number)
        if old is not None:
            segments.remove(old)
            if not old.users and self.files is not None:
                self.files.close(old)
        if slot_bytes and self.files is not None:
            try:
                found = self.files.open(number)
            except FileNotFoundError:
                return  # gone again by now
            if not isinstance(found, str):
                segments.insert(*found)
