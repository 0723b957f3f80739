"""The keeper: a writer's folder, lock, journal, checkpoints and segments, and who syncs them.

The order of steps is what ``recovery`` relies on, whatever a crash leaves behind. A checkpoint is
durable before the journals that it covers go; a segment is durable before a page lies in it.
"""

import contextlib
import errno
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from sglang_ext.cache.quiet import LogGate
from sglang_ext.cache.store.admission import SeenTwice, WriteHours
from sglang_ext.cache.store.checkpoint import write_checkpoint
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import Record, RecordKind
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.journal import Journal, JournalFullError
from sglang_ext.cache.store.options import StoreOptions
from sglang_ext.cache.store.placing import PlacingCatalog
from sglang_ext.cache.store.plan import Plan, Planned
from sglang_ext.cache.store.recovery import recover
from sglang_ext.cache.store.room import Room
from sglang_ext.cache.store.segment_files import FOREIGN, UNKNOWN, SegmentFiles
from sglang_ext.cache.store.segments import Segments, Space
from sglang_ext.errors import StoreError

__all__ = ["Keeper"]

logger = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)


class Keeper:
    """Everything of a writer that is not the I/O of pages.

    ``turn`` is held by whoever writes pages or clears: one at a time.

    Args:
        folder, options, disk: as for the store.
        hours: the write budget; what earlier runs wrote is restored.
        seen: filter of admission; None: all pass.
        health: of the writing of pages; is told of faults that refuse them.

    Attributes:
        health: of the thread that syncs and writes checkpoints. It has one of its own: pages may be
            written while it fails, and the other way round.

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
        self.health = Health(
            "syncing",
            effect="new pages may not outlive a loss of power, and are refused once the journal "
            "is full",
        )
        self._writing = health
        self._interval_s = options.sync_interval_s
        self._stall_s = options.stall_s
        self._syncing = threading.Lock()
        self._released = False
        self._checkpointing = threading.Lock()
        self._wake = threading.Event()
        self._wanted = False
        self._ended = False
        self._drain: Callable[[], object] | None = None
        self._thread: threading.Thread | None = None
        self.folder = StoreFolder(folder, disk, writer=True)
        self._gate = LogGate()
        self.folder.claim()
        with contextlib.ExitStack() as undo:
            undo.callback(self.folder.release)
            self._open(options, hours, seen, undo)
            undo.pop_all()

    def _open(
        self,
        options: StoreOptions,
        hours: WriteHours,
        seen: SeenTwice | None,
        undo: contextlib.ExitStack,
    ) -> None:
        if not self.folder.load():
            self.folder.create()
        self.folder.remove_partial()
        self.space = Space(options.capacity_bytes)
        self.files = SegmentFiles(self.folder, direct=options.direct, read_only=False)
        segments = Segments(self.space)
        good, bad = self.files.open_all()
        for segment, size in good:
            segments.insert(segment, size)
        undo.callback(self.files.close_all, segments)
        for number, why in bad:
            if why == FOREIGN:
                raise StoreError(
                    f"{self.folder.segment_path(number)} belongs to another page store; move it "
                    "back, or remove it. Where that is so of all, STORE is another store's"
                )
        for number, why in bad:
            if why == UNKNOWN:
                path = self.folder.segment_path(number)
                logger.warning("page store: %s is left alone: %s", path, why)
                segments.taken.add(number)
                continue
            logger.warning("page store: segment %d is removed: %s", number, why)
            self.files.remove(number)
        self.recovered = recover(self.folder, segments, hours, threads=options.io_threads)
        self._generation = self.recovered.checkpoint
        self.journal = Journal(self.folder, self._journal_bytes, self._want_checkpoint)
        undo.callback(self.journal.close)
        self.catalog = PlacingCatalog(self.recovered.index, segments, hours, self.journal.add, seen)
        self._room = Room(self.catalog, self.files, self.space, self._writing, self._write_journal)
        self._has_shrunk = self._room.fit()
        self._begin_in_room()
        for name, what in self.recovered.damage:
            logger.warning("page store: %s: %s", name, what)
        logger.info(
            "page store %s: %d pages (%s)",
            self.folder.path,
            len(self.catalog.index),
            self.recovered.how,
        )

    def _begin_in_room(self) -> None:
        """Begin. On a full disk files are cut before the checkpoint; then one segment goes."""
        # Others have taken the room of checkpoint and journal; what is ours is in segments.
        for give in (lambda why: self._room.trim(), self._room.give_one):
            try:
                self._begin()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                give(str(error))
            else:
                return
        self._begin()

    def _begin(self) -> None:
        self._tidy()
        self._room.trim()
        self.journal.begin(self.recovered.journal)

    def _tidy(self) -> None:
        """One checkpoint and no journal, whatever the last process left: room for two of each."""
        for generation in self.folder.checkpoints():
            if generation != self.recovered.used:
                self.folder.remove(self.folder.checkpoint_path(generation))
        if self.recovered.how not in ("new", "clean") or self._has_shrunk:
            # Clean: no journal follows before one is made, and losing that one is no damage.
            self._checkpoint((self.recovered.journal, 0), clean=True)
            self.recovered.used = self._generation
        self._remove_old(self.recovered.journal)

    def start(self, tick: Callable[[], None]) -> None:
        """Begin to sync; ``tick`` is called about as often."""
        self._thread = threading.Thread(
            target=self._run, args=(tick,), name="page-store-sync", daemon=True
        )
        self._thread.start()

    def grow(self, slot_bytes: int, seen_slots: int) -> None:
        """See `Room.grow`."""
        self._room.grow(slot_bytes, seen_slots)

    def prepare(self, slot_bytes: int, slots: int) -> None:
        """See `Room.prepare`."""
        self._room.prepare(slot_bytes, slots)

    def clear(self) -> None:
        """Drop all pages and remove all segments; ``turn`` is held. Called by a worker.

        Raises:
            OSError: the disk failed; all that could be done is done.
        """
        self._room.clear()

    def give_up(self, plan: Plan) -> None:
        """Nothing of a plan is written."""
        for segment in self.catalog.commit(plan, []):
            self.files.close(segment)

    def enter(self, plan: Plan, written: Sequence[Planned]) -> None:
        """Make pages of a plan resident while others are written; ``commit`` follows."""
        self.catalog.enter(plan, written)
        with contextlib.suppress(OSError):  # which ``commit`` meets again
            self.journal.write()

    def commit(self, plan: Plan, written: Sequence[Planned]) -> list[Planned]:
        """Make the last pages of a plan resident, and write down what is.

        Returns:
            Pages of the plan for which both was done.
        """
        for segment in self.catalog.commit(plan, written):
            self.files.close(segment)
        done = plan.done
        try:
            self._write_journal()
        except OSError as error:
            self._writing.failed(error)
            with self.journal.standing() as is_written:
                return self.catalog.take_back(done, is_written, "disk")
        return done

    def catch_up(self) -> bool:
        """Write down what could not be before; False where the disk still does not take it.

        Asked before a batch is planned, so that nothing is evicted for pages that would be refused.
        """
        try:
            self._write_journal()
        except OSError as error:
            self._writing.failed(error)
            return False
        return True

    def sync(self) -> None:
        """Make everything so far durable. Raises ``OSError`` where the disk does not."""
        with self._syncing:
            if self._released:
                return  # closing has done it
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

    def close(self, drain: Callable[[], object]) -> None:
        """Sync, write a last checkpoint, release the lock; blocks for ``stall_s`` at most.

        The store's own thread does it. Where that hangs, or an operation does, all files stay open
        and the lock is held, until they get through or the process ends: a descriptor that was
        closed meanwhile would be another file's, and a new writer would share the folder.

        Args:
            drain: blocks until no operation is under way.
        """
        self._drain = drain
        self._ended = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(self._stall_s)
            if self._thread.is_alive():
                logger.warning(
                    "page store %s: the disk hangs; what is in use, the lock included, is held "
                    "until it comes back or this process ends",
                    self.folder.path,
                )

    def release(self) -> None:
        """Close all files and give the lock back; nothing is written. No operation is under way.

        Waits for a ``sync`` that is; one that comes later has nothing left to do.
        """
        with self._syncing:
            self._released = True
            self.journal.close()
            self.files.close_all(self.catalog.segments)
            self.folder.release()

    def leave(self, *, was_open: bool) -> None:
        """In a process that was forked: close what is the parent's. No lock is taken."""
        if was_open:
            self.journal.leave()
            self.files.close_all(self.catalog.segments)
        self.folder.release()

    def _goodbye(self, drain: Callable[[], object]) -> None:
        drain()
        try:
            self._last_sync()
            generation = self.journal.generation + 1
            self._checkpoint((generation, 0), clean=True)
            self._remove_old(generation)
        except OSError as error:
            logger.warning("page store: closed without a checkpoint: %s", error)
        finally:
            self.release()

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
        while True:
            self._wake.wait(self._interval_s)
            self._wake.clear()
            if self._ended:
                break
            try:
                tick()
                if self.health.allows():
                    self.sync()
                    self._checkpoint_now()
                    self._room.synced()
                    self._room.recycle()
                    self.health.succeeded()
            except OSError as error:
                self.health.failed(error)
            except Exception as error:
                self.health.failed(error)
                others = self._gate.admits(type(error).__name__)
                if others is not None:
                    logger.exception(
                        "page store: syncing failed in an unforeseen way (%d more not logged)",
                        others,
                    )
        if self._drain is not None:
            self._goodbye(self._drain)

    def _checkpoint_now(self) -> None:
        """Write a checkpoint where one is wanted, and remove the journals that it covers."""
        with self._checkpointing:
            if not self._wanted and not self.journal.lost:
                return
            self._wanted = False  # whoever asks from here on means the next one
            try:
                losses = self.journal.renew()
                position = self.journal.position()
                self._checkpoint(position, clean=False)
            except BaseException:
                self._wanted = True
                raise
            self.journal.forget_before(position[0], losses)

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
        if self.health.is_good:  # otherwise it was tried in vain, and is tried again after a pause
            self._wake.set()
