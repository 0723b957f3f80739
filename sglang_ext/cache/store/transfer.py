"""Operations of the engine: runs of adjacent slots, and reading them, verified on the way.

Each operation is one ``preadv`` of a run of slots, or one ``pwritev`` (`outgoing`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar

import xxhash

from sglang_ext.cache.store.disk import Disk, read_fully
from sglang_ext.cache.store.engine import Batch
from sglang_ext.cache.store.format import BLOCK_BYTES, PageHeader
from sglang_ext.cache.store.plan import Found, Planned
from sglang_ext.cache.store.segments import locate
from sglang_ext.cache.store.staging import Block, Bytes, Staging, copy_out

__all__ = [
    "DirectRun",
    "ReadRun",
    "Reading",
    "mismatch",
    "operation_bytes",
    "runs",
]


# Below this an operation costs more than it moves.
_LEAST_OPERATION_BYTES = 512 * 1024
InSlot = TypeVar("InSlot", Found, Planned)


def operation_bytes(pages: Sequence[InSlot], in_flight: int, most_bytes: int) -> int:
    """Size of operations that keeps all workers busy: an even share, within bounds."""
    total = len(pages) * pages[0].segment.slot_bytes if pages else 0
    return min(most_bytes, max(total // in_flight, _LEAST_OPERATION_BYTES))


def runs(pages: Sequence[InSlot], most_bytes: int) -> list[list[InSlot]]:
    """Pages in adjacent slots, in runs of up to ``most_bytes`` and at least one page."""
    result: list[list[InSlot]] = []
    size = 0
    last = None
    for page in sorted(pages, key=attrgetter("location")):
        slot_bytes = page.segment.slot_bytes
        size += slot_bytes
        if page.location == last and size <= most_bytes:
            result[-1].append(page)
        else:
            result.append([page])
            size = slot_bytes
        last = page.location + 1
    return result


def mismatch(
    slot: memoryview, key: bytes, namespace: bytes | None, payload_bytes: int
) -> tuple[str, bytes]:
    """Why the bytes of a slot are not the page that was asked for; empty: they are.

    Args:
        slot: header and payload.
        key: of the page.
        namespace: of the page; None: any.
        payload_bytes: its length.

    Returns:
        The part that does not match, and the namespace that the page has.
    """
    header = PageHeader.unpack(slot)
    if header is None:
        return "header", b""
    if header.key != key:
        return "key", header.namespace
    if namespace is not None and header.namespace != namespace:
        return "namespace", header.namespace
    if header.payload_bytes != payload_bytes:
        return "length", header.namespace
    payload = slot[BLOCK_BYTES : BLOCK_BYTES + payload_bytes]
    if xxhash.xxh3_128_digest(payload) != header.payload_check:
        return "payload", header.namespace
    return "", header.namespace


class ReadRun:
    """Reads a run of slots into staging memory; what happens then is a subclass's.

    Args:
        disk, staging: where from, where to.
        pages: adjacent, in order.
        finished: called once, by the worker, with the pages, those to drop and why, the bytes
            read, and what failed.
    """

    def __init__(
        self,
        disk: Disk,
        staging: Staging,
        pages: list[Found],
        finished: "Finished",
    ) -> None:
        self.pages = pages
        self.slot_bytes = pages[0].segment.slot_bytes
        self.size_bytes = len(pages) * self.slot_bytes
        self._disk = disk
        self._staging = staging
        self._finished = finished

    def run(self) -> None:
        """Read, and deliver. Called by a worker."""
        drops: list[tuple[Found, str]] = []
        failure: OSError | None = None
        got = 0
        try:
            block = None if self.is_cancelled() else self._staging.take(self.size_bytes)
            if block is not None:
                got = self._read(block)
                self.deliver(block, got, drops)
        except OSError as error:
            failure = error
        finally:
            try:
                self._finished(self.pages, drops, got, failure)
            finally:
                self.ended()

    def is_cancelled(self) -> bool:
        """Whether nobody waits any more."""
        return False

    def deliver(self, block: Block, got: int, drops: list[tuple[Found, str]]) -> None:
        """Take the block over; note pages that do not match."""
        raise NotImplementedError

    def ended(self) -> None:
        """Called last, whatever happened."""

    def _read(self, block: Block) -> int:
        segment = self.pages[0].segment
        offset = segment.offset_of(locate(self.pages[0].location)[1])
        try:
            return read_fully(self._disk, segment.file, block.view[: self.size_bytes], offset)
        except BaseException:
            block.free()
            raise


Finished = Callable[[Sequence[Found], Sequence[tuple[Found, str]], int, OSError | None], None]


@dataclass
class Reading:
    """One call of ``read``: whose memory, and what arrived."""

    namespace: bytes
    targets: list[list[Bytes]]
    results: list[bool]


class DirectRun(ReadRun):
    """Reads a run of slots for a caller that waits for it."""

    def __init__(
        self,
        disk: Disk,
        staging: Staging,
        pages: list[Found],
        finished: Finished,
        reading: Reading,
        batch: Batch,
    ) -> None:
        super().__init__(disk, staging, pages, finished)
        self._reading = reading
        self._batch = batch

    def is_cancelled(self) -> bool:  # noqa: D102 - see `ReadRun`
        return self._batch.abandoned

    def deliver(self, block: Block, got: int, drops: list[tuple[Found, str]]) -> None:  # noqa: D102
        if not self._batch.borrow():
            block.free()
            return
        try:
            with block:
                # Page by page, so that the copy finds in the processor's cache what was checked.
                for number, page in enumerate(self.pages):
                    why = self._deliver(block, number * self.slot_bytes, got, page)
                    if why:
                        drops.append((page, why))
        finally:
            self._batch.give_back()

    def _deliver(self, block: Block, start: int, got: int, page: Found) -> str:
        """Check one page and copy it; what does not match, if anything."""
        end = start + self.slot_bytes
        if end > got:
            return "cut"
        namespace = self._reading.namespace
        why, _ = mismatch(block.view[start:end], page.key, namespace, page.payload_bytes)
        if not why:
            start += BLOCK_BYTES
            payload = block.array[start : start + page.payload_bytes]
            copy_out(self._reading.targets[page.number], payload)
            self._reading.results[page.number] = True
        return why

    def ended(self) -> None:  # noqa: D102
        self._batch.done()
