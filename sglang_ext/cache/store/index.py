"""The index: which page is where, whose child it is, and which leaf goes next.

A tree in columns: a page is a row, and each property is an array over rows, so that a million pages
are loaded and saved by numpy and cost about 250 bytes each. The resident set is prefix-closed: a
page is added under a resident parent only, and only leaves are evicted.

Recency is kept at the page that was used alone; its ancestors inherit it when it is evicted. That
orders leaves exactly as refreshing the whole path would, since only leaves are compared, and a
touch costs the same at any depth.

Not thread-safe: the catalog's lock is held by every caller. Pure.
"""

import heapq
from array import array
from collections.abc import Iterator

from sglang_ext.cache.store.format import KEY_BYTES
from sglang_ext.errors import StoreError

__all__ = ["NO_ROW", "Index"]

NO_ROW = -1
# Rows that wait for their place in the heap: most have a child before anybody looks.
_MOST_FRESH = 4096


class Index:
    """Rows of pages.

    Columns are public to ``checkpoint`` and ``recovery``, which load and save them whole; everybody
    else uses the methods. A free row has location -1. ``kind`` is any small number that tells which
    slots a page can free: leaves are evicted by kind.
    """

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        self.keys = bytearray()
        self.location = array("q")
        self.parent = array("i")
        self.depth = array("I")
        self.time_us = array("q")
        self.payload_bytes = array("I")
        self.kind = array("H")
        self.child = array("i")
        self.after = array("i")
        self.before = array("i")
        self.free: list[int] = []
        self.pins: dict[int, int] = {}
        self.payload_total_bytes = 0
        self._queued = bytearray()
        self._fresh: list[int] = []
        self._heaps: dict[int, list[tuple[int, int, int]]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def key_of(self, row: int) -> bytes:
        """The key of a row."""
        return bytes(self.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES])

    def parent_key(self, row: int) -> bytes | None:
        """The key of a row's parent; None at a root."""
        parent = self.parent[row]
        return None if parent == NO_ROW else self.key_of(parent)

    def add(
        self, key: bytes, parent: int, location: int, payload_bytes: int, kind: int, time_us: int
    ) -> int:
        """Add a page under ``parent`` (a row, or `NO_ROW`); returns its row. It must be new."""
        row = self._new_row(key)
        self.location[row] = location
        self.parent[row] = parent
        self.depth[row] = 0 if parent == NO_ROW else self.depth[parent] + 1
        self.time_us[row] = time_us
        self.payload_bytes[row] = payload_bytes
        self.kind[row] = kind
        self.child[row] = self.before[row] = self.after[row] = NO_ROW
        if parent != NO_ROW:
            self._link(row, parent)
        self.rows[key] = row
        self.payload_total_bytes += payload_bytes
        self._offer(row)
        return row

    def remove_tree(self, row: int) -> list[tuple[bytes, int]]:
        """Remove a page and all that descends from it.

        Returns:
            Keys and locations of what was removed, each child before its parent.
        """
        if self.child[row] == NO_ROW:
            self._unlink(row)
            return [self._discard(row)]
        order = [row]
        for at in order:  # grows while it is walked: breadth first
            order.extend(self.children(at))
        self._unlink(row)
        return [self._discard(at) for at in reversed(order)]

    def touch(self, row: int, time_us: int) -> None:
        """A page was used: it and its ancestors go last from now on."""
        self.time_us[row] = max(self.time_us[row], time_us)

    def pin(self, row: int) -> None:
        """Keep a row from being evicted until it is unpinned as often."""
        self.pins[row] = self.pins.get(row, 0) + 1

    def unpin(self, row: int) -> None:
        """Undo one ``pin``; of a row that was removed since, none is left."""
        left = self.pins.get(row, 1) - 1
        if left:
            self.pins[row] = left
        else:
            self.pins.pop(row, None)

    def evict(self, kind: int, most: int) -> list[tuple[bytes, int]]:
        """Remove up to ``most`` leaves of ``kind``, least recently used first, deeper first.

        Returns:
            Keys and locations; fewer than ``most`` where all other leaves are pinned.
        """
        self._settle()
        heap = self._heaps.get(kind, [])
        gone: list[tuple[bytes, int]] = []
        pinned: list[tuple[int, int, int]] = []
        while heap and len(gone) < most:
            entry = heapq.heappop(heap)
            row = entry[2]
            if row in self.pins:
                pinned.append(entry)
                continue
            self._queued[row] = 0
            if self.location[row] < 0 or self.child[row] != NO_ROW:
                continue  # gone, or a child came
            if self.time_us[row] != entry[0] or self.kind[row] != kind:
                self._queue(row)  # used since, or another page's row by now
                continue
            parent = self.parent[row]
            gone.extend(self.remove_tree(row))
            if parent != NO_ROW and self.child[parent] == NO_ROW:
                self._settle()  # the parent may be the next to go
        for entry in pinned:
            heapq.heappush(heap, entry)
        return gone

    def next_to_go(self, kind: int) -> int | None:
        """When the leaf that may go next was used, or a little before; None: no leaf is queued."""
        self._settle()
        heap = self._heaps.get(kind)
        return heap[0][0] if heap else None

    def children(self, row: int) -> Iterator[int]:
        """Rows of a row's children."""
        at = self.child[row]
        while at != NO_ROW:
            yield at
            at = self.after[at]

    def rebuild_queue(self, order: list[int]) -> None:
        """Queue all leaves anew, after the columns were loaded; ``order``: leaves, first to go."""
        self._queued = bytearray(len(self.location))
        self._heaps = {}
        self._fresh = []
        for row in order:
            self._queued[row] = 1
            # In order, so each heap is a heap without sifting.
            entry = (self.time_us[row], -self.depth[row], row)
            self._heaps.setdefault(self.kind[row], []).append(entry)

    def _new_row(self, key: bytes) -> int:
        if self.free:
            row = self.free.pop()
            self.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES] = key
            return row
        row = len(self.location)
        self.keys += key
        for column in (self.location, self.parent, self.time_us, self.child):
            column.append(NO_ROW)
        for column in (self.after, self.before):
            column.append(NO_ROW)
        for column in (self.depth, self.payload_bytes, self.kind):
            column.append(0)
        self._queued.append(0)
        return row

    def _discard(self, row: int) -> tuple[bytes, int]:
        """Free a row whose links to others are already cut."""
        key, location = self.key_of(row), self.location[row]
        del self.rows[key]
        self.pins.pop(row, None)
        self.payload_total_bytes -= self.payload_bytes[row]
        self.location[row] = self.parent[row] = self.child[row] = NO_ROW
        self.free.append(row)
        return key, location

    def _link(self, row: int, parent: int) -> None:
        first = self.child[parent]
        self.after[row] = first
        if first != NO_ROW:
            self.before[first] = row
        self.child[parent] = row

    def _unlink(self, row: int) -> None:
        parent, before, after = self.parent[row], self.before[row], self.after[row]
        if before != NO_ROW:
            self.after[before] = after
        elif parent != NO_ROW:
            self.child[parent] = after
        if after != NO_ROW:
            self.before[after] = before
        if parent != NO_ROW:
            self.touch(parent, self.time_us[row])
            if self.child[parent] == NO_ROW:
                self._offer(parent)

    def _offer(self, row: int) -> None:
        self._fresh.append(row)
        if len(self._fresh) >= _MOST_FRESH:
            self._settle()

    def _settle(self) -> None:
        """Queue what became a leaf and still is one."""
        for row in self._fresh:
            if self.location[row] >= 0 and self.child[row] == NO_ROW and not self._queued[row]:
                self._queue(row)
        self._fresh.clear()

    def _queue(self, row: int) -> None:
        self._queued[row] = 1
        entry = (self.time_us[row], -self.depth[row], row)
        heapq.heappush(self._heaps.setdefault(self.kind[row], []), entry)

    def check_integrity(self) -> None:
        """Raise ``StoreError`` when the tree contradicts itself."""
        live = [row for row in range(len(self.location)) if self.location[row] >= 0]
        _require(len(live) == len(self.rows), f"{len(live)} rows, {len(self.rows)} keys")
        _require(
            sorted(self.free + live) == list(range(len(self.location))),
            "a row is neither free nor live, or both",
        )
        total = 0
        for row in live:
            self._check_row(row)
            total += self.payload_bytes[row]
        _require(total == self.payload_total_bytes, "the payload total is wrong")
        queued = {entry[2] for heap in self._heaps.values() for entry in heap}
        queued.update(self._fresh)
        for row in live:
            _require(self.child[row] != NO_ROW or row in queued, f"leaf {row} can never be evicted")

    def _check_row(self, row: int) -> None:
        _require(self.rows.get(self.key_of(row)) == row, f"row {row} is not found by its key")
        parent = self.parent[row]
        if parent == NO_ROW:
            _require(self.depth[row] == 0, f"root {row} has depth {self.depth[row]}")
        else:
            _require(self.location[parent] >= 0, f"row {row} outlived its parent")
            _require(self.depth[row] == self.depth[parent] + 1, f"row {row}: wrong depth")
            _require(row in self.children(parent), f"row {row} is not a child of its parent")
        for child in self.children(row):
            _require(self.parent[child] == row, f"row {child} has another parent")


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise StoreError(f"the index of the page store is broken: {message}")
