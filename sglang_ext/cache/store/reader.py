"""The read side of a store: direct reads, read-ahead, and what a failing disk means for pages."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence

from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.disk import Disk
from sglang_ext.cache.store.engine import Batch, Engine, EngineClosedError, Operation
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.options import StoreOptions
from sglang_ext.cache.store.plan import Found
from sglang_ext.cache.store.readahead import ReadAhead, Staged
from sglang_ext.cache.store.staging import Bytes, Staging
from sglang_ext.cache.store.transfer import DirectRun, Reading, operation_bytes, runs

__all__ = ["Reader"]

logger = logging.getLogger(__name__)

# Places that could not be read once; the oldest is forgotten. Cost: about 200 bytes each.
_MOST_SUSPECTS = 4096


class Reader:
    """Reads pages for callers. Methods may be called from any thread.

    Args:
        catalog: where pages are.
        engine, disk, staging: read them.
        options: of the store.
    """

    def __init__(
        self,
        catalog: Catalog,
        engine: Engine,
        disk: Disk,
        staging: Staging,
        options: StoreOptions,
    ) -> None:
        self.health = Health("reading")
        self.counts: Counter[str] = Counter()
        self._catalog = catalog
        self._engine = engine
        self._disk = disk
        self._staging = staging
        self._options = options
        self._guard = threading.Lock()
        self._suspects: dict[int, tuple[bytes, int]] = {}
        self.ahead = ReadAhead(
            catalog,
            engine,
            disk,
            staging,
            self._finished,
            limit_bytes=options.read_ahead_bytes,
            operation_bytes=options.operation_bytes,
            hold_s=options.read_ahead_s,
        )

    def announce(self, keys: Sequence[bytes]) -> None:
        """These resident pages will be read soon."""
        if keys and self.health.is_good:
            self.ahead.announce(keys)

    def read(
        self, namespace: bytes, keys: Sequence[bytes], memory: list[list[Bytes]]
    ) -> list[bool]:
        """Read pages into ``memory``; for each whether it arrived. See `PageStore.read`."""
        results = [False] * len(keys)
        if self.health.allows():
            self._read(namespace, keys, memory, results)
        hits = sum(results)
        with self._guard:
            self.counts["hits"] += hits
            self.counts["misses"] += len(keys) - hits
        if hits:
            last = len(results) - 1 - results[::-1].index(True)
            self._catalog.touch(keys[last])
        return results

    def _read(
        self,
        namespace: bytes,
        keys: Sequence[bytes],
        memory: list[list[Bytes]],
        results: list[bool],
    ) -> None:
        deadline = time.monotonic() + self._options.stall_s
        reading = Reading(namespace, memory, results)
        staged: dict[int, Staged] = {}
        direct: list[int] = []
        for number, key in enumerate(keys):
            page = self.ahead.take(key)
            if page is None:
                direct.append(number)
            else:
                staged[number] = page
        if direct:
            self.ahead.skip([keys[number] for number in direct])
        batch = self._begin(reading, keys, direct)
        again = []
        for number, page in staged.items():
            if page.copy(namespace, memory[number], deadline):
                results[number] = True
            else:
                again.append(number)
            page.done()
        self._wait(batch, deadline)
        if again and time.monotonic() < deadline:
            # Read ahead but not the page that is asked for; the direct read says why, and heals.
            self._wait(self._begin(reading, keys, again), deadline)

    def _begin(self, reading: Reading, keys: Sequence[bytes], numbers: Sequence[int]) -> Batch:
        """Queue direct reads of ``keys[number]``."""
        found: list[Found] = []
        for page in self._catalog.find(keys, numbers):
            if sum(map(len, reading.targets[page.number])) != page.payload_bytes:
                self._release([page], [(page, "length")])
            elif page.segment.slot_bytes > self._staging.size_bytes:
                self._release([page], [])  # written by somebody with more memory
            else:
                found.append(page)
        most = operation_bytes(found, self._options.io_threads, self._options.operation_bytes)
        parts = runs(found, most)
        batch = Batch(len(parts))
        operations: list[Operation] = [
            DirectRun(self._disk, self._staging, part, self._finished, reading, batch)
            for part in parts
        ]
        try:
            self._engine.submit(operations, "read")
        except EngineClosedError:
            self._release(found, [])
            return Batch(0)
        return batch

    def _wait(self, batch: Batch, deadline: float) -> None:
        if not batch.wait(deadline):
            batch.abandon()
            self.health.failed(None)

    def _finished(
        self,
        pages: Sequence[Found],
        drops: Sequence[tuple[Found, str]],
        got: int,
        failure: OSError | None,
    ) -> None:
        """A worker is done with pages."""
        if failure is not None:
            self.health.failed(failure)
            drops = [(page, "unreadable") for page in self._hopeless(pages)]
        elif got:
            ends_outage = self.health.succeeded()
            with self._guard:
                self._clear_of_suspicion(pages, ends_outage)
                self.counts["read_bytes"] += got
                self.counts["reads"] += 1
        self._release(pages, drops)

    def _hopeless(self, pages: Sequence[Found]) -> list[Found]:
        """Pages that failed before, while the disk has done other reads since: a bad sector.

        A disk that is away for a while costs no page; one that has a bad spot must not keep the
        page there for ever, since nothing would ever be written in its place.
        """
        with self._guard:
            reads = self.counts["reads"]
            again = []
            for page in pages:
                key, since = self._suspects.pop(page.location, (b"", 0))
                if key == page.key and since < reads:
                    again.append(page)
                else:
                    self._suspects[page.location] = page.key, reads
            while len(self._suspects) > _MOST_SUSPECTS:
                del self._suspects[next(iter(self._suspects))]
            return again

    def _clear_of_suspicion(self, pages: Sequence[Found], ends_outage: bool) -> None:
        """Pages were read well; what failed in an outage says nothing of its place. Guard held."""
        if ends_outage:
            self._suspects.clear()
        elif self._suspects:
            for page in pages:
                self._suspects.pop(page.location, None)

    def _release(self, pages: Sequence[Found], drops: Sequence[tuple[Found, str]]) -> None:
        for segment in self._catalog.release(pages, drops):
            try:
                self._disk.close(segment.file)
            except OSError as error:
                logger.debug("a removed segment: %s", error)
