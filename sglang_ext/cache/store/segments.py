"""Segments: preallocated files of equal slots, and which slots are free.

The bound on the store's size is kept here. Before a segment is made, everything is charged against
the capacity: segments with the blocks that their extents may come to need, two checkpoints of an
index that covers all slots, two journals, and the small files.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator

from sglang_ext.cache.store.format import BLOCK_BYTES, RECORD_BYTES
from sglang_ext.cache.store.index import NO_ROW
from sglang_ext.cache.store.options import MIB
from sglang_ext.errors import StoreError

__all__ = ["ROW_BYTES", "Segment", "Segments", "Space", "locate", "place", "slots_that_fit"]

# What a page takes in a checkpoint: key, location, parent, depth, time, payload length.
ROW_BYTES = 32 + 8 + 4 + 4 + 8 + 4
# Superblock, lock, and an extent block for each file that is not a segment.
_FIXED_BYTES = 16 * BLOCK_BYTES
# A journal has room for a record of a quarter of all slots, so that the checkpoint which a full one
# asks for costs the same for each page written, whatever the size of the store. In stores whose
# slots are few, for 1/256 of the capacity, up to the first bound; the last bounds how long it takes
# to replay (8 us a record).
_LEAST_JOURNAL_BYTES = 16 * 1024
_SMALL_JOURNAL_BYTES = 64 * 1024 * RECORD_BYTES
_MOST_JOURNAL_BYTES = 1024 * 1024 * RECORD_BYTES
_SLOTS_A_RECORD = 4
# Not more than about 256 segments, each of which is an open file.
_MOST_SEGMENTS = 256
_LEAST_SEGMENT_BYTES = 64 * MIB
# Writing into preallocated blocks splits extents, and a leaf of ext4's extent tree holds 340 of
# them, half of that after a split. The worst case is an extent for each slot.
_EXTENTS_A_BLOCK = 170


def locate(location: int) -> tuple[int, int]:
    """Segment and slot of a location."""
    return location >> 32, location & 0xFFFFFFFF


def place(segment: int, slot: int) -> int:
    """The location of a slot; those of adjacent slots are consecutive."""
    return segment << 32 | slot


class Space:
    """How a capacity is divided.

    Args:
        capacity_bytes: bound on all files of the store.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self._longest_journal_bytes = 0
        self._target_bytes = max(capacity_bytes // _MOST_SEGMENTS, _LEAST_SEGMENT_BYTES)
        if capacity_bytes < 16 * _LEAST_SEGMENT_BYTES:
            self._target_bytes = capacity_bytes // 16

    def journal_bytes(self, slots: int) -> int:
        """Length of a journal that is made while there are ``slots`` slots."""
        least = max(self.capacity_bytes // 256, _LEAST_JOURNAL_BYTES)
        wanted = max(min(least, _SMALL_JOURNAL_BYTES), slots // _SLOTS_A_RECORD * RECORD_BYTES)
        return _blocks(min(wanted, _MOST_JOURNAL_BYTES))

    def allot_journal(self, slots: int) -> int:
        """``journal_bytes`` of a journal that is going to be made; charged from now on.

        It stays charged when there are fewer slots later: the file is not shortened.
        """
        size = self.journal_bytes(slots)
        self._longest_journal_bytes = max(self._longest_journal_bytes, size)
        return size

    def reserved_bytes(self, slots: int) -> int:
        """What everything but segments may take when there are ``slots`` slots."""
        checkpoint = BLOCK_BYTES + _blocks(slots * ROW_BYTES)
        journal = max(self.journal_bytes(slots), self._longest_journal_bytes)
        return _FIXED_BYTES + 2 * journal + 2 * checkpoint

    def charge_bytes(self, slots: int, file_bytes: int) -> int:
        """What a segment may come to take on disk, its extent blocks included."""
        extents = 2 * slots + file_bytes // (128 * MIB)
        return file_bytes + (2 + extents // _EXTENTS_A_BLOCK) * BLOCK_BYTES

    def is_fragmented(self, slots: int, file_bytes: int, allocated_bytes: int) -> bool:
        """Whether a new file has so many extents that its charge may not cover what is to come."""
        extents = slots + file_bytes // (128 * MIB)
        return allocated_bytes > file_bytes + (2 + extents // _EXTENTS_A_BLOCK) * BLOCK_BYTES

    def slots_of_next(self, slot_bytes: int, slots: int, charged_bytes: int) -> int:
        """How many slots a new segment may have; 0: there is no room.

        Args:
            slot_bytes: size of its slots.
            slots: slots of all segments there are.
            charged_bytes: what those are charged with.
        """
        room = self.capacity_bytes - charged_bytes
        count = max(min(self._target_bytes, room) // slot_bytes, 1)
        while count > 0 and (
            self.charge_bytes(count, BLOCK_BYTES + count * slot_bytes)
            + self.reserved_bytes(slots + count)
            > room
        ):
            count -= 1
        return count


def slots_that_fit(capacity_bytes: int, slot_bytes: int) -> int:
    """Slots of one size that a store of ``capacity_bytes`` comes to have."""
    space, slots, charged = Space(capacity_bytes), 0, 0
    while count := space.slots_of_next(slot_bytes, slots, charged):
        charged += space.charge_bytes(count, BLOCK_BYTES + count * slot_bytes)
        slots += count
    return slots


class Segment:
    """One file of slots.

    ``rows`` gives the row of each slot (`NO_ROW`: none). ``used`` marks slots that a page has, or
    that are being written. ``users`` counts operations that hold the descriptor.
    """

    def __init__(self, number: int, slot_bytes: int, slots: int, file: int) -> None:
        self.number = number
        self.slot_bytes = slot_bytes
        self.slots = slots
        self.file = file
        self.used = bytearray(slots)
        self.rows = array("i", [NO_ROW]) * slots
        self.free = slots
        self.charge_bytes = 0
        self.dirty = False
        self.users = 0
        self.gone = False

    def offset_of(self, slot: int) -> int:
        """Where a slot begins in the file."""
        return BLOCK_BYTES + slot * self.slot_bytes


class Segments:
    """All segments and the allocation of slots. Not thread-safe: the catalog's lock is held.

    ``taken`` are numbers whose files are not ours. ``leaving`` are segments that are forgotten and
    whose files are not removed yet: number and charge.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.by_number: dict[int, Segment] = {}
        self.taken: set[int] = set()
        self.leaving: dict[int, int] = {}
        self.slots = 0
        self.charged_bytes = 0
        self._kinds: list[int] = []
        self._open: dict[int, dict[int, Segment]] = {}

    def kind_of(self, slot_bytes: int) -> int:
        """A small number for a slot size."""
        if slot_bytes not in self._kinds:
            self._kinds.append(slot_bytes)
        return self._kinds.index(slot_bytes)

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.by_number.values())

    def insert(self, segment: Segment, file_bytes: int) -> None:
        """Take a segment in; ``file_bytes`` is the length of its file."""
        segment.charge_bytes = self.space.charge_bytes(segment.slots, file_bytes)
        self.by_number[segment.number] = segment
        self.slots += segment.slots
        self.charged_bytes += segment.charge_bytes
        if segment.free:
            self._opened(segment.slot_bytes)[segment.number] = segment

    def shorten(self, segment: Segment, slots: int) -> None:
        """Forget the slots from ``slots`` on, which are free; the file is the caller's."""
        self.slots -= segment.slots - slots
        self.charged_bytes -= segment.charge_bytes
        segment.free -= segment.slots - slots
        segment.slots = slots
        del segment.used[slots:], segment.rows[slots:]
        segment.charge_bytes = self.space.charge_bytes(slots, segment.offset_of(slots))
        self.charged_bytes += segment.charge_bytes
        if not segment.free:
            self._opened(segment.slot_bytes).pop(segment.number, None)

    def slots_that_fit(self, segment: Segment) -> int:
        """How many of its slots a segment may keep in a capacity that became smaller."""
        others, charged = self.slots - segment.slots, self.charged_bytes - segment.charge_bytes

        def excess_bytes(slots: int) -> int:
            segment_bytes = self.space.charge_bytes(slots, segment.offset_of(slots))
            needed = charged + segment_bytes + self.space.reserved_bytes(others + slots)
            return needed - self.space.capacity_bytes

        return bisect_right(range(1, segment.slots + 1), 0, key=excess_bytes)

    def remove(self, segment: Segment) -> None:
        """Forget a segment; its file is the caller's."""
        segment.gone = True
        del self.by_number[segment.number]
        self.slots -= segment.slots
        self.charged_bytes -= segment.charge_bytes
        self._opened(segment.slot_bytes).pop(segment.number, None)

    def leave(self, segment: Segment) -> None:
        """Forget a segment; its number and its charge are kept until ``left``."""
        self.remove(segment)
        self.leaving[segment.number] = segment.charge_bytes
        self.charged_bytes += segment.charge_bytes

    def left(self, number: int) -> None:
        """The file of a segment that was leaving is gone."""
        self.charged_bytes -= self.leaving.pop(number)

    def next_number(self) -> int:
        """The smallest number that no segment has, nor a file that is there."""
        number = 1
        while number in self.by_number or number in self.taken or number in self.leaving:
            number += 1
        return number

    def used_bytes(self) -> int:
        """Slots that pages have."""
        return sum((segment.slots - segment.free) * segment.slot_bytes for segment in self)

    def free_slots(self, slot_bytes: int) -> int:
        """How many slots of a size are free."""
        return sum(segment.free for segment in self._opened(slot_bytes).values())

    def take(self, slot_bytes: int, count: int, near: int | None) -> list[int]:
        """Allocate up to ``count`` slots, in runs as long as possible.

        Args:
            slot_bytes: their size.
            count: how many.
            near: location that they would best follow: the parent's.

        Returns:
            Locations; fewer than ``count`` where fewer are free.
        """
        taken: list[int] = []
        if near is not None:
            number, slot = locate(near)
            segment = self._opened(slot_bytes).get(number)
            if segment is not None:
                taken = self._take_run(segment, slot + 1, count)
        run = count
        while len(taken) < count and run:
            run = min(run, count - len(taken))
            found = self._find(slot_bytes, run)
            if found is None:
                run //= 2
            else:
                taken += self._take_run(*found, count - len(taken))
        return taken

    def occupied(self, segment: Segment, count: int) -> None:
        """``count`` free slots of ``segment`` were marked as used."""
        segment.free -= count
        if not segment.free:
            self._opened(segment.slot_bytes).pop(segment.number, None)

    def claim(self, segment: Segment, slot: int) -> None:
        """Allocate one given slot that is free."""
        segment.used[slot] = 1
        self.occupied(segment, 1)

    def reset(self, segment: Segment) -> None:
        """All slots of a segment are free."""
        segment.used[:] = bytes(segment.slots)
        segment.rows = array("i", [NO_ROW]) * segment.slots
        segment.free = segment.slots
        self._opened(segment.slot_bytes)[segment.number] = segment

    def give(self, location: int) -> None:
        """Free a slot; one whose segment is gone is no error."""
        number, slot = locate(location)
        segment = self.by_number.get(number)
        if segment is None or slot >= segment.slots or not segment.used[slot]:
            return
        segment.used[slot] = 0
        segment.rows[slot] = NO_ROW
        segment.free += 1
        self._opened(segment.slot_bytes)[number] = segment

    def check_integrity(self) -> None:
        """Raise ``StoreError`` when the bookkeeping contradicts itself."""
        for segment in self:
            free = segment.used.count(0)
            listed = segment.number in self._opened(segment.slot_bytes)
            if free != segment.free or listed != bool(free):
                raise StoreError(
                    f"segment {segment.number} has {free} free slots, {segment.free} are counted "
                    f"and listed is {listed}"
                )
        slots = sum(segment.slots for segment in self)
        charged = sum(segment.charge_bytes for segment in self) + sum(self.leaving.values())
        if (slots, charged) != (self.slots, self.charged_bytes):
            raise StoreError(f"slots and charges {slots}, {charged} do not add up")
        if charged + self.space.reserved_bytes(slots) > self.space.capacity_bytes:
            raise StoreError("the segments are charged with more than the capacity")

    def _opened(self, slot_bytes: int) -> dict[int, Segment]:
        return self._open.setdefault(slot_bytes, {})

    def _find(self, slot_bytes: int, run: int) -> tuple[Segment, int] | None:
        pattern = bytes(run)
        for segment in self._opened(slot_bytes).values():
            if segment.free >= run:
                slot = segment.used.find(pattern)
                if slot >= 0:
                    return segment, slot
        return None

    def _take_run(self, segment: Segment, slot: int, most: int) -> list[int]:
        """Allocate the free slots from ``slot`` on, up to the first that is used."""
        end = segment.used.find(1, slot, slot + most)
        if end < 0:
            end = min(slot + most, segment.slots)
        count = max(end - slot, 0)
        segment.used[slot : slot + count] = b"\x01" * count
        segment.free -= count
        if not segment.free:
            self._opened(segment.slot_bytes).pop(segment.number, None)
        return [place(segment.number, at) for at in range(slot, slot + count)]


def _blocks(size_bytes: int) -> int:
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
