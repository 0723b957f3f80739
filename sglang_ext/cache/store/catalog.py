"""The catalog: what is where, and everything that has to change together with it.

How pages come in is `PlacingCatalog`'s, which a writer has.

Index, slots and the journal's records change under one lock, which is never held during I/O: a
lookup waits for other lookups, not for a disk.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np

from sglang_ext.cache.store.admission import TouchBudget, WriteHours
from sglang_ext.cache.store.ancestry import newest_below
from sglang_ext.cache.store.checkpoint import Columns
from sglang_ext.cache.store.format import RECORD_BYTES, Record, RecordKind
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.plan import Found
from sglang_ext.cache.store.segments import Segment, Segments, locate
from sglang_ext.errors import StoreError

__all__ = ["Catalog"]

# Touches that wait to be written to the journal; the rest waits for the checkpoint.
_MOST_TOUCHED = 1024
# Evictions before it is looked whether another slot size is better off without one of its segments.
# Each look in vain doubles them, up to a quarter of all slots: it costs 0.1 us a page of the store.
_FIRST_LOOK = 64
_LAST_LOOK = 4096


class Catalog:
    """Index, slots and counters under one lock.

    Args:
        index: what is resident.
        segments: the slots.
        hours: the write budget.
        record: called, with the lock held, with every change.
    """

    def __init__(
        self,
        index: Index,
        segments: Segments,
        hours: WriteHours,
        record: Callable[[Record], None],
    ) -> None:
        self.lock = threading.Lock()
        self.index = index
        self.segments = segments
        self.hours = hours
        self.refused: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.evicted = 0
        self.duplicates = 0
        self.may_grow = True
        self._record = record
        self._clock_us = max(index.time_us, default=0)
        self._touched: set[int] = set()
        self._touches = TouchBudget()
        self._evicted_for: Counter[int] = Counter()
        self._look_after = _FIRST_LOOK
        self._recorded_hour = (0, 0)

    def now_us(self) -> int:
        """Microseconds since 1970, and later than any time given before."""
        self._clock_us = max(self._clock_us + 1, time.time_ns() // 1000)
        return self._clock_us

    def prefix(self, keys: Sequence[bytes]) -> int:
        """How many leading keys are resident."""
        with self.lock:
            rows = self.index.rows
            for number, key in enumerate(keys):
                if key not in rows:
                    return number
        return len(keys)

    def resident(self, keys: Sequence[bytes]) -> list[bool]:
        """Which keys are resident."""
        with self.lock:
            rows = self.index.rows
            return [key in rows for key in keys]

    def find(self, keys: Sequence[bytes], numbers: Sequence[int]) -> list[Found]:
        """Resident pages among ``keys[number]``, pinned."""
        found = []
        with self.lock:
            index, by_number = self.index, self.segments.by_number
            for number in numbers:
                key = keys[number]
                row = index.rows.get(key, NO_ROW)
                if row == NO_ROW:
                    continue
                location = index.location[row]
                segment = by_number[location >> 32]
                index.pin(row)
                segment.users += 1
                found.append(Found(number, key, row, location, segment, index.payload_bytes[row]))
        return found

    def release(self, found: Sequence[Found], drop: Sequence[tuple[Found, str]]) -> list[Segment]:
        """Unpin what was read, and drop what did not match.

        Returns:
            Segments that are gone and that nobody uses any more: to be closed.
        """
        with self.lock:
            for page in found:
                page.segment.users -= 1
                if self._is(page):
                    self.index.unpin(page.row)
            for page, why in drop:
                if self._is(page):
                    self._drop(page.row, why)
            return [s for s in {p.segment for p in found} if s.gone and not s.users]

    def touch(self, key: bytes) -> None:
        """Refresh a page and its ancestors."""
        with self.lock:
            row = self.index.rows.get(key, NO_ROW)
            if row != NO_ROW:
                self._touch(row, self.now_us())

    def drop(self, key: bytes, why: str) -> None:
        """Forget a page and its descendants."""
        with self.lock:
            row = self.index.rows.get(key, NO_ROW)
            if row != NO_ROW:
                self._drop(row, why)

    def refuse(self, pages: int, why: str) -> None:
        """Count pages that are not kept."""
        with self.lock:
            self.refused[why] += pages

    def insert_segment(self, segment: Segment, file_bytes: int) -> None:
        """Take a new segment in."""
        with self.lock:
            self.segments.insert(segment, file_bytes)
            self._record(
                Record(RecordKind.SEGMENT, segment=segment.number, size=segment.slot_bytes)
            )

    def retire(self, segment: Segment) -> bool | None:
        """Forget a segment with its pages and their descendants; its file is the caller's.

        Returns:
            Whether nobody uses it, so that it can be closed; otherwise the last user will. None:
            somebody else has retired it since it was chosen, and its number may be another's.
        """
        with self.lock:
            if self.segments.by_number.get(segment.number) is not segment:
                return None
            for slot in range(segment.slots):
                row = segment.rows[slot]
                if row != NO_ROW:
                    self.evicted += self._remove(row)
            self.segments.leave(segment)
            self._record(Record(RecordKind.SEGMENT, segment=segment.number))
            return not segment.users

    def left(self, number: int) -> None:
        """The file of a segment that was forgotten is removed."""
        with self.lock:
            self.segments.left(number)

    def shorten(self, segment: Segment, slots: int) -> None:
        """Forget the slots from ``slots`` on, with their pages and what descends from those.

        The file is the caller's. No operation may be under way. Nothing is recorded: pages beyond
        the end of a file are left out when checkpoint and journal are read.
        """
        with self.lock:
            for slot in range(slots, segment.slots):
                if segment.rows[slot] != NO_ROW:
                    self.evicted += self._remove(segment.rows[slot])
            self.segments.shorten(segment, slots)

    def clear(self) -> list[tuple[Segment, bool]]:
        """Forget everything.

        Returns:
            The segments, whose files are the caller's, and whether nobody uses them.
        """
        with self.lock:
            segments = list(self.segments)
            for row in [row for row in self.index.rows.values() if self.index.depth[row] == 0]:
                self._remove(row)
            for segment in segments:
                self.segments.leave(segment)
            self._record(Record(RecordKind.CLEAR))
            return [(segment, not segment.users) for segment in segments]

    def stalest_segments(self, slot_bytes: int) -> list[Segment]:
        """Segments with slots of other sizes, the least recently used first."""
        return [segment for segment, _ in self._by_age(slot_bytes)]

    def idle_segment(self) -> Segment | None:
        """A segment that is worth more to another slot size, looked for now and then.

        That is one whose every page, with all that descends from it, was last used before the next
        page that would be evicted for the size that most pages were evicted for since.
        """
        with self.lock:
            if self._evicted_for.total() < self._look_after:
                return None
            [(slot_bytes, _)] = self._evicted_for.most_common(1)
            self._evicted_for.clear()
            next_us = self.index.next_to_go(self.segments.kind_of(slot_bytes))
        for segment, newest_us in self._by_age(slot_bytes)[:1]:
            if next_us is not None and newest_us < next_us:
                self._look_after = _FIRST_LOOK
                return segment
        self._look_after = min(2 * self._look_after, max(_LAST_LOOK, self.segments.slots // 4))
        return None

    def take_dirty(self) -> list[Segment]:
        """Segments to be synced, each counted as used; they are clean from now on."""
        with self.lock:
            dirty = [segment for segment in self.segments if segment.dirty]
            for segment in dirty:
                segment.dirty = False
                segment.users += 1
            return dirty

    def unuse(self, segments: Sequence[Segment]) -> list[Segment]:
        """Undo ``users``; returns those to be closed."""
        with self.lock:
            for segment in segments:
                segment.users -= 1
            return [segment for segment in segments if segment.gone and not segment.users]

    def record_touches(self) -> None:
        """Write recent touches and the write budget to the journal, so that a crash keeps them."""
        with self.lock:
            space = self.segments.space
            records = space.journal_bytes(self.segments.slots) // RECORD_BYTES
            for _ in range(self._touches.take(len(self._touched), records)):
                row = self._touched.pop()
                if self.index.location[row] >= 0:
                    time_us = self.index.time_us[row]
                    key = self.index.key_of(row)
                    self._record(Record(RecordKind.TOUCH, key, time_us=time_us))
            hour, size_bytes = self.hours.current()
            if size_bytes and (hour, size_bytes) != self._recorded_hour:
                self._recorded_hour = hour, size_bytes
                self._record(Record(RecordKind.WRITTEN, size=size_bytes, time_us=hour))

    def columns(self) -> Columns:
        """A copy of the index for a checkpoint."""
        with self.lock:
            return Columns.of(self.index)

    def check_integrity(self) -> None:
        """Raise ``StoreError`` when index and slots contradict each other or themselves."""
        with self.lock:
            self.index.check_integrity()
            self.segments.check_integrity()
            used = 0
            for key, row in self.index.rows.items():
                number, slot = locate(self.index.location[row])
                segment = self.segments.by_number.get(number)
                if segment is None or slot >= segment.slots or segment.rows[slot] != row:
                    raise StoreError(f"page {key.hex()} is at {number}/{slot}, which is not its")
                if not segment.used[slot]:
                    raise StoreError(f"page {key.hex()} is in a free slot")
            for segment in self.segments:
                used += sum(row != NO_ROW for row in segment.rows)
                if not segment.users and segment.used.count(1) != sum(
                    row != NO_ROW for row in segment.rows
                ):
                    raise StoreError(f"segment {segment.number} has slots that no page has")
            if used != len(self.index):
                raise StoreError(f"{used} slots have pages, {len(self.index)} pages are known")

    # What follows is called with the lock held.

    def _is(self, page: Found) -> bool:
        """Whether a page that was found is still that row at that place."""
        return (
            self.index.rows.get(page.key) == page.row
            and self.index.location[page.row] == page.location
        )

    def _touch(self, row: int, time_us: int) -> None:
        self.index.touch(row, time_us)
        if len(self._touched) < _MOST_TOUCHED:
            self._touched.add(row)

    def can_grow(self, slot_bytes: int) -> bool:
        """Whether the capacity has room for one more segment."""
        segments = self.segments
        return self.may_grow and bool(
            segments.space.slots_of_next(slot_bytes, segments.slots, segments.charged_bytes)
        )

    def _drop(self, row: int, why: str) -> None:
        self._record(Record(RecordKind.DROP, self.index.key_of(row)))
        self.dropped[why] += self._remove(row)

    def _remove(self, row: int) -> int:
        gone = self.index.remove_tree(row)
        for _, location in gone:
            self.segments.give(location)
        return len(gone)

    def _by_age(self, slot_bytes: int) -> list[tuple[Segment, int]]:
        """Segments of other sizes that may go, oldest first, with the time of each's newest page.

        A page is as new as whatever descends from it: all of that would go with the page. The lock
        is not held while this is worked out, so any of them may be gone by the time it is returned.
        """
        with self.lock:
            pinned = {self.index.location[row] >> 32 for row in self.index.pins}
            held = [
                (segment, np.array(segment.rows))
                for segment in self.segments
                if segment.slot_bytes != slot_bytes and segment.number not in pinned
            ]
            # Without those that are being written to. One that is being synced may well go.
            held = [(s, rows) for s, rows in held if (rows >= 0).sum() == s.slots - s.free]
            if not held:
                return []
            times = np.frombuffer(self.index.time_us, np.int64).copy()
            parent = np.frombuffer(self.index.parent, np.int32).copy()
        times = newest_below(parent, times)
        ages = [(segment, int(times[rows[rows >= 0]].max(initial=0))) for segment, rows in held]
        return sorted(ages, key=itemgetter(1))
