"""Where pages go: what of a batch is written, into which slots, and when it is resident.

A batch is planned, written without the lock, and committed. In between its slots are marked as used
and its segments as in use; the rows that it relies on are pinned.
"""

from collections.abc import Callable, Sequence
from itertools import takewhile

from sglang_ext.cache.store.admission import SeenTwice, WriteHours
from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.format import NO_KEY, Record, RecordKind
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.plan import Offer, Plan, Planned
from sglang_ext.cache.store.segments import Segment, Segments, locate

__all__ = ["PlacingCatalog", "spare_slots"]

# Pages that are evicted ahead of need: one in 256, 256 at most. Measured (slots_or_log.py): reading
# a chain takes 14.2 operations for 100 pages without, 12.0 with 128, at the same hits.
_SPARE_SHARE = 256
_MOST_SPARE = 256


def spare_slots(slots: int) -> int:
    """Pages that are evicted beyond what is needed, of a store of so many."""
    return min(_MOST_SPARE, slots // _SPARE_SHARE)


class PlacingCatalog(Catalog):
    """A catalog that pages can be added to.

    Args:
        index, segments, hours, record: as for `Catalog`.
        seen: the filter of admission ``second``; None: all pass.
    """

    def __init__(
        self,
        index: Index,
        segments: Segments,
        hours: WriteHours,
        record: Callable[[Record], None],
        seen: SeenTwice | None = None,
    ) -> None:
        super().__init__(index, segments, hours, record)
        self._seen = seen

    def plan(self, offers: Sequence[Offer]) -> Plan:
        """Decide what of a batch is written, and give it slots. Parents come first in a batch."""
        with self.lock:
            plan = Plan()
            depths: dict[bytes, int] = {}
            refused: dict[bytes, str] = {}
            now_us = self.now_us()
            left = self.hours.left_bytes()
            for offer in offers:
                row = self.index.rows.get(offer.key, NO_ROW)
                if row != NO_ROW:
                    # Refreshed and pinned: this batch must not evict what it tells is resident.
                    self._touch(row, now_us)
                    self._pin(plan, row)
                    plan.resident.append(offer.number)
                    continue
                why = self._refusal(offer, depths, refused, left)
                if why:
                    refused[offer.key] = why
                    self.refused[why] += 1
                    continue
                if left is not None:
                    left -= offer.slot_bytes
                depths[offer.key] = self._depth(plan, offer, depths)
                plan.waiting.append((offer, depths[offer.key]))
            self.duplicates += len(plan.resident)
            self._place(plan)
            return plan

    def extend(self, plan: Plan) -> None:
        """Give slots to what waits, after a segment was made, or could not be."""
        with self.lock:
            self._place(plan)

    def enter(self, plan: Plan, written: Sequence[Planned]) -> None:
        """Make written pages resident, parents first, while others of the plan are written."""
        with self.lock:
            self._enter(plan, written)

    def commit(self, plan: Plan, written: Sequence[Planned]) -> list[Segment]:
        """Make the last written pages resident; slots of all that are not are free again.

        Returns:
            Segments that are to be closed. Pages that became resident are in ``plan.done``.
        """
        with self.lock:
            self._enter(plan, written)
            done = plan.done
            self.hours.add(sum(page.offer.slot_bytes for page in done))
            kept = {page.location for page in done}
            for page in plan.accepted:
                page.segment.users -= 1
                if page.location not in kept and not page.segment.gone:
                    self.segments.give(page.location)
            for row, key in plan.pinned:
                if self.index.rows.get(key) == row:  # else it may be another page's by now
                    self.index.unpin(row)
            self.refused["space"] += len(plan.waiting)
            self.refused["disk"] += len(plan.accepted) - len(done)
            segments = {page.segment for page in plan.accepted}
            return [s for s in segments if s.gone and not s.users]

    def take_back(
        self, pages: Sequence[Planned], is_written: Callable[[bytes], bool], why: str
    ) -> list[Planned]:
        """Refuse pages that were made resident and that the journal did not take.

        One that another call has put children under since stays: who writes next writes it down.

        Args:
            pages: parents first.
            is_written: whether the journal has taken a page by now; nobody writes it meanwhile.
            why: for the counter.

        Returns:
            Pages that were written down after all.
        """
        with self.lock:
            written = [page for page in pages if is_written(page.offer.key)]
            kept = {page.location for page in written}
            for page in reversed(pages):
                row = self.index.rows.get(page.offer.key, NO_ROW)
                if (
                    page.location not in kept
                    and row != NO_ROW
                    and self.index.location[row] == page.location
                    and self.index.child[row] == NO_ROW
                ):
                    self._record(Record(RecordKind.DROP, page.offer.key))
                    self._remove(row)
            self.refused[why] += len(pages) - len(written)
            return written

    def can_prepare(self, slot_bytes: int, slots: int) -> bool:
        """Whether fewer than ``slots`` are free, and the capacity has room for more."""
        with self.lock:
            return self.segments.free_slots(slot_bytes) < slots and self.can_grow(slot_bytes)

    # What follows is called with the lock held.

    def _enter(self, plan: Plan, written: Sequence[Planned]) -> None:
        now_us = self.now_us()
        plan.done += [page for page in written if self._insert(page, now_us)]

    def _pin(self, plan: Plan, row: int) -> None:
        self.index.pin(row)
        plan.pinned.append((row, self.index.key_of(row)))

    def _refusal(
        self,
        offer: Offer,
        depths: dict[bytes, int],
        refused: dict[bytes, str],
        left: int | None,
    ) -> str:
        """Why an offer is not written; empty: it is."""
        # Asked first: the descendants of what does not pass have to be remembered as well.
        passes = self._seen is None or self._seen.passes(offer.key)
        parent = offer.parent
        if parent is not None and parent not in depths and parent not in self.index.rows:
            return refused.get(parent, "orphan")
        if not passes:
            return "admission"
        if left is not None and offer.slot_bytes > left:
            return "budget"
        return ""

    def _depth(self, plan: Plan, offer: Offer, depths: dict[bytes, int]) -> int:
        if offer.parent is None:
            return 0
        if offer.parent in depths:
            return depths[offer.parent] + 1
        row = self.index.rows[offer.parent]
        self._pin(plan, row)
        return self.index.depth[row] + 1

    def _place(self, plan: Plan) -> None:
        """Give slots to what waits, in order, as far as there are any."""
        while plan.waiting:
            slot_bytes = plan.waiting[0][0].slot_bytes
            sizes = [offer.slot_bytes for offer, _ in plan.waiting]
            count = len(sizes)
            if sizes.count(slot_bytes) < count:  # seldom: pages of one call are of one size
                count = sum(1 for _ in takewhile(slot_bytes.__eq__, sizes))
            free = self.segments.free_slots(slot_bytes)
            if free < count:
                if self.can_grow(slot_bytes):
                    return
                self._evict(slot_bytes, count - free)
            near = self._near(plan, plan.waiting[0][0])
            taken = self.segments.take(slot_bytes, count, near)
            for (offer, depth), location in zip(plan.waiting, taken, strict=False):
                segment = self.segments.by_number[location >> 32]
                segment.users += 1
                plan.accepted.append(Planned(offer, depth, location, segment))
            del plan.waiting[: len(taken)]
            if len(taken) < count:
                return  # what follows may descend from what has no slot

    def _near(self, plan: Plan, offer: Offer) -> int | None:
        if offer.parent is None:
            return None
        if plan.accepted and plan.accepted[-1].offer.key == offer.parent:
            return plan.accepted[-1].location
        row = self.index.rows.get(offer.parent, NO_ROW)
        return None if row == NO_ROW else self.index.location[row]

    def _evict(self, slot_bytes: int, count: int) -> None:
        kind = self.segments.kind_of(slot_bytes)
        # So that the next batches find longer runs of free slots.
        gone = self.index.evict(kind, count + spare_slots(self.segments.slots))
        self.evicted += len(gone)
        self._evicted_for[slot_bytes] += len(gone)
        for key, location in gone:
            self.segments.give(location)
            self._record(Record(RecordKind.DROP, key))

    def _insert(self, page: Planned, now_us: int) -> bool:
        offer = page.offer
        if page.segment.gone or offer.key in self.index.rows:
            return False
        parent = NO_ROW
        if offer.parent is not None:
            parent = self.index.rows.get(offer.parent, NO_ROW)
            if parent == NO_ROW:
                return False
        number, slot = locate(page.location)
        row = self.index.add(
            offer.key,
            parent,
            page.location,
            offer.payload_bytes,
            self.segments.kind_of(page.segment.slot_bytes),
            now_us,
        )
        page.segment.rows[slot] = row
        page.segment.dirty = True
        self._record(
            Record(
                RecordKind.PUT,
                offer.key,
                offer.parent or NO_KEY,
                page.depth,
                number,
                slot,
                offer.payload_bytes,
                now_us,
            )
        )
        return True
