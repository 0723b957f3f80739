"""Read-ahead: pages that will be asked for are on their way before they are.

SGLang asks which pages exist when a request is queued, and reads them later, with one thread, in
batches. What exists is read into staging memory in order, up to a bound; as pages are taken, the
next ones follow, so that the disk stays busy between batches.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.engine import Engine, EngineClosedError
from sglang_ext.cache.store.format import BLOCK_BYTES
from sglang_ext.cache.store.plan import Found
from sglang_ext.cache.store.staging import Block, Bytes, Staging, copy_out
from sglang_ext.cache.store.transfer import Finished, ReadRun, mismatch, runs

__all__ = ["AheadRun", "ReadAhead", "Staged"]

# Prefixes that wait for room. Cost: their keys; older ones are forgotten.
_MOST_PREFIXES = 64
# Pages that are looked up at a time.
_CHUNK_PAGES = 64


class AheadRun(ReadRun):
    """Reads a run of slots and holds on to it until its pages are taken or given up."""

    def __init__(
        self,
        disk: Disk,
        staging: Staging,
        pages: list[Found],
        finished: Finished,
        gone: Callable[["AheadRun"], None],
    ) -> None:
        super().__init__(disk, staging, pages, finished)
        self.begun_s = time.monotonic()
        self.good: dict[bytes, tuple[int, bytes]] = {}
        self.arrived = threading.Event()
        self.holders = len(pages) + 1  # each page, and the operation itself
        self.block: Block | None = None
        self._gone = gone
        self._guard = threading.Lock()

    def is_cancelled(self) -> bool:  # noqa: D102 - see `ReadRun`
        return self.holders == 1

    def deliver(self, block: Block, got: int, drops: list[tuple[Found, str]]) -> None:  # noqa: D102
        self.block = block
        for number, page in enumerate(self.pages):
            start = number * self.slot_bytes
            if start + self.slot_bytes > got:
                drops.append((page, "cut"))
                continue
            slot = block.view[start : start + self.slot_bytes]
            why, namespace = mismatch(slot, page.key, None, page.payload_bytes)
            if why:
                drops.append((page, why))
            else:
                self.good[page.key] = start + BLOCK_BYTES, namespace

    def ended(self) -> None:  # noqa: D102
        self.arrived.set()
        self.let_go(1)

    def let_go(self, count: int) -> None:
        """``count`` holders are done; the last one frees the memory."""
        with self._guard:
            self.holders -= count
            if self.holders:
                return
        if self.block is not None:
            self.block.free()
        self._gone(self)


@dataclass(slots=True)
class Staged:
    """A page that was read ahead, or is being read; whoever took it calls ``done`` once."""

    page: Found
    run: AheadRun

    def copy(self, namespace: bytes, targets: list[Bytes], deadline: float) -> bool:
        """Wait for the page and copy it; False where it did not arrive or is not the one."""
        if not self.run.arrived.wait(max(0.0, deadline - time.monotonic())):
            return False
        start, found = self.run.good.get(self.page.key, (0, b""))
        block = self.run.block
        if block is None or found != namespace:
            return False
        if sum(len(target) for target in targets) != self.page.payload_bytes:
            return False
        copy_out(targets, block.array[start : start + self.page.payload_bytes])
        return True

    def done(self) -> None:
        """Give the page up."""
        self.run.let_go(1)


class ReadAhead:
    """Keeps staging memory filled with what was announced.

    Args:
        catalog: where pages are.
        engine, disk, staging: read them.
        finished: as for `ReadRun`.
        limit_bytes: most staging memory that is held.
        operation_bytes: most bytes an operation.
        hold_s: how long a page is held for somebody to take it.
    """

    def __init__(
        self,
        catalog: Catalog,
        engine: Engine,
        disk: Disk,
        staging: Staging,
        finished: Finished,
        *,
        limit_bytes: int,
        operation_bytes: int,
        hold_s: float,
    ) -> None:
        self.pages = 0
        self.used_pages = 0
        self._catalog = catalog
        self._engine = engine
        self._disk = disk
        self._staging = staging
        self._finished = finished
        self._limit_bytes = limit_bytes
        self._operation_bytes = operation_bytes
        self._hold_s = hold_s
        self._guard = threading.RLock()
        self._staged: dict[bytes, Staged] = {}
        self._prefixes: deque[deque[bytes]] = deque()
        self._held_bytes = 0
        self._slot_bytes = BLOCK_BYTES  # of the last pages; until they are known, small
        # With less room than this it is not worth to begin another operation.
        self._worth_bytes = min(operation_bytes, limit_bytes // 4)

    def announce(self, keys: Sequence[bytes]) -> None:
        """These pages will be read soon, in this order. Does not block."""
        with self._guard:
            self._prefixes.append(deque(dict.fromkeys(keys)))
            if len(self._prefixes) > _MOST_PREFIXES:
                self._prefixes.popleft()
        self.fill()

    def take(self, key: bytes) -> Staged | None:
        """A page that was read ahead; None where it was not, or no worker has begun with it."""
        with self._guard:
            staged = self._staged.pop(key, None)
            if staged is None:
                return None
            run = staged.run
        if not run.arrived.is_set() and self._engine.cancel_ahead(run):
            self._cancel(run)
            staged.done()
            return None
        with self._guard:
            self.used_pages += 1
        return staged

    def skip(self, keys: Sequence[bytes]) -> None:
        """These pages are being read directly: do not read them ahead as well."""
        with self._guard:
            if not self._prefixes:
                return
            skipped = set(keys)
            for prefix in self._prefixes:
                while prefix and prefix[0] in skipped:
                    prefix.popleft()

    def fill(self) -> None:
        """Read on as far as there is room for whole operations."""
        submitted: list[AheadRun] = []
        with self._guard:
            while self._prefixes:
                room = self._limit_bytes - self._held_bytes
                if room < self._worth_bytes and self._held_bytes:
                    break
                keys = self._prefixes[0]
                if not keys:
                    self._prefixes.popleft()
                    continue
                count = max(1, min(_CHUNK_PAGES, room // self._slot_bytes, len(keys)))
                late = self._begin([keys.popleft() for _ in range(count)], submitted)
                keys.extendleft(reversed(late))
                if late:
                    break
        if not submitted:
            return
        try:
            self._engine.submit(list(submitted), "ahead")
        except EngineClosedError:
            with self._guard:
                self._prefixes.clear()
            for run in submitted:
                self._cancel(run)

    def expire(self) -> None:
        """Give up what nobody has taken for too long, and what has not even arrived."""
        limit_s = time.monotonic() - self._hold_s
        self._give_up(lambda staged: staged.run.begun_s < limit_s)
        self.fill()

    def forget(self) -> None:
        """Give up everything."""
        with self._guard:
            self._prefixes.clear()
        self._give_up(lambda staged: True)

    def _give_up(self, chosen: Callable[[Staged], bool]) -> None:
        with self._guard:
            gone = [staged for staged in self._staged.values() if chosen(staged)]
            for staged in gone:
                del self._staged[staged.page.key]
        for staged in gone:
            staged.done()

    def _begin(self, keys: list[bytes], submitted: list[AheadRun]) -> list[bytes]:
        """Begin to read ``keys``; returns those for which there is no room. Guard held."""
        wanted = [number for number, key in enumerate(keys) if key not in self._staged]
        found = self._catalog.find(keys, wanted)
        late: list[Found] = []
        for pages in runs(found, self._operation_bytes):
            operation = AheadRun(self._disk, self._staging, pages, self._finished, self._freed)
            if self._held_bytes + operation.size_bytes > self._limit_bytes:
                late.extend(pages)
                continue
            self._slot_bytes = operation.slot_bytes
            self._held_bytes += operation.size_bytes
            self.pages += len(pages)
            for page in pages:
                self._staged[page.key] = Staged(page, operation)
            submitted.append(operation)
        self._finished(late, (), 0, None)
        numbers = {page.number for page in late}
        if len(late) == len(found) and not self._held_bytes:
            return []  # larger than all the room there is
        return [key for number, key in enumerate(keys) if number in numbers]

    def _cancel(self, run: AheadRun) -> None:
        """A run that no worker has begun with: its pages are not there for anybody."""
        with self._guard:
            others = [page for page in run.pages if self._staged.get(page.key) is not None]
            others = [page for page in others if self._staged[page.key].run is run]
            for page in others:
                del self._staged[page.key]
            self.pages -= len(run.pages)
        self._finished(run.pages, (), 0, None)
        run.arrived.set()  # another reader may have taken a page of it, and waits for it
        run.let_go(len(others) + 1)  # the operation itself, too

    def _freed(self, run: AheadRun) -> None:
        with self._guard:
            self._held_bytes -= run.size_bytes
        self.fill()
