"""The page store: what a caller sees, and the thread that makes things durable."""

import contextlib
import errno
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from sglang_ext.cache.store.admission import SeenTwice, WriteHours
from sglang_ext.cache.store.advice import EvictionAdvice
from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.disk import Disk, RealDisk
from sglang_ext.cache.store.engine import Engine, EngineClosedError
from sglang_ext.cache.store.follower import Follower
from sglang_ext.cache.store.format import NO_KEY, slot_bytes_of
from sglang_ext.cache.store.health import Health
from sglang_ext.cache.store.keeper import Keeper
from sglang_ext.cache.store.options import (
    Buffer,
    Page,
    StoreOptions,
    StoreStats,
    check_keys,
    check_namespace,
)
from sglang_ext.cache.store.plan import Offer
from sglang_ext.cache.store.reader import Reader
from sglang_ext.cache.store.staging import Bytes, Staging, flat
from sglang_ext.cache.store.writer import Writer
from sglang_ext.errors import StoreError

__all__ = ["PageStore"]


class PageStore:
    """Pages of KV cache on an SSD. Methods may be called from any thread.

    Nothing raises out of ``prefix``, ``read``, ``write`` and ``touch`` but ``ValueError`` for
    wrong arguments: a fault of the disk is a counted miss. Usable as a context manager.

    Args:
        folder: the store's folder; made where it is missing.
        options: bounds and behaviour.
        disk: who does the file operations; the operating system by default.

    A process that Python forks has no part in it: there the store is closed, and the lock stays
    with the parent.

    Raises:
        StoreFolderError, StoreFormatError, StoreInUseError: see there.
        StoreError: the disk fails while the store is opened, or a segment is another store's.
    """

    def __init__(self, folder: Path, options: StoreOptions, *, disk: Disk | None = None) -> None:
        self._start(Path(folder).absolute(), options, disk or RealDisk(), writer=True)

    @classmethod
    def follow(
        cls, folder: Path, options: StoreOptions, *, disk: Disk | None = None
    ) -> "PageStore":
        """A read-only view beside a writer in another process.

        It learns of what the writer does from the journal, on a thread of its own, whenever it is
        asked something. The writer may come later: until then there are no pages. ``write`` writes
        nothing.

        Raises:
            StoreFolderError, StoreFormatError: see there.
        """
        store = cls.__new__(cls)
        store._start(  # noqa: SLF001 - a second constructor
            Path(folder).absolute(), options, disk or RealDisk(), writer=False
        )
        return store

    def _start(self, folder: Path, options: StoreOptions, disk: Disk, *, writer: bool) -> None:
        begin = time.monotonic()
        self._options = options
        self._disk = disk
        self._closed = False
        self._hours = WriteHours(options.write_limit_bytes_per_day)
        self._writing = Health("writing")
        self._keeper: Keeper | None = None
        self._follower: Follower | None = None
        self._writer: Writer | None = None
        try:
            with contextlib.ExitStack() as undo:
                self._open(folder, undo, writer=writer)
                undo.pop_all()
        except OSError as error:
            fix = "see to the disk, or give the server another folder"
            if error.errno in (errno.EMFILE, errno.ENFILE):
                fix = "raise the limit of open files (ulimit -n)"
            raise StoreError(f"the page store {folder} cannot be opened: {error}; {fix}") from error
        self.open_s = time.monotonic() - begin
        _open_stores.add(self)

    def _open(self, folder: Path, undo: contextlib.ExitStack, *, writer: bool) -> None:
        options, disk = self._options, self._disk
        if writer:
            seen = SeenTwice() if options.admission == "second" else None
            self._keeper = Keeper(folder, options, disk, self._hours, seen, self._writing)
            undo.callback(self._keeper.release)
            self._catalog: Catalog = self._keeper.catalog
        else:
            self._follower = Follower(folder, options, disk)
            undo.callback(self._follower.close, idle=True)
            self._catalog = self._follower.catalog
        self._staging = Staging(options.staging_bytes)
        self._engine = Engine(options.io_threads)
        undo.callback(self._engine.close, time.monotonic() + options.stall_s)
        parts = self._engine, disk, self._staging, options
        self._reader = Reader(self._catalog, *parts)
        self.advice = EvictionAdvice(self._catalog)
        if self._keeper is not None:
            self._writer = Writer(self._keeper, *parts, self._writing)
            self._keeper.start(self._reader.ahead.expire)
        if self._follower is not None:
            self._follower.start(self._reader.ahead.expire)

    def __enter__(self) -> "PageStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prefix(self, keys: Sequence[bytes], *, read_ahead: bool = False) -> int:
        """How many leading keys are resident.

        A writer does not wait for the disk. A view waits until it has read the journal on, 0.1 s at
        most; while that does not come back, what it knew before is told at once.

        Args:
            keys: of a chain, from its root or from any page on.
            read_ahead: begin to read those pages, because ``read`` will ask for them soon.
        """
        check_keys(keys)
        if self._closed:
            return 0
        self._catch_up()
        count = self._catalog.prefix(keys)
        if read_ahead:
            self._reader.announce(keys[:count])
        return count

    def resident(self, keys: Sequence[bytes]) -> list[bool]:
        """Which of ``keys`` are resident, whatever chains they are of. Waits as ``prefix`` does."""
        check_keys(keys)
        if self._closed:
            return [False] * len(keys)
        self._catch_up()
        return self._catalog.resident(keys)

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
        check_namespace(namespace)
        check_keys(keys)
        if len(keys) != len(targets):
            raise ValueError(f"{len(keys)} keys and targets for {len(targets)} pages")
        memory = [[flat(buffer) for buffer in pieces] for pieces in targets]
        if any(not piece.flags.writeable for pieces in memory for piece in pieces):
            raise ValueError("a target is not writable")
        if self._closed or not keys:
            return [False] * len(keys)
        self._catch_up()
        return self._reader.read(namespace, keys, memory)

    def write(self, namespace: bytes, pages: Sequence[Page]) -> list[bool]:
        """Write pages, parents before their children.

        Blocks until the pages would survive the end of this process, ``options.stall_s`` at most;
        they survive a power loss after the next sync (``options.sync_interval_s``, or ``flush``).
        One call is served at a time. Buffers whose addresses and lengths are multiples of 512 bytes
        (4,096 on some disks) are written from where they lie, others are copied.

        Returns:
            For each page whether it is resident now, written or there before.

        Raises:
            ValueError: a key, namespace or buffer cannot be used (a key of zeros means that there
                is no page), or a page is larger than a quarter of the staging memory.
        """
        check_namespace(namespace)
        keys = [page.key for page in pages]
        parents = [page.parent for page in pages if page.parent is not None]
        check_keys(keys)
        check_keys(parents)
        if NO_KEY in keys or NO_KEY in parents:
            raise ValueError("a key of zeros means that there is no page; give the page another")
        sources: list[list[Bytes]] = []
        offers: dict[bytes, Offer] = {}
        for number, (key, parent, buffers) in enumerate(pages):
            pieces = [flat(piece) for piece in buffers]
            sources.append(pieces)
            size = len(pieces[0]) if len(pieces) == 1 else sum([len(piece) for piece in pieces])
            slot_bytes = slot_bytes_of(size)
            if slot_bytes > self._options.staging_bytes // 4:
                raise ValueError(
                    f"a page of {size} bytes needs staging_bytes={4 * slot_bytes}; "
                    f"it is {self._options.staging_bytes}"
                )
            if key not in offers:
                offers[key] = Offer(number, key, parent, size, slot_bytes)
        if self._writer is None or self._closed or not pages:
            return [False] * len(pages)
        resident = self._writer.write(namespace, list(offers.values()), sources)
        return [offers[page.key].number in resident for page in pages]

    def touch(self, key: bytes) -> None:
        """A page was used elsewhere: it and its ancestors are evicted later. Does not block."""
        check_keys([key])
        if not self._closed:
            self._catalog.touch(key)

    def drop(self, key: bytes) -> None:
        """Forget a page and its descendants, as if it had not matched when it was read."""
        check_keys([key])
        if self._keeper is not None and not self._closed:
            self._catalog.drop(key, "asked")

    def flush(self) -> None:
        """Make all that was accepted durable; blocks for as long as the disk takes.

        Raises:
            StoreError: the disk failed, now, or since the last time and nothing has made up for
                it: what could not be synced is durable once a checkpoint is.
        """
        if self._keeper is None or self._closed:
            return
        try:
            self._keeper.sync()
        except OSError as error:
            raise StoreError(f"pages could not be made durable: {error}") from error

    def clear(self) -> None:
        """Drop all pages and give their room back; nothing but the store's own files goes.

        Blocks for ``options.stall_s`` at most.

        Raises:
            StoreError: the disk failed; what could not be removed is empty all the same. Or it
                hangs; the store is cleared when it comes back.
        """
        keeper = self._keeper
        if keeper is None or self._closed:
            return
        deadline = time.monotonic() + self._options.stall_s
        self._reader.ahead.forget()
        failures: list[OSError] = []

        def clear() -> None:
            try:
                keeper.clear()
            except OSError as error:
                failures.append(error)
            finally:
                keeper.turn.release()  # not before: a page that is written now would go as well

        if not keeper.turn.acquire(timeout=self._options.stall_s):
            raise StoreError("the page store was not cleared: the disk hangs")
        try:
            came_back = self._engine.call(clear, "write", deadline)
        except EngineClosedError:  # by another thread, since this call began
            keeper.turn.release()
            return
        if not came_back:
            self._writing.failed(None)
            raise StoreError("the page store is not cleared yet: the disk hangs")
        if failures:
            raise StoreError(f"segments could not be removed: {failures[0]}") from failures[0]

    def stats(self) -> StoreStats:
        """Counters and gauges."""
        catalog, keeper, reader = self._catalog, self._keeper, self._reader
        written = self._writer.counts if self._writer else Counter()
        parts = self._healths()
        with catalog.lock:
            return StoreStats(
                pages=len(catalog.index),
                payload_bytes=catalog.index.payload_total_bytes,
                used_bytes=catalog.segments.used_bytes(),
                capacity_bytes=self._options.capacity_bytes,
                segments=len(catalog.segments.by_number),
                direct=self._is_direct(),
                writer=keeper is not None,
                hits=reader.counts["hits"],
                misses=reader.counts["misses"],
                read_bytes=reader.counts["read_bytes"],
                written_pages=written["pages"],
                written_bytes=written["bytes"],
                uncopied_pages=written["uncopied"],
                duplicates=catalog.duplicates,
                evicted=catalog.evicted,
                refused={why: n for why, n in catalog.refused.items() if n},
                dropped={why: n for why, n in catalog.dropped.items() if n},
                errors=dict(sum((part.counted() for part in parts), Counter())),
                read_ahead_pages=reader.ahead.pages,
                read_ahead_used=reader.ahead.used_pages,
                operations=self._engine.operations,
                syncs=keeper.syncs if keeper else 0,
                checkpoints=keeper.checkpoints if keeper else 0,
                written_today_bytes=self._hours.total_bytes(),
                healthy=all(part.is_good for part in parts),
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

        Blocks for ``options.stall_s`` at most for what is under way, and as long again for the
        checkpoint. A failing disk is logged: what is durable by then is there at the next start.
        With a disk that hangs the folder stays locked until it comes back, at most until the
        process ends.
        """
        if self._closed:
            return
        self._closed = True
        self._reader.ahead.forget()
        idle = self._engine.close(time.monotonic() + self._options.stall_s)
        self._staging.close()
        if self._keeper is not None:
            forever = time.monotonic() + threading.TIMEOUT_MAX / 2
            self._keeper.close(lambda: self._engine.close(forever))
        if self._follower is not None:
            self._follower.close(idle=idle)

    def _leave(self) -> None:
        """In a process that was forked: its threads do not exist, and its files are the parent's.

        No lock is taken: a thread of the parent may have held it.
        """
        was_open, self._closed = not self._closed, True
        self._catalog.lock = threading.Lock()  # for `stats`
        for part in self._healths():
            part.left()
        if self._keeper is not None:
            self._keeper.leave(was_open=was_open)
        if self._follower is not None and was_open:
            self._follower.leave()

    def _healths(self) -> list[Health]:
        parts = [part.health for part in (self._follower, self._keeper) if part is not None]
        return [self._reader.health, self._writing, *parts]

    def _catch_up(self) -> None:
        if self._follower is not None:
            self._follower.catch_up()

    def _is_direct(self) -> bool:
        if self._keeper is not None:
            return self._keeper.files.direct
        return self._follower is not None and self._follower.direct


_open_stores: "weakref.WeakSet[PageStore]" = weakref.WeakSet()


def _leave_all() -> None:
    for store in list(_open_stores):
        store._leave()  # noqa: SLF001 - of this module


os.register_at_fork(after_in_child=_leave_all)
