"""Slots against a log: what each costs under churn, at the same eviction (docs/design/store.md).

Sessions of an agent grow by batches of pages, share system prompts, read their whole chain at each
turn, and end. Pages are placed by three schemes and evicted least recently used leaf first:

- slots: the store's own allocator;
- log, cleaned: pages are appended to segments; the emptiest segment is copied forward when room is
  needed; a share of all segments is held back, so that segments get emptier before it is;
- log, dropped: the oldest segment goes as a whole, with all that descends from its pages.

Counted are pages written for each page that a session wrote, operations for 100 pages of a chain
that is read back (runs of adjacent pages, 4 MiB at most), the share of pages that were there when
a session came back, and MB/s of reading chains with that layout from a real file with 16 threads.

    python docs/design/slots_or_log.py --folder /nvme/scratch
"""

import argparse
import json
import mmap
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue

from sglang_ext.cache.store.format import BLOCK_BYTES, KEY_BYTES
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.segments import Segment, Segments, Space, place

SLOT_BYTES = 64 * 1024 + BLOCK_BYTES
SEGMENT_PAGES = 960  # 64 MiB
SEGMENTS = 32  # 2 GiB
CAPACITY_PAGES = SEGMENT_PAGES * SEGMENTS
OPERATION_PAGES = 4 * 1024 * 1024 // SLOT_BYTES
SESSIONS = 300
REUSE_SESSIONS = 70
PROMPTS = 6
PROMPT_PAGES = 20
# A log needs free segments to append to while it cleans.
SPARE_SEGMENTS = 2


class Slots:
    """The store's allocator: any free slots, in runs as long as possible."""

    name = "slots"
    capacity_pages = CAPACITY_PAGES

    def __init__(self, drop: Callable[[int], None]) -> None:
        self.copied = 0
        self._segments = Segments(Space(1 << 45))
        for number in range(SEGMENTS):
            segment = Segment(number, SLOT_BYTES, SEGMENT_PAGES, -1)
            self._segments.insert(segment, SEGMENT_PAGES * SLOT_BYTES)

    def take(self, pages: int, near: int | None) -> list[int]:
        """Locations for a batch."""
        return self._segments.take(SLOT_BYTES, pages, near)

    def settle(self, locations: list[int], rows: list[int]) -> None:
        """Rows of the pages that were placed."""

    def give(self, location: int) -> None:
        """A page is gone."""
        self._segments.give(location)


class Log:
    """Append only; room comes from the segment with the fewest live pages, or from the oldest."""

    def __init__(self, index: Index, drop: Callable[[int], None], held_back: float | None) -> None:
        clean = held_back is not None
        self.name = f"log, cleaned, {held_back:.0%} held back" if clean else "log, dropped"
        whole = CAPACITY_PAGES - SPARE_SEGMENTS * SEGMENT_PAGES
        self.capacity_pages = round(whole * (1 - (held_back or 0)))
        self.copied = 0
        self._index = index
        self._drop = drop
        self._clean = clean
        self._rows: list[dict[int, int]] = [{} for _ in range(SEGMENTS)]
        self._free = list(range(SEGMENTS))
        self._order: list[int] = []
        self._head = -1
        self._next = SEGMENT_PAGES

    def take(self, pages: int, near: int | None) -> list[int]:
        """Locations for a batch: the next ones."""
        while len(self._free) < SPARE_SEGMENTS:
            self._reclaim()
        return [self._append() for _ in range(pages)]

    def settle(self, locations: list[int], rows: list[int]) -> None:
        """Rows of the pages that were placed."""
        for location, row in zip(locations, rows, strict=True):
            self._rows[location >> 32][location & 0xFFFFFFFF] = row

    def give(self, location: int) -> None:
        """A page is gone; its place is not free before its segment is."""
        self._rows[location >> 32].pop(location & 0xFFFFFFFF, None)

    def _append(self) -> int:
        if self._next == SEGMENT_PAGES:
            self._head, self._next = self._free.pop(0), 0
            self._order.append(self._head)
        self._next += 1
        return place(self._head, self._next - 1)

    def _reclaim(self) -> None:
        full = [segment for segment in self._order if segment != self._head]
        if not self._clean:
            victim = full[0]
            while self._rows[victim]:
                self._drop(next(iter(self._rows[victim].values())))
        else:
            victim = min(full, key=lambda segment: len(self._rows[segment]))
            moved, self._rows[victim] = self._rows[victim], {}
            for row in moved.values():
                location = self._append()
                self._index.location[row] = location
                self._rows[location >> 32][location & 0xFFFFFFFF] = row
            self.copied += len(moved)
        self._order.remove(victim)
        self._free.append(victim)


class Churn:
    """Drives one scheme with the same sessions as the others."""

    def __init__(self, make: Callable[[Index, Callable[[int], None]], Slots | Log]) -> None:
        self.index = Index()
        self.scheme = make(self.index, self._drop)
        self.counts: Counter[str] = Counter()
        self.chains: list[list[bytes]] = []
        self._clock = count(1)
        self._names = count()

    def run(self, pages: int, seed: int) -> None:
        """Let sessions write until ``pages`` were written."""
        chance = random.Random(seed)  # noqa: S311 - a workload, not a secret
        prompts = [[self._key() for _ in range(PROMPT_PAGES)] for _ in range(PROMPTS)]
        sessions = [list(chance.choice(prompts)) for _ in range(SESSIONS)]
        while self.counts["written"] < pages:
            # Sessions come back after some others have had their turn, some after many.
            at = min(int(chance.expovariate(1 / REUSE_SESSIONS)), SESSIONS - 1)
            sessions.insert(0, sessions.pop(at))
            if len(sessions[0]) > 400 or chance.random() < 0.02:
                sessions[0] = list(chance.choice(prompts))
            self._turn(sessions[0], chance.randint(4, 24))
        self.chains = [self._resident(session) for session in sessions]

    def _turn(self, session: list[bytes], new: int) -> None:
        there = len(self._resident(session))
        self.counts["asked"] += len(session)
        self.counts["hit"] += there
        runs = sum(1 for _ in self.runs(session[:there]))
        if self.counts["written"] > CAPACITY_PAGES:  # once it is full
            self.counts["read"] += there
            self.counts["operations"] += runs
        session.extend(self._key() for _ in range(new))
        for start in range(there, len(session), 128):
            self._write(session, start, min(start + 128, len(session)))

    def _write(self, session: list[bytes], start: int, end: int) -> None:
        now = next(self._clock)
        parent = self.index.rows.get(session[start - 1], NO_ROW) if start else NO_ROW
        if start and parent == NO_ROW:
            return  # dropped by the log since
        if parent != NO_ROW:
            self.index.touch(parent, now)
            self.index.pin(parent)
        excess = len(self.index) + end - start - self.scheme.capacity_pages
        for _, location in self.index.evict(0, max(0, excess)):
            self.scheme.give(location)
        near = self.index.location[parent] if parent != NO_ROW else None
        places = self.scheme.take(end - start, near)
        if parent != NO_ROW:
            self.index.unpin(parent)
            if self.index.location[parent] < 0:
                self.counts["lost"] += len(places)  # dropped by the log: they have no parent
                return
        rows = []
        for key, location in zip(session[start:end], places, strict=True):
            parent = self.index.add(key, parent, location, 0, 0, now)
            rows.append(parent)
        self.scheme.settle(places, rows)
        self.counts["written"] += len(places)

    def runs(self, keys: list[bytes]) -> Iterator[tuple[int, int]]:
        """First location and pages of the operations that read ``keys``."""
        places = sorted(self.index.location[self.index.rows[key]] for key in keys)
        start = 0
        for at in range(1, len(places) + 1):
            whole = at == len(places) or places[at] != places[at - 1] + 1
            if whole or at - start == OPERATION_PAGES:
                yield places[start], at - start
                start = at

    def _resident(self, session: list[bytes]) -> list[bytes]:
        for at, key in enumerate(session):
            if key not in self.index.rows:
                return session[:at]
        return list(session)

    def _drop(self, row: int) -> None:
        for _, location in self.index.remove_tree(row):
            self.scheme.give(location)

    def _key(self) -> bytes:
        return next(self._names).to_bytes(KEY_BYTES, "little")


def read_mb_s(churn: Churn, file: int) -> float:
    """Read all chains, one after another, with 16 reads in flight."""
    work: SimpleQueue[tuple[int, int]] = SimpleQueue()
    total = 0
    for chain in churn.chains:
        for location, pages in churn.runs(chain):
            segment, slot = location >> 32, location & 0xFFFFFFFF
            work.put(((segment * SEGMENT_PAGES + slot) * SLOT_BYTES, pages * SLOT_BYTES))
            total += pages * 64 * 1024

    def reader() -> None:
        buffer = memoryview(mmap.mmap(-1, OPERATION_PAGES * SLOT_BYTES))
        while True:
            try:
                offset, size = work.get_nowait()
            except Empty:
                return
            os.preadv(file, [buffer[:size]], offset)

    threads = [threading.Thread(target=reader) for _ in range(16)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return total / (time.monotonic() - begin) / 1e6


def main() -> None:
    """Run all schemes and print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, required=True, help="where a 2 GiB file goes")
    parser.add_argument("--turnover", type=int, default=8, help="times the capacity is written")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    path = arguments.folder / "slots_or_log.tmp"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    try:
        block = memoryview(mmap.mmap(-1, 16 * SLOT_BYTES))
        for at in range(0, CAPACITY_PAGES, 16):
            os.pwritev(file, [block], at * SLOT_BYTES)
        os.fsync(file)
        churns = [
            Churn(lambda index, drop: Slots(drop)),
            Churn(lambda index, drop: Log(index, drop, 0.07)),
            Churn(lambda index, drop: Log(index, drop, 0.25)),
            Churn(lambda index, drop: Log(index, drop, None)),
        ]
        for churn in churns:
            churn.run(arguments.turnover * CAPACITY_PAGES, arguments.seed)
        speeds: list[list[float]] = [[] for _ in churns]
        for _ in range(5):
            for churn, speed in zip(churns, speeds, strict=True):
                speed.append(read_mb_s(churn, file))
        rows = [_row(churn, sorted(speed)[2]) for churn, speed in zip(churns, speeds, strict=True)]
    finally:
        os.close(file)
        path.unlink()
    for row in rows:
        sys.stdout.write("  ".join(f"{name}={value}" for name, value in row.items()) + "\n")
    sys.stdout.write(json.dumps({"rows": rows}) + "\n")


def _row(churn: Churn, mb_s: float) -> dict[str, object]:
    counts = churn.counts
    return {
        "scheme": churn.scheme.name,
        "written_per_page": round((counts["written"] + churn.scheme.copied) / counts["written"], 2),
        "operations_per_100_pages": round(100 * counts["operations"] / counts["read"], 1),
        "hit_share": round(counts["hit"] / counts["asked"], 3),
        "read_mb_s": round(mb_s),
    }


if __name__ == "__main__":
    main()
