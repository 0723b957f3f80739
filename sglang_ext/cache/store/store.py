"""The page store: what a caller sees, and the thread that makes things durable."""

import logging
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from sglang_ext.cache.store.admission import SeenTwice, WriteHours
from sglang_ext.cache.store.catalog import Found, Offer, Plan, Planned
from sglang_ext.cache.store.disk import Disk, RealDisk
from sglang_ext.cache.store.engine import Batch, Engine, Operation
from sglang_ext.cache.store.follower import Follower
from sglang_ext.cache.store.format import KEY_BYTES, slot_bytes_of
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.keeper import Keeper
from sglang_ext.cache.store.options import Buffer, Page, StoreOptions, StoreStats
from sglang_ext.cache.store.readahead import ReadAhead, Staged
from sglang_ext.cache.store.staging import Bytes, Staging, flat
from sglang_ext.cache.store.transfer import DirectRun, Reading, WriteJob, WriteRun, runs
from sglang_ext.errors import StoreError

__all__ = ["PageStore"]

logger = logging.getLogger(__name__)


class PageStore:
    """Pages of KV cache on an SSD. Methods may be called from any thread.

    Nothing raises out of ``prefix``, ``read``, ``write`` and ``touch`` but ``ValueError`` for
    wrong arguments: a fault of the disk is a counted miss. Usable as a context manager.

    Args:
        folder: the store's folder; made where it is missing.
        options: bounds and behaviour.
        disk: who does the file operations; the operating system by default.

    Raises:
        StoreFolderError, StoreFormatError, StoreInUseError: see there.
        StoreError: the disk fails while the store is opened.
    """

    def __init__(self, folder: Path, options: StoreOptions, *, disk: Disk | None = None) -> None:
        self._start(Path(folder), options, disk or RealDisk(), writer=True)

    @classmethod
    def follow(
        cls, folder: Path, options: StoreOptions, *, disk: Disk | None = None
    ) -> "PageStore":
        """A read-only view beside a writer in another process.

        It learns of what the writer does from the journal, whenever it is asked something. The
        writer may come later: until then there are no pages. ``write`` writes nothing.

        Raises:
            StoreFolderError, StoreFormatError: see there.
        """
        store = cls.__new__(cls)
        store._start(  # noqa: SLF001 - a second constructor
            Path(folder), options, disk or RealDisk(), writer=False
        )
        return store

    def _start(self, folder: Path, options: StoreOptions, disk: Disk, *, writer: bool) -> None:
        begin = time.monotonic()
        self._options = options
        self._disk = disk
        self._counts: Counter[str] = Counter()
        self._reading = Health("reading")
        self._writing = Health("writing")
        self._closed = False
        hours = WriteHours(options.write_limit_bytes_per_day)
        seen = SeenTwice() if options.admission == "second" else None
        self._keeper: Keeper | None = None
        self._follower: Follower | None = None
        try:
            if writer:
                self._keeper = Keeper(folder, options, disk, hours, seen, self._writing)
                self._catalog = self._keeper.catalog
            else:
                self._follower = Follower(folder, options, disk)
                self._catalog = self._follower.catalog
        except OSError as error:
            raise StoreError(
                f"the page store {folder} cannot be opened: {error}; see to the disk, or give the "
                "server another folder"
            ) from error
        self._hours = hours
        self._staging = Staging(options.staging_bytes)
        self._engine = Engine(options.io_threads)
        self._ahead = ReadAhead(
            self._catalog,
            self._engine,
            disk,
            self._staging,
            self._finished_read,
            limit_bytes=options.read_ahead_bytes,
            operation_bytes=options.operation_bytes,
            hold_s=options.read_ahead_s,
        )
        if self._keeper is not None:
            self._keeper.start(self._ahead.expire)
        self.open_s = time.monotonic() - begin

    def __enter__(self) -> "PageStore":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def prefix(self, keys: Sequence[bytes], *, read_ahead: bool = False) -> int:
        """How many leading keys are resident. Does not wait for the disk.

        Args:
            keys: of a chain, from its root or from any page on.
            read_ahead: begin to read those pages, because ``read`` will ask for them soon.
        """
        _check_keys(keys)
        if self._closed:
            return 0
        self._catch_up()
        count = self._catalog.prefix(keys)
        if read_ahead and count and self._reading.is_good:
            self._ahead.announce(keys[:count])
        return count

    def read(
        self, namespace: bytes, keys: Sequence[bytes], targets: Sequence[Sequence[Buffer]]
    ) -> list[bool]:
        """Read pages into the caller's memory.

        Blocks until all have arrived, ``options.stall_s`` at most. A page that does not match its
        key, namespace, length or checksum is not delivered, and is dropped with its descendants.

        Args:
            namespace: what ``write`` was given.
            keys: pages.
            targets: for each page the buffers that its payload is divided among, writable.

        Returns:
            For each page whether its targets hold it; targets of the others are untouched.

        Raises:
            ValueError: lengths differ, or a buffer cannot be used.
        """
        _check_namespace(namespace)
        _check_keys(keys)
        if len(keys) != len(targets):
            raise ValueError(f"{len(keys)} keys and targets for {len(targets)} pages")
        memory = [[flat(buffer) for buffer in pieces] for pieces in targets]
        if any(not piece.flags.writeable for pieces in memory for piece in pieces):
            raise ValueError("a target is not writable")
        results = [False] * len(keys)
        if self._closed or not keys:
            return results
        self._catch_up()
        if self._reading.allows():
            self._read(namespace, keys, memory, results)
        hits = sum(results)
        self._counts["hits"] += hits
        self._counts["misses"] += len(keys) - hits
        if hits:
            last = len(results) - 1 - results[::-1].index(True)
            self._catalog.touch(keys[last])
        return results

    def write(self, namespace: bytes, pages: Sequence[Page]) -> list[bool]:
        """Write pages, parents before their children.

        Blocks until the pages would survive the end of this process, ``options.stall_s`` at most;
        they survive a power loss after the next sync (``options.sync_interval_s``, or ``flush``).
        One call is served at a time.

        Returns:
            For each page whether it is resident now, written or there before.

        Raises:
            ValueError: a key, namespace or buffer cannot be used, or a page is larger than a
                quarter of the staging memory.
        """
        _check_namespace(namespace)
        _check_keys([page.key for page in pages])
        _check_keys([page.parent for page in pages if page.parent is not None])
        results = [False] * len(pages)
        sources = {n: [flat(piece) for piece in page.buffers] for n, page in enumerate(pages)}
        offers: dict[bytes, Offer] = {}
        for number, page in enumerate(pages):
            size = sum(len(piece) for piece in sources[number])
            if slot_bytes_of(size) > self._options.staging_bytes // 4:
                raise ValueError(
                    f"a page of {size} bytes needs staging_bytes={4 * slot_bytes_of(size)}; "
                    f"it is {self._options.staging_bytes}"
                )
            offers.setdefault(page.key, Offer(number, page.key, page.parent, size))
        keeper = self._keeper
        if keeper is None or self._closed or not pages:
            return results
        if not self._writing.allows():
            self._refuse(len(offers))
            return results
        deadline = time.monotonic() + self._options.stall_s
        if not keeper.turn.acquire(timeout=self._options.stall_s):
            self._refuse(len(offers))
            return results
        try:
            self._write(keeper, namespace, list(offers.values()), sources, results, deadline)
        finally:
            keeper.turn.release()
        return [results[offers[page.key].number] for page in pages]

    def touch(self, key: bytes) -> None:
        """A page was used elsewhere: it and its ancestors are evicted later. Does not block."""
        _check_keys([key])
        if not self._closed:
            self._catalog.touch(key)

    def flush(self) -> None:
        """Make all that was accepted durable; blocks until it is.

        Raises:
            StoreError: the disk failed or did not answer.
        """
        if self._keeper is None or self._closed:
            return
        try:
            self._keeper.sync()
        except OSError as error:
            raise StoreError(f"pages could not be made durable: {error}") from error

    def clear(self) -> None:
        """Drop all pages and give their room back; nothing but the store's own files goes.

        Raises:
            StoreError: the disk failed; what could not be removed is empty all the same.
        """
        if self._keeper is None or self._closed:
            return
        self._ahead.forget()
        try:
            with self._keeper.turn:
                self._keeper.clear()
        except OSError as error:
            raise StoreError(f"segments could not be removed: {error}") from error

    def stats(self) -> StoreStats:
        """Counters and gauges."""
        catalog, counts, keeper = self._catalog, self._counts, self._keeper
        with catalog.lock:
            errors = self._reading.errors + self._writing.errors
            written_today = self._hours.total_bytes()
            return StoreStats(
                pages=len(catalog.index),
                payload_bytes=catalog.index.payload_total_bytes,
                used_bytes=catalog.segments.used_bytes(),
                capacity_bytes=self._options.capacity_bytes,
                segments=len(catalog.segments.by_number),
                direct=self._is_direct(),
                writer=keeper is not None,
                hits=counts["hits"],
                misses=counts["misses"],
                read_bytes=counts["read_bytes"],
                written_pages=counts["written_pages"],
                written_bytes=counts["written_bytes"],
                duplicates=catalog.duplicates,
                evicted=catalog.evicted,
                refused={why: n for why, n in catalog.refused.items() if n},
                dropped={why: n for why, n in catalog.dropped.items() if n},
                errors=dict(errors),
                read_ahead_pages=self._ahead.pages,
                read_ahead_used=self._ahead.used_pages,
                operations=self._engine.operations,
                syncs=keeper.syncs if keeper else 0,
                checkpoints=keeper.checkpoints if keeper else 0,
                written_today_bytes=written_today,
                healthy=self._reading.is_good and self._writing.is_good,
                recovery=keeper.recovered.how if keeper else "follow",
                open_s=self.open_s,
            )

    def check_integrity(self) -> None:
        """Check every invariant of index and slots, and the bound on the store's size.

        For tests: takes long, and no other call may be under way.

        Raises:
            StoreError: one is broken.
        """
        self._catalog.check_integrity()
        if self._keeper is None:
            return
        allocated = self._keeper.folder.allocated_bytes()
        if allocated > self._options.capacity_bytes:
            raise StoreError(f"the store takes {allocated} bytes of {self._options.capacity_bytes}")

    def close(self) -> None:
        """Make everything durable, write a checkpoint and release the folder; idempotent.

        Blocks, ``options.stall_s`` at most for what is under way. A failing disk is logged: what
        is durable by then is there at the next start.
        """
        if self._closed:
            return
        self._closed = True
        self._ahead.forget()
        idle = self._engine.close(time.monotonic() + self._options.stall_s)
        self._staging.close()
        if self._keeper is not None:
            self._keeper.close(idle=idle)
        if self._follower is not None and idle:
            self._follower.close()

    def _catch_up(self) -> None:
        if self._follower is not None:
            self._follower.catch_up()

    def _is_direct(self) -> bool:
        if self._keeper is not None:
            return self._keeper.files.direct
        return self._follower is not None and self._follower.direct

    def _refuse(self, count: int) -> None:
        with self._catalog.lock:
            self._catalog.refused["disk"] += count

    def _read(
        self,
        namespace: bytes,
        keys: Sequence[bytes],
        memory: list[list[Bytes]],
        results: list[bool],
    ) -> None:
        deadline = time.monotonic() + self._options.stall_s
        staged: dict[int, Staged] = {}
        direct: list[int] = []
        for number, key in enumerate(keys):
            page = self._ahead.take(key)
            if page is None:
                direct.append(number)
            else:
                staged[number] = page
        if direct:
            self._ahead.skip([keys[number] for number in direct])
        targets = dict(enumerate(memory))
        reading = self._begin(namespace, keys, direct, targets, results)
        again = []
        for number, page in staged.items():
            if page.copy(namespace, memory[number], deadline):
                results[number] = True
            else:
                again.append(number)
            page.done()
        self._wait(reading, deadline)
        if again and time.monotonic() < deadline:
            # Read ahead but not the page that is asked for; the direct read says why, and heals.
            self._wait(self._begin(namespace, keys, again, targets, results), deadline)

    def _begin(
        self,
        namespace: bytes,
        keys: Sequence[bytes],
        numbers: Sequence[int],
        targets: dict[int, list[Bytes]],
        results: list[bool],
    ) -> Reading:
        """Queue direct reads of ``keys[number]``."""
        found: list[Found] = []
        for page in self._catalog.find(keys, numbers):
            if sum(len(target) for target in targets[page.number]) == page.payload_bytes:
                found.append(page)
            else:
                self._release([page], [(page, "length")])
        parts = runs(found, self._operation_bytes(found))
        reading = Reading(namespace, targets, results, Batch(len(parts)))
        operations: list[Operation] = [
            DirectRun(
                self._disk,
                self._staging,
                [found[number] for number in part],
                self._finished_read,
                reading,
            )
            for part in parts
        ]
        self._engine.submit(operations, "read")
        return reading

    def _wait(self, reading: Reading, deadline: float) -> None:
        if not reading.batch.wait(deadline):
            reading.batch.abandon()
            self._reading.failed(None)

    def _operation_bytes(self, pages: Sequence[Found] | Sequence[Planned]) -> int:
        """Size of operations that keeps all workers busy: an even share, within bounds."""
        total = sum(page.segment.slot_bytes for page in pages)
        share = total // self._options.io_threads
        return min(self._options.operation_bytes, max(share, _LEAST_OPERATION_BYTES))

    def _finished_read(
        self,
        pages: Sequence[Found],
        drops: Sequence[tuple[Found, str]],
        got: int,
        failure: OSError | None,
    ) -> None:
        """A worker is done with pages."""
        if failure is not None:
            self._reading.failed(failure)
        elif got:
            self._reading.succeeded()
            self._counts["read_bytes"] += got
        self._release(pages, drops)

    def _release(self, pages: Sequence[Found], drops: Sequence[tuple[Found, str]]) -> None:
        for segment in self._catalog.release(pages, drops):
            self._close_segment(segment.file)

    def _close_segment(self, file: int) -> None:
        try:
            self._disk.close(file)
        except OSError as error:
            logger.debug("a removed segment: %s", error)

    def _write(
        self,
        keeper: Keeper,
        namespace: bytes,
        offers: list[Offer],
        sources: dict[int, list[Bytes]],
        results: list[bool],
        deadline: float,
    ) -> None:
        plan = self._catalog.plan(offers)
        for number in plan.resident:
            results[number] = True
        self._make_room(keeper, plan, deadline)
        committed: list[int] = []

        def commit(written: Sequence[Planned]) -> None:
            if keeper.commit(plan, written):
                committed.extend(page.offer.number for page in written)

        job = WriteJob(namespace, plan, sources, Batch(1), commit, self._writing.failed)
        parts = runs(plan.accepted, self._operation_bytes(plan.accepted))
        if not parts:
            keeper.give_up(plan)
            return
        job.left = len(parts)
        operations: list[Operation] = [
            WriteRun(self._disk, self._staging, [plan.accepted[number] for number in part], job)
            for part in parts
        ]
        self._engine.submit(operations, "write")
        if not job.batch.wait(deadline):
            job.batch.abandon()
            self._writing.failed(None)
            return
        size = 0
        for number in committed:
            results[number] = True
            size += sum(len(source) for source in sources[number])
        if committed:
            self._writing.succeeded()
            self._counts["written_pages"] += len(committed)
            self._counts["written_bytes"] += size

    def _make_room(self, keeper: Keeper, plan: Plan, deadline: float) -> None:
        """Segments for what has no slot; where none can be made, other pages go."""
        catalog = self._catalog
        while plan.waiting:
            before = len(plan.waiting), catalog.segments.slots, catalog.may_grow
            slot_bytes = slot_bytes_of(plan.waiting[0][0].payload_bytes)
            if not self._engine.call(partial(keeper.grow, slot_bytes), "write", deadline):
                self._writing.failed(None)
                return
            catalog.extend(plan)
            if before == (len(plan.waiting), catalog.segments.slots, catalog.may_grow):
                return  # all that could go is in use


# Below this an operation costs more than it moves.
_LEAST_OPERATION_BYTES = 512 * 1024


def _check_namespace(namespace: bytes) -> None:
    if len(namespace) != KEY_BYTES:
        raise ValueError(f"a namespace has {KEY_BYTES} bytes; this one has {len(namespace)}")


def _check_keys(keys: Sequence[bytes]) -> None:
    for key in keys:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes; this one has {len(key)}")
