"""The room that a store has for pages: segments are made, given to another slot size, removed."""

import errno
import logging
import threading
from collections.abc import Callable

from sglang_ext.cache.store.format import BLOCK_BYTES
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.index import NO_ROW
from sglang_ext.cache.store.placing import PlacingCatalog
from sglang_ext.cache.store.segment_files import SegmentFiles
from sglang_ext.cache.store.segments import Segment, Space

__all__ = ["Room"]

logger = logging.getLogger(__name__)

# How long growing is left alone after the disk had no room for a segment.
_GROW_AGAIN_SYNCS = 30
# A disk without room for a whole segment gets a smaller one, of at least this many slots; not where
# there are as many segments already, each of which is an open file.
_FEW_SLOTS = 8
_MANY_SEGMENTS = 512
_FULL = (errno.ENOSPC, errno.EDQUOT)
# How long a worker waits for somebody who removes a segment. Default 1 s: removing 2 GB takes less,
# and with a disk that hangs more workers come to wait the longer each of them does.
_PATIENCE_S = 1.0


class Room:
    """Makes and removes segments, one at a time: a new one gets the number of one that went.

    Args:
        catalog, files, space: of the store.
        health: counts what the disk refuses.
        write: writes the journal. A segment's file goes after its record is written, so that no
            journal lists pages of a file that is gone.
    """

    def __init__(
        self,
        catalog: PlacingCatalog,
        files: SegmentFiles,
        space: Space,
        health: Health,
        write: Callable[[], None],
    ) -> None:
        self._catalog = catalog
        self._files = files
        self._space = space
        self._health = health
        self._write = write
        self._cut: list[Segment] = []
        self._one = threading.Lock()
        self._grow_in = 0
        self._refused = False

    def grow(self, slot_bytes: int, seen_slots: int) -> None:
        """Make a segment, in room that there is or in that of another slot size's segment.

        Where neither is to be had, the catalog will evict instead. Nothing is done where the store
        has no longer the ``seen_slots`` that the caller found too few, or where somebody else is at
        it for long, perhaps with a disk that hangs. Called by a worker.
        """
        if not self._one.acquire(timeout=_PATIENCE_S):
            return
        try:
            if self._catalog.segments.slots == seen_slots:
                self._grow(slot_bytes)
        finally:
            self._one.release()

    def prepare(self, slot_bytes: int, slots: int) -> None:
        """Make segments until ``slots`` are free, in room that nobody has. Called by a worker."""
        if not self._one.acquire(blocking=False):
            return
        try:
            while self._catalog.can_prepare(slot_bytes, slots):
                self._try_to_make(slot_bytes)
        finally:
            self._one.release()

    def recycle(self) -> None:
        """Take a segment whose pages are all older than what would go of another slot size."""
        if not self._one.acquire(blocking=False):
            return
        try:
            segment = self._catalog.idle_segment() if self._let_go() else None
            if segment is not None:
                self._forget(segment)
                self._let_go()
        finally:
            self._one.release()

    def fit(self) -> bool:
        """Choose what goes until the store fits a capacity that became smaller.

        First the ends of segments that no page is in; then those that were used least recently, the
        last of them only as far as needed. Called while the store is opened; the files are as they
        were until ``trim``, which comes after the checkpoint.

        Returns:
            Whether anything went.
        """
        segments = self._catalog.segments
        slots = segments.slots
        stalest = self._catalog.stalest_segments(NO_ROW)
        for segment in stalest:
            last = len(segment.used.rstrip(b"\0"))
            self._shorten(segment, max(segments.slots_that_fit(segment), last))
        for segment in stalest:
            if segments.by_number.get(segment.number) is segment:  # it may have gone as empty
                self._shorten(segment, segments.slots_that_fit(segment))
        return segments.slots < slots

    def _shorten(self, segment: Segment, slots: int) -> None:
        if slots == segment.slots:
            return
        if not slots:
            self._give(segment, "the capacity is smaller")
            return
        logger.warning(
            "page store: segment %d is cut from %d to %d slots: the capacity is smaller",
            segment.number,
            segment.slots,
            slots,
        )
        self._catalog.shorten(segment, slots)
        self._cut.append(segment)

    def trim(self) -> None:
        """Shorten and remove the files of what goes. Called while the store is opened.

        Raises:
            OSError: the disk does not do it.
        """
        for segment in self._cut:
            if segment.gone:
                self._files.remove(segment.number)
            else:
                self._files.shorten(segment)
        self._cut.clear()

    def give_one(self, why: str) -> None:
        """Give the segment back that was used least recently. Called while the store is opened.

        Raises:
            OSError: the disk does not do it.
        """
        for segment in self._catalog.stalest_segments(NO_ROW)[:1]:
            self._give(segment, why)
            self.trim()

    def clear(self) -> None:
        """Drop all pages and remove all segments.

        Raises:
            OSError: what failed first; the rest is done all the same.
        """
        with self._one:
            gone = self._catalog.clear()
            for segment, unused in gone:
                if unused:
                    self._files.close(segment)
            failures = _failure(self._write), self._remove_files(), _failure(self._files.sync_names)
            failure = next(filter(None, failures), None)
            if failure is not None:
                raise failure
            self._grow_in = 0
            self._refused = False
            self._catalog.may_grow = True

    def synced(self) -> None:
        """The disk works: after a while it is asked for segments again."""
        if self._grow_in:
            self._grow_in -= 1
            self._catalog.may_grow = not self._grow_in
            self._refused = self._refused and bool(self._grow_in)

    def _grow(self, slot_bytes: int) -> None:
        with self._catalog.lock:
            can_grow = self._catalog.can_grow(slot_bytes)
        if not can_grow:
            if self._refused and self._catalog.segments.slots:
                return  # the disk gave no segment for the room of the last one: keep the others
            stalest = self._catalog.stalest_segments(slot_bytes) if self._let_go() else []
            if stalest:
                self._forget(stalest[0])
                if not self._let_go():
                    return
            elif self._catalog.segments.slots:
                return  # where there are none the disk is asked as often as `Health` allows
        self._try_to_make(slot_bytes)

    def _try_to_make(self, slot_bytes: int) -> None:
        """Make a segment, or leave growing alone for a while."""
        try:
            if not self._make(slot_bytes):
                self._stop_growing()
        except OSError as error:
            self._refused = True
            self._stop_growing()
            if self._catalog.segments.slots:
                self._health.count(error)
                logger.warning("page store: no new segment: %s; older pages go instead", error)
                return
            self._health.failed(error)
            logger.warning(
                "page store: no segment can be made, so nothing is kept: %s; make room on the disk",
                error,
            )

    def _make(self, slot_bytes: int) -> bool:
        """Make one more segment; False where it is smaller than it may be, or its file no good."""
        with self._catalog.lock:
            segments = self._catalog.segments
            slots = self._space.slots_of_next(slot_bytes, segments.slots, segments.charged_bytes)
            number = segments.next_number()
        if not slots:
            return True
        made, full = slots, None
        while True:
            try:
                segment = self._files.create(number, slot_bytes, made, self._space)
                break
            except OSError as error:
                full = error
                made = self._fewer(slot_bytes, made) if error.errno in _FULL else 0
                if not made:
                    raise
        if segment is None:
            return False
        self._catalog.insert_segment(segment, BLOCK_BYTES + made * slot_bytes)
        if full is not None:
            self._health.count(full)
            logger.warning(
                "page store: the disk has room for %d of %d MB only: %s",
                made * slot_bytes // 1_000_000,
                slots * slot_bytes // 1_000_000,
                full,
            )
        return made == slots

    def _fewer(self, slot_bytes: int, slots: int) -> int:
        """Slots of a segment that a disk may have room for which had none for ``slots``.

        What journals and checkpoints will need is left to them. 0: not even for a few.
        """
        segments = self._catalog.segments
        if len(segments.by_number) >= _MANY_SEGMENTS:
            return 0
        free_bytes = self._files.free_bytes() + self._space.journal_bytes(0)  # one is there
        fewer = slots // 2
        while fewer >= _FEW_SLOTS:
            reserved = self._space.reserved_bytes(segments.slots + fewer)
            if fewer * slot_bytes + reserved <= free_bytes:
                return fewer
            fewer //= 2
        return 0

    def _give(self, segment: Segment, why: str) -> None:
        logger.warning("page store: segment %d goes: %s", segment.number, why)
        self._forget(segment)
        self._catalog.left(segment.number)  # nothing is made before its file is gone
        self._cut.append(segment)

    def _forget(self, segment: Segment) -> None:
        if self._catalog.retire(segment):
            self._files.close(segment)

    def _let_go(self) -> bool:
        """Remove the files of segments that are forgotten; False where the disk keeps one.

        Then no other segment is forgotten before that one is gone.
        """
        if not self._catalog.segments.leaving:
            return True
        failure = _failure(self._write) or self._remove_files()
        if failure is None:
            return True
        if not self._refused:
            logger.warning(
                "page store: no segment can be removed: %s; older pages go instead", failure
            )
        self._refused = True
        self._stop_growing()
        self._health.count(failure)
        return False

    def _remove_files(self) -> OSError | None:
        failure = None
        for number in list(self._catalog.segments.leaving):
            failed = _failure(self._files.remove, number)
            if failed is None:
                self._catalog.left(number)
            failure = failure or failed
        return failure

    def _stop_growing(self) -> None:
        self._catalog.may_grow = False
        self._grow_in = _GROW_AGAIN_SYNCS


def _failure(action: Callable[..., None], *arguments: object) -> OSError | None:
    try:
        action(*arguments)
    except OSError as error:
        return error
    return None
