"""The keeper: a writer's folder, lock, journal, checkpoints and segments, and who syncs them.

The order of steps is what ``recovery`` relies on, whatever a crash leaves behind. A checkpoint is
durable before the journals that it covers go; a segment is durable before a page lies in it.
"""

import errno
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sglang_ext.cache.store.admission import SeenTwice, WriteHours
from sglang_ext.cache.store.checkpoint import write_checkpoint
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import BLOCK_BYTES, Record, RecordKind
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.index import NO_ROW
from sglang_ext.cache.store.journal import Journal, JournalFullError
from sglang_ext.cache.store.options import StoreOptions
from sglang_ext.cache.store.placing import PlacingCatalog
from sglang_ext.cache.store.plan import Plan, Planned
from sglang_ext.cache.store.recovery import recover
from sglang_ext.cache.store.segment_files import SegmentFiles
from sglang_ext.cache.store.segments import Segment, Segments, Space

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

# How long growing is left alone after the disk had no room for a segment.
_GROW_AGAIN_SYNCS = 30


class Keeper:
    """Everything of a writer that is not the I/O of pages.

    ``turn`` is held by whoever writes pages or clears: one at a time.

    Args:
        folder, options, disk: as for the store.
        hours: the write budget; what earlier runs wrote is restored.
        seen: filter of admission; None: all pass.
        health: is told of faults.

    Raises:
        StoreError: as the store's constructor says.
        OSError: the disk fails.
    """

    def __init__(
        self,
        folder: Path,
        options: StoreOptions,
        disk: Disk,
        hours: WriteHours,
        seen: SeenTwice | None,
        health: Health,
    ) -> None:
        self.turn = threading.Lock()
        self.syncs = 0
        self.checkpoints = 0
        self._hours = hours
        self._health = health
        self._interval_s = options.sync_interval_s
        self._stall_s = options.stall_s
        self._syncing = threading.Lock()
        self._checkpointing = threading.Lock()
        self._growing = threading.Lock()
        self._wake = threading.Event()
        self._wanted = False
        self._ended = False
        self._grow_in = 0
        self._thread: threading.Thread | None = None
        self.folder = StoreFolder(folder, disk, writer=True)
        self.folder.claim()
        try:
            self._open(options, hours, seen)
        except BaseException:
            self.folder.release()
            raise

    def _open(self, options: StoreOptions, hours: WriteHours, seen: SeenTwice | None) -> None:
        if not self.folder.load():
            self.folder.create()
        self.folder.remove_partial()
        self.space = Space(options.capacity_bytes)
        self.files = SegmentFiles(self.folder, direct=options.direct, read_only=False)
        segments = Segments(self.space)
        good, bad = self.files.open_all()
        for segment, size in good:
            segments.insert(segment, size)
        for number, why in bad:
            logger.warning("page store: segment %d is removed: %s", number, why)
            self.files.remove(number)
        self.recovered = recover(self.folder, segments, hours, threads=options.io_threads)
        self._generation = self.recovered.checkpoint
        self.journal = Journal(self.folder, self._journal_bytes, self._want_checkpoint)
        self.catalog = PlacingCatalog(self.recovered.index, segments, hours, self.journal.add, seen)
        self._fit()
        self._tidy()
        self.journal.begin(self.recovered.journal)
        for name, what in self.recovered.damage:
            logger.warning("page store: %s: %s", name, what)
        logger.info(
            "page store %s: %d pages (%s)",
            self.folder.path,
            len(self.catalog.index),
            self.recovered.how,
        )

    def _tidy(self) -> None:
        """One checkpoint and no journal, whatever the last process left: room for two of each."""
        for generation in self.folder.checkpoints():
            if generation != self.recovered.used:
                self.folder.remove(self.folder.checkpoint_path(generation))
        if self.recovered.how not in ("new", "clean"):
            # Clean: no journal follows before one is made, and losing that one is no damage.
            self._checkpoint((self.recovered.journal, 0), clean=True)
        self._remove_old(self.recovered.journal)

    def start(self, tick: Callable[[], None]) -> None:
        """Begin to sync; ``tick`` is called about as often."""
        self._thread = threading.Thread(
            target=self._run, args=(tick,), name="page-store-sync", daemon=True
        )
        self._thread.start()

    def grow(self, slot_bytes: int) -> None:
        """Make a segment, in room that there is or in that of another slot size's segment.

        Where neither is to be had, the catalog will evict instead. Called by a worker.
        """
        # One that hangs must not be joined by others: they would make the same segment.
        if not self._growing.acquire(blocking=False):
            return
        try:
            self._grow(slot_bytes)
        finally:
            self._growing.release()

    def _grow(self, slot_bytes: int) -> None:
        with self.catalog.lock:
            can_grow = self.catalog.can_grow(slot_bytes)
        if not can_grow:
            stalest = self.catalog.stalest_segments(slot_bytes)
            if not stalest:
                return
            self._retire(stalest[0])
        try:
            if not self._make(slot_bytes):
                self._stop_growing()
        except OSError as error:
            self._health.errors[errno.errorcode.get(error.errno or 0, "UNKNOWN")] += 1
            logger.warning("page store: no new segment: %s; older pages go instead", error)
            self._stop_growing()

    def give_up(self, plan: Plan) -> None:
        """Nothing of a plan is written."""
        for segment in self.catalog.commit(plan, [])[1]:
            self.files.close(segment)

    def commit(self, plan: Plan, written: Sequence[Planned]) -> list[Planned]:
        """Make pages resident and write that down; pages for which both was done."""
        done, gone = self.catalog.commit(plan, written)
        for segment in gone:
            self.files.close(segment)
        try:
            self._write_journal()
        except OSError as error:
            self._health.failed(error)
            return []
        return done

    def sync(self) -> None:
        """Make everything so far durable. Raises ``OSError`` where the disk does not."""
        with self._syncing:
            if self.journal.lost:
                self._checkpoint_now()  # what a failed sync has lost is durable no other way
            self.catalog.record_touches()
            generation, records = self.journal.position()
            dirty = self.catalog.take_dirty()
            try:
                for segment in dirty:
                    self.folder.disk.sync(segment.file)
            except OSError:
                with self.catalog.lock:
                    for segment in dirty:
                        segment.dirty = True
                raise
            finally:
                for segment in self.catalog.unuse(dirty):
                    self.files.close(segment)
            self._write_journal()
            self.journal.sync()
            if dirty:
                # Not durable itself before the next sync: it tells damage from a torn end.
                self.journal.add(Record(RecordKind.SYNCED, size=records, time_us=generation))
                self._write_journal()
            self.syncs += 1

    def clear(self) -> None:
        """Drop all pages and remove all segments; ``turn`` is held."""
        gone = self.catalog.clear()
        try:
            self._write_journal()
        finally:
            for segment, unused in gone:
                self.files.remove(segment.number)
                if unused:
                    self.files.close(segment)
        self.folder.disk.sync_folder(self.folder.segments)
        self._grow_in = 0
        self.catalog.may_grow = True

    def close(self, *, idle: bool) -> None:
        """Sync, write a last checkpoint, release the lock.

        Args:
            idle: no operation is under way; otherwise descriptors stay open for it.
        """
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._stall_s)
            idle = idle and not self._thread.is_alive()  # it may hang in a sync
        try:
            if idle:
                self._last_sync()
                generation = self.journal.generation + 1
                self._checkpoint((generation, 0), clean=True)
                self._remove_old(generation)
        except OSError as error:
            logger.warning("page store: closed without a checkpoint: %s", error)
        finally:
            self.journal.close()
            if idle:
                for segment in self.catalog.segments:
                    self.files.close(segment)
            self.folder.release()

    def _write_journal(self) -> None:
        try:
            self.journal.write()
        except JournalFullError:
            # More was written than the thread has had time for: it is this caller's turn.
            self._checkpoint_now()
            self.journal.write()

    def _last_sync(self) -> None:
        try:
            self.sync()
        except OSError as error:
            # The checkpoint is tried all the same: it may lie where the disk still works.
            logger.warning("page store: the last sync failed: %s", error)

    def _run(self, tick: Callable[[], None]) -> None:
        while not self._ended:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if self._ended:
                return
            try:
                tick()
                self.sync()
                self._checkpoint_now()
                self._allow_growing()
                self._recycle()
            except OSError as error:
                self._health.failed(error)
            except Exception:
                logger.exception("page store: syncing failed in an unforeseen way")

    def _checkpoint_now(self) -> None:
        """Write a checkpoint where one is wanted, and remove the journals that it covers."""
        with self._checkpointing:
            if not self._wanted:
                return
            if self.journal.lost:
                self.journal.renew()
            self._wanted = False  # whoever asks from here on means the next one
            position = self.journal.position()
            try:
                self._checkpoint(position, clean=False)
            except OSError:
                self._wanted = True
                raise
            self.journal.forget_before(position[0])

    def _checkpoint(self, position: tuple[int, int], *, clean: bool) -> None:
        old = self._generation
        columns = self.catalog.columns()
        with self.catalog.lock:
            written = self._hours.pack()
        write_checkpoint(self.folder, columns, position, old + 1, clean=clean, written=written)
        self._generation = old + 1
        for generation in self.folder.checkpoints():
            if generation <= old:
                self.folder.remove(self.folder.checkpoint_path(generation))
        self.checkpoints += 1

    def _remove_old(self, journal: int) -> None:
        """Remove journals before ``journal``, which the newest checkpoint covers."""
        for generation in self.folder.journals():
            if generation < journal:
                self.folder.remove(self.folder.journal_path(generation))

    def _journal_bytes(self) -> int:
        with self.catalog.lock:
            return self.space.allot_journal(self.catalog.segments.slots)

    def _want_checkpoint(self) -> None:
        self._wanted = True
        self._wake.set()

    def _make(self, slot_bytes: int) -> bool:
        """Make one more segment; False where its file is no good."""
        catalog = self.catalog
        with catalog.lock:
            segments = catalog.segments
            slots = self.space.slots_of_next(slot_bytes, segments.slots, segments.charged_bytes)
            number = segments.next_number()
        if not slots:
            return True
        segment = self.files.create(number, slot_bytes, slots, self.space)
        if segment is None:
            return False
        catalog.insert_segment(segment, BLOCK_BYTES + slots * slot_bytes)
        return True

    def _retire(self, segment: Segment) -> None:
        unused = self.catalog.retire(segment)
        if unused is None:
            return
        self.files.remove(segment.number)
        if unused:
            self.files.close(segment)

    def _recycle(self) -> None:
        """Take a segment from another slot size whose pages are all older than what would go."""
        segment = self.catalog.idle_segment()
        if segment is not None:
            self._retire(segment)

    def _fit(self) -> None:
        """Give segments back until the store fits a capacity that became smaller."""
        segments = self.catalog.segments
        for segment in self.catalog.stalest_segments(NO_ROW):
            needed = segments.charged_bytes + self.space.reserved_bytes(segments.slots)
            if needed <= self.space.capacity_bytes:
                return
            logger.info("page store: segment %d goes: the capacity is smaller", segment.number)
            self._retire(segment)

    def _stop_growing(self) -> None:
        self.catalog.may_grow = False
        self._grow_in = _GROW_AGAIN_SYNCS

    def _allow_growing(self) -> None:
        if self._grow_in:
            self._grow_in -= 1
            self.catalog.may_grow = not self._grow_in
