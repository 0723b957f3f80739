"""The index: which page is where, whose child it is, and which leaf goes next.

A tree in columns: a page is a row, and each property is an array over rows, so that a million pages
are loaded and saved by numpy and cost about 250 bytes each. The resident set is prefix-closed: a
page is added under a resident parent only, and only leaves are evicted.

Recency is kept at the page that was used alone; its ancestors inherit it when it is evicted. That
orders leaves exactly as refreshing the whole path would, since only leaves are compared, and a
touch costs the same at any depth.

Whoever knows better than recency may say which chains go before all others (`evict_first`). Nothing
of that is kept on disk.

Pages have kinds (which slots they can free), and chains may mix them. Who needs a slot of one kind
evicts leaves of any kind that end a chain with a page of it, oldest first: what stands in the way
goes, and chains that could never give such a slot are left alone.

Not thread-safe: the catalog's lock is held by every caller. Pure.
"""

import heapq
from array import array
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import TypeAlias

from sglang_ext.cache.store.ends import Ends
from sglang_ext.cache.store.format import KEY_BYTES
from sglang_ext.errors import StoreError

__all__ = ["NO_ROW", "Index", "bit_of"]

NO_ROW = -1
# Rows that are made at once where none is free: one by one each takes 1 us. Cost: 60 bytes each.
_NEW_ROWS = 64
# Rows that wait for their place in the heap: most have a child before anybody looks.
_MOST_FRESH = 4096
# Leaves that are looked at for one that nobody looks after. Takes 1 ms with 10,000 leaves.
_LOOKS = 256
# Chains that are named to go first; the longest named is forgotten. Cost: 100 bytes each.
_MOST_FIRST = 1024
# Kinds beyond that many share heaps, which costs order among them and nothing else.
_HEAPS = 16
_Entry: TypeAlias = tuple[int, int, int]  # time, minus depth, row


class Index:
    """Rows of pages.

    Columns are public to ``checkpoint`` and ``recovery``, which load and save them whole; everybody
    else uses the methods. A free row has location -1. ``kind`` is any small number that tells which
    slots a page can free; ``reach`` has a bit for each heap that the page stands in once it is a
    leaf: one for its own kind and one for each kind among its ancestors.
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
        self.reach = array("H")
        self.child = array("i")
        self.after = array("i")
        self.before = array("i")
        self.free: list[int] = []
        self.pins: dict[int, int] = {}
        self.payload_total_bytes = 0
        # Heaps that have an entry of a row, as bits like ``reach``. An entry outlives its page, so
        # that there is one at most: whoever takes it looks at what the row is by then.
        self._queued = array("H")
        self._fresh: list[int] = []
        self._heaps: defaultdict[int, list[_Entry]] = defaultdict(list)
        self.ends = Ends()
        # Keys to go first, and when that was said.
        self.first: deque[tuple[bytes, int]] = deque(maxlen=_MOST_FIRST)

    def __len__(self) -> int:
        return len(self.rows)

    def key_of(self, row: int) -> bytes:
        """The key of a row."""
        return bytes(self.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES])

    def add(
        self, key: bytes, parent: int, location: int, payload_bytes: int, kind: int, time_us: int
    ) -> int:
        """Add a page under ``parent`` (a row, or `NO_ROW`); returns its row. It must be new."""
        if not self.free:
            self._grow()
        row = self.free.pop()
        self.keys[row * KEY_BYTES : (row + 1) * KEY_BYTES] = key
        self.location[row] = location
        self.parent[row] = parent
        self.time_us[row] = time_us
        self.payload_bytes[row] = payload_bytes
        self.kind[row] = kind
        self.child[row] = self.before[row] = self.after[row] = NO_ROW
        if parent == NO_ROW:
            self.depth[row], self.reach[row] = 0, bit_of(kind)
        else:
            self.depth[row] = self.depth[parent] + 1
            self.reach[row] = bit_of(kind) | self.reach[parent]
            self._link(row, parent)
        self.rows[key] = row
        self.payload_total_bytes += payload_bytes
        self._offer(row)
        self.ends.came(key, row)
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

    def evict_first(self, name: bytes, time_us: int) -> None:
        """Let what is left of a chain go before all others; nobody looks after it any more.

        Whatever has children, is pinned or was used after ``time_us`` when its turn comes stays.
        """
        row = self.ends.row_of(name)
        key = name if row is None else self.key_of(row)
        self.ends.forget(name)
        if key in self.rows:
            self.first.append((key, time_us))

    def evict(self, kind: int, most: int) -> list[tuple[bytes, int]]:
        """Remove leaves until ``most`` pages of ``kind`` are gone: oldest first, then deeper first.

        Leaves of other kinds go where a page of ``kind`` is among their ancestors.

        Returns:
            Keys and locations of all that went; fewer than ``most`` are of ``kind`` where the
            other leaves are pinned.
        """
        bit = bit_of(kind)
        gone, left = self._evict_named(kind, most)
        self._settle()
        heap = self._heaps[bit]
        pinned: list[_Entry] = []
        while left > 0:
            row = self._oldest(bit)
            if row == NO_ROW:
                break
            entry = heapq.heappop(heap)
            if row in self.pins:
                pinned.append(entry)
                continue
            self._queued[row] ^= bit
            parent = self.parent[row]
            left -= self.kind[row] == kind
            gone.append(self._evict_leaf(row))
            if parent != NO_ROW and self.child[parent] == NO_ROW:
                self._settle()  # the parent may be the next to go
        for entry in pinned:
            heapq.heappush(heap, entry)
        return gone

    def oldest_stranger(self) -> int:
        """The leaf that was used least recently of those that nobody looks after.

        `NO_ROW` where there is none among the first few hundred to go.
        """
        self._settle()
        rows = [
            row
            for heap in self._heaps.values()
            for time_us, _, row in heapq.nsmallest(_LOOKS, heap)
            if self.location[row] >= 0
            and self.child[row] == NO_ROW
            and self.time_us[row] == time_us
            and self.ends.name_of(row) is None
        ]
        return min(rows, key=self.time_us.__getitem__, default=NO_ROW)

    def next_to_go(self, kind: int) -> int | None:
        """When the leaf that ``evict`` takes next was used, or a little before; None: no leaf."""
        self._settle()
        heap = self._heaps[bit_of(kind)]
        return heap[0][0] if heap else None

    def children(self, row: int) -> Iterator[int]:
        """Rows of a row's children."""
        at = self.child[row]
        while at != NO_ROW:
            yield at
            at = self.after[at]

    def rebuild_queue(self, order: list[int]) -> None:
        """Queue all leaves anew, after the columns were loaded; ``order``: leaves, first to go."""
        self._queued = array("H", bytes(2 * len(self.location)))
        self._heaps.clear()
        self._fresh = []
        entries = [(self.time_us[row], -self.depth[row], row) for row in order]
        reached = 0
        for row in order:
            self._queued[row] = self.reach[row]
            reached |= self.reach[row]
        for bit in _bits(reached):
            # In order, so each heap is a heap without sifting.
            self._heaps[bit] = [entry for entry in entries if self.reach[entry[2]] & bit]

    def _evict_named(self, kind: int, most: int) -> tuple[list[tuple[bytes, int]], int]:
        """Evict what `evict_first` named; returns what went and how many are still wanted."""
        bit = bit_of(kind)
        gone: list[tuple[bytes, int]] = []
        while self.first and most > 0:
            key, said_us = self.first[0]
            row = self.rows.get(key, NO_ROW)
            if (
                row == NO_ROW
                or self.child[row] != NO_ROW
                or row in self.pins
                or self.time_us[row] > said_us
                or not self.reach[row] & bit
            ):
                self.first.popleft()
                continue
            parent = self.parent[row]
            most -= self.kind[row] == kind
            gone.append(self._evict_leaf(row))
            if parent == NO_ROW:
                self.first.popleft()
            else:
                self.first[0] = self.key_of(parent), said_us
        return gone, most

    def _evict_leaf(self, row: int) -> tuple[bytes, int]:
        """Remove a leaf; its chain ends with its parent then, unless that has other children."""
        name, parent = self.ends.name_of(row), self.parent[row]
        (gone,) = self.remove_tree(row)
        if name is not None and parent != NO_ROW and self.child[parent] == NO_ROW:
            self.ends.move(name, parent)
        return gone

    def _oldest(self, bit: int) -> int:
        """The leaf at the top of a heap, once entries that no longer hold are gone."""
        heap = self._heaps[bit]
        while heap:
            time_us, _, row = heap[0]
            if self.location[row] < 0 or self.child[row] != NO_ROW or not self.reach[row] & bit:
                pass  # gone, or a child came, or another page's row by now
            elif self.time_us[row] == time_us:
                return row
            heapq.heappop(heap)
            self._queued[row] ^= bit
            if self.location[row] >= 0 and self.child[row] == NO_ROW:
                self._queue(row)  # used since
        return NO_ROW

    def _grow(self) -> None:
        first = len(self.location)
        self.keys += bytes(_NEW_ROWS * KEY_BYTES)
        links = self.parent, self.child, self.after, self.before
        for column in (self.location, self.time_us, *links):
            column.extend([NO_ROW] * _NEW_ROWS)
        for column in (self.depth, self.payload_bytes, self.kind, self.reach, self._queued):
            column.extend([0] * _NEW_ROWS)
        self.free.extend(range(first + _NEW_ROWS - 1, first - 1, -1))

    def _discard(self, row: int) -> tuple[bytes, int]:
        """Free a row whose links to others are already cut."""
        key, location = self.key_of(row), self.location[row]
        del self.rows[key]
        self.pins.pop(row, None)
        self.ends.gone(row)
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
            if self.location[row] >= 0 and self.child[row] == NO_ROW:
                self._queue(row)
        self._fresh.clear()

    def _queue(self, row: int) -> None:
        """Put a leaf into each heap that it belongs into and has no entry in."""
        missing = self.reach[row] & ~self._queued[row]
        if missing:
            self._queued[row] |= missing
            entry = (self.time_us[row], -self.depth[row], row)
            for bit in _bits(missing):
                heapq.heappush(self._heaps[bit], entry)

    def check_integrity(self) -> None:
        """Raise ``StoreError`` when the tree contradicts itself."""
        live = [row for row in range(len(self.location)) if self.location[row] >= 0]
        _require(len(live) == len(self.rows), f"{len(live)} rows, {len(self.rows)} keys")
        _require(
            sorted(self.free + live) == list(range(len(self.location))),
            "a row is neither free nor live, or both",
        )
        _require(self.ends.is_sound(), "names of chains and their ends are not the same")
        total = 0
        for row in live:
            self._check_row(row)
            total += self.payload_bytes[row]
        _require(total == self.payload_total_bytes, "the payload total is wrong")
        self._check_queue([row for row in live if self.child[row] == NO_ROW])

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
        above = 0 if parent == NO_ROW else self.reach[parent]
        reach = bit_of(self.kind[row]) | above
        _require(self.reach[row] == reach, f"row {row} is looked for in the wrong heaps")

    def _check_queue(self, leaves: list[int]) -> None:
        """Whether eviction for the kind of each page on its path comes upon each leaf."""
        fresh = set(self._fresh)
        for bit in {*self._heaps, *(bit for row in leaves for bit in _bits(self.reach[row]))}:
            rows = [entry[2] for entry in self._heaps[bit]]
            marked = {row for row in range(len(self._queued)) if self._queued[row] & bit}
            _require(sorted(rows) == sorted(marked), f"heap {bit} has entries that are not marked")
            lost = {row for row in leaves if self.reach[row] & bit} - marked - fresh
            _require(not lost, f"leaves {sorted(lost)} can never be evicted")


def bit_of(kind: int) -> int:
    """The heap of a kind, as a bit of ``reach``."""
    return 1 << kind % _HEAPS


def _bits(mask: int) -> Iterator[int]:
    while mask:
        bit = mask & -mask
        yield bit
        mask ^= bit


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise StoreError(f"the index of the page store is broken: {message}")
