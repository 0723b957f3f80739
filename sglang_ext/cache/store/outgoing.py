"""Writing runs of slots, straight from the caller's memory where that fits, and committing them.

O_DIRECT wants memory that is aligned. Pages whose memory is are hashed where they lie and written
from there, a header in front of each; others are copied into staging memory first.
"""

import errno
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import xxhash

from sglang_ext.cache.store.disk import Disk, write_fully, write_pieces
from sglang_ext.cache.store.engine import Batch
from sglang_ext.cache.store.format import BLOCK_BYTES, NO_KEY, PageHeader
from sglang_ext.cache.store.plan import Plan, Planned
from sglang_ext.cache.store.segments import locate
from sglang_ext.cache.store.staging import Bytes, Staging, address_of, aligned_block, copy_in

__all__ = ["Alignment", "WriteJob", "WriteRun"]

# What disks ask of memory, in the order in which it is tried: a sector, or a page of the machine.
_ALIGNMENTS_BYTES = (512, 4096)
# The kernel refuses memory that is not aligned with the one, memory that it cannot pin (a device's,
# say) with the other. Whatever else it means: staging memory will tell.
_NOT_THIS_MEMORY = (errno.EINVAL, errno.EFAULT)
# Pages are committed while others are still on their way once so many of them can be: it keeps the
# end of a call short. Cost: the catalog's lock, and a write to the journal, for each batch of them.
_COMMIT_PAGES = 16
_ZEROS = bytes(BLOCK_BYTES)
_ALIGNED_ZEROS = aligned_block()


class Alignment:
    """What O_DIRECT asks of memory on this disk, found out by trial.

    Attributes:
        size_bytes: addresses and lengths are multiples of that; 0: no memory but ours will do.
    """

    def __init__(self) -> None:
        self.size_bytes = _ALIGNMENTS_BYTES[0]

    def fits(self, pieces: Sequence[Bytes]) -> bool:
        """Whether a page in ``pieces`` can be written from where it lies."""
        size = self.size_bytes
        if not size:
            return False
        for piece in pieces:
            length = len(piece)
            if not length or length % size or address_of(piece) % size:
                return False
        return True

    def refused(self, tried_bytes: int) -> None:
        """Memory aligned to ``tried_bytes`` was refused, and staging memory was not."""
        larger = [size for size in _ALIGNMENTS_BYTES if size > tried_bytes]
        if self.size_bytes == tried_bytes:
            self.size_bytes = larger[0] if larger else 0


@dataclass
class WriteJob:
    """One call of ``write``: what is written for it, and what happens when all of it is.

    Attributes:
        namespace: of all pages.
        plan: pages and their slots.
        sources: the caller's memory, by number of the offer.
        batch: what the caller waits for: one operation, the commit.
        enter: called by a worker with pages that were written, each once and after its parent,
            while others are on their way.
        commit: called by the worker that ends last, with the pages that were written and that
            ``enter`` was not called with.
        failed: called with each failure.
        left: operations that have not ended.
        uncopied: pages written from the caller's memory so far.
    """

    namespace: bytes
    plan: Plan
    sources: list[list[Bytes]]
    batch: Batch
    enter: Callable[[Sequence[Planned]], None]
    commit: Callable[[Sequence[Planned]], None]
    failed: Callable[[OSError], None]
    left: int
    written_us: int = field(default_factory=lambda: max(0, time.time_ns() // 1000))
    uncopied: int = 0
    _written: set[int] = field(default_factory=set)
    _entered: int = 0
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _committing: threading.Lock = field(default_factory=threading.Lock)

    def ended(self, pages: Sequence[Planned], uncopied: int) -> None:
        """An operation ended, with ``pages`` written, ``uncopied`` of them without a copy."""
        with self._guard:
            self._written.update([page.location for page in pages])
            self.uncopied += uncopied
            self.left -= 1
            last = self.left == 0
        if last:
            with self._committing:
                try:
                    self.commit(self._rest())
                finally:
                    self.batch.done()
        elif self._committing.acquire(blocking=False):
            try:
                ready = self._ready()
                if ready:
                    self.enter(ready)
            finally:
                self._committing.release()

    def _ready(self) -> list[Planned]:
        """Written pages that come next in the plan, if they are enough to be worth it."""
        pages, begin = self.plan.accepted, self._entered
        with self._guard:
            end = begin
            while end < len(pages) and pages[end].location in self._written:
                end += 1
        if end - begin < _COMMIT_PAGES:
            return []
        self._entered = end
        return pages[begin:end]

    def _rest(self) -> list[Planned]:
        return [p for p in self.plan.accepted[self._entered :] if p.location in self._written]


class WriteRun:
    """Writes a run of adjacent slots."""

    def __init__(
        self,
        disk: Disk,
        staging: Staging,
        pages: list[Planned],
        job: WriteJob,
        alignment: Alignment,
    ) -> None:
        self._disk = disk
        self._staging = staging
        self._pages = pages
        self._job = job
        self._alignment = alignment
        self._uncopied = 0
        self._segment = pages[0].segment
        self._offset = self._segment.offset_of(locate(pages[0].location)[1])

    def run(self) -> None:
        """Hash and write, with a copy where it must be. Called by a worker."""
        written: Sequence[Planned] = ()
        try:
            if self._write():
                written = self._pages
        except OSError as error:
            self._job.failed(error)
        finally:
            self._job.ended(written, self._uncopied)

    def _write(self) -> bool:
        alignment, sources = self._alignment, self._job.sources
        tried = alignment.size_bytes
        refusal = None
        if all([alignment.fits(sources[page.offer.number]) for page in self._pages]):
            try:
                return self._write_straight()
            except OSError as error:
                if error.errno not in _NOT_THIS_MEMORY:
                    raise
                refusal = error.errno
        done = self._write_copied()
        if done and refusal == errno.EINVAL:
            alignment.refused(tried)
        return done

    def _write_straight(self) -> bool:
        """Write from the caller's memory; whether what was written is what was hashed."""
        batch, sources = self._job.batch, self._job.sources
        block = self._staging.take(len(self._pages) * BLOCK_BYTES)
        if block is None:
            return False
        with block:
            pieces: list[memoryview] = []
            if not batch.borrow():
                return False
            try:
                for number, page in enumerate(self._pages):
                    head = block.view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]
                    payload = [piece.data for piece in sources[page.offer.number]]
                    self._head(head, page, _digest(payload))
                    pieces.append(head)
                    pieces += payload
                    rest = page.offer.slot_bytes - BLOCK_BYTES - page.offer.payload_bytes
                    if rest:
                        pieces.append(_ALIGNED_ZEROS[:rest])
            finally:
                batch.give_back()
            # Nobody waits for a disk that hangs, so the memory is not borrowed meanwhile. A caller
            # that has given up by now may have changed it under way; one that gives up later is
            # too late to have.
            write_pieces(self._disk, self._segment.file, pieces, self._offset)
            if batch.abandoned:
                return False
        self._uncopied = len(self._pages)
        return True

    def _write_copied(self) -> bool:
        slot_bytes, batch = self._segment.slot_bytes, self._job.batch
        size = len(self._pages) * slot_bytes
        block = self._staging.take(size)
        if block is None:
            return False
        with block:
            # A page whose caller gave up is not written: its bytes may be others by now.
            if not batch.borrow():
                return False
            try:
                for number, page in enumerate(self._pages):
                    start, end = number * slot_bytes, (number + 1) * slot_bytes
                    begin = start + BLOCK_BYTES
                    copy_in(block.array[begin:end], self._job.sources[page.offer.number])
                    payload = block.view[begin : begin + page.offer.payload_bytes]
                    self._head(block.view[start:begin], page, _digest([payload]))
            finally:
                batch.give_back()
            write_fully(self._disk, self._segment.file, block.view[:size], self._offset)
        return True

    def _head(self, block: memoryview, page: Planned, payload_check: bytes) -> None:
        offer = page.offer
        header = PageHeader(
            page.depth,
            self._job.namespace,
            offer.key,
            offer.parent or NO_KEY,
            offer.payload_bytes,
            self._job.written_us,
            payload_check,
        ).pack()
        block[: len(header)] = header
        block[len(header) :] = _ZEROS[len(header) :]


def _digest(pieces: Sequence[memoryview]) -> bytes:
    """xxh3-128 of a payload."""
    if len(pieces) == 1:
        return xxhash.xxh3_128_digest(pieces[0])
    state = xxhash.xxh3_128()
    for piece in pieces:
        state.update(piece)
    return state.digest()
