"""Files of segments: opened, made, checked and removed."""

import contextlib
import errno
import logging
import os
from collections.abc import Iterable

from sglang_ext.cache.store.disk import read_fully, write_fully
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import BLOCK_BYTES, SegmentHeader
from sglang_ext.cache.store.mending import is_ours, mended
from sglang_ext.cache.store.segments import Segment, Space
from sglang_ext.cache.store.staging import aligned_block

__all__ = ["FOREIGN", "UNFINISHED", "UNKNOWN", "SegmentFiles"]

logger = logging.getLogger(__name__)

# What is wrong with a segment that is whole, and not ours to remove.
FOREIGN = "it belongs to another store"
UNKNOWN = "it is no segment of a page store"
# A longer file of which less than half is on the disk was not made by a store, nor copied from one:
# the memory that a segment takes grows with its length.
_LONG_BYTES = 64 << 30
# What a process that ended while it made a segment leaves: nothing, or zeros.
UNFINISHED = "it was being made"


class SegmentFiles:
    """Opens and makes segment files.

    Args:
        folder: where.
        direct: ask for O_DIRECT.
        read_only: open for reading alone.

    ``direct`` tells after the first file whether O_DIRECT is in use, ``mended`` which segments have
    a damaged header and are usable all the same; where it may, the header is written again.
    """

    def __init__(self, folder: StoreFolder, *, direct: bool, read_only: bool) -> None:
        self.direct = direct
        self.mended: list[int] = []
        self._folder = folder
        self._access = os.O_RDONLY if read_only else os.O_RDWR

    def open_all(self) -> tuple[list[tuple[Segment, int]], list[tuple[int, str]]]:
        """Open every segment that is ours.

        Returns:
            Empty segments with the lengths of their files; and numbers of files that are not
            usable, each with what is wrong.

        Raises:
            OSError: one cannot be read; none is left open.
        """
        good: list[tuple[Segment, int]] = []
        bad: list[tuple[int, str]] = []
        try:
            for number in self._folder.segment_numbers():
                with contextlib.suppress(FileNotFoundError):  # a writer has removed it just now
                    found = self.open(number)
                    if isinstance(found, str):
                        bad.append((number, found))
                    else:
                        good.append(found)
        except BaseException:
            self.close_all(segment for segment, _ in good)
            raise
        return good, bad

    def open(self, number: int) -> tuple[Segment, int] | str:
        """An empty segment and the length of its file, or what is wrong with it.

        Raises:
            OSError: it cannot be read, which says nothing about what is in it.
        """
        file = self._open(number, self._access)
        block = aligned_block()
        try:
            status = self._folder.disk.stat(file)
            read_fully(self._folder.disk, file, block, 0)
        except OSError as error:
            self._folder.disk.close(file)
            error.filename = str(self._folder.segment_path(number))
            raise
        size, there = status.st_size, status.st_blocks * 512
        header = SegmentHeader.unpack(block)
        wrong = self._wrong(header, number, size)
        if header is None:
            header, wrong = self._mend(file, block, number, size)
        if header and not wrong and size > _LONG_BYTES and there < size // 2:
            wrong = f"it was made {size} bytes long, and {there} of them are there"
        if header is None or wrong:
            self._folder.disk.close(file)
            return wrong
        slots = (size - BLOCK_BYTES) // header.slot_bytes
        return Segment(number, header.slot_bytes, slots, file), size

    def create(self, number: int, slot_bytes: int, slots: int, space: Space) -> Segment | None:
        """Make a segment durably; None where its file has too many extents for its charge.

        Raises:
            OSError: the disk has no room for it; nothing of it is left.
        """
        disk, path = self._folder.disk, self._folder.segment_path(number)
        self._folder.remove(path)  # one that was found damaged, or was being made at a crash
        size = BLOCK_BYTES + slots * slot_bytes
        file = self._open(number, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        kept = False
        try:
            disk.allocate(file, size)
            block = aligned_block()
            header = SegmentHeader(self._folder.store_id, number, slot_bytes).pack()
            block[: len(header)] = header
            write_fully(disk, file, block, 0)
            disk.sync(file)
            disk.sync_folder(self._folder.segments)
            allocated = disk.stat(file).st_blocks * 512
            kept = not space.is_fragmented(slots, size, allocated)
        finally:
            if not kept:
                disk.close(file)
                self._folder.remove(path)
        if not kept:
            logger.warning("page store: %s would have too many extents; it is not used", path)
            return None
        return Segment(number, slot_bytes, slots, file)

    def remove(self, number: int) -> None:
        """Remove a segment's file, so that its room is free at once."""
        self._folder.remove(self._folder.segment_path(number))

    def shorten(self, segment: Segment) -> None:
        """Cut the end of a segment's file off that no slot is in any more."""
        self._folder.disk.truncate(segment.file, segment.offset_of(segment.slots))

    def free_bytes(self) -> int:
        """What the disk has left."""
        return self._folder.disk.free_bytes(self._folder.segments)

    def sync_names(self) -> None:
        """Make it durable which segments there are."""
        self._folder.disk.sync_folder(self._folder.segments)

    def close(self, segment: Segment) -> None:
        """Close a segment's descriptor."""
        with contextlib.suppress(OSError):  # a failed write is told of by sync, not by close
            self._folder.disk.close(segment.file)

    def close_all(self, segments: Iterable[Segment]) -> None:
        """Close the descriptors of several segments."""
        for segment in segments:
            self.close(segment)

    def _mend(
        self, file: int, block: memoryview, number: int, size: int
    ) -> tuple[SegmentHeader | None, str]:
        """What a damaged header was, and what is wrong all the same."""
        disk, page = self._folder.disk, aligned_block()
        try:
            read_fully(disk, file, page, BLOCK_BYTES)
            header = mended(block, page, self._folder.store_id, number, size)
            if header is None:
                if not any(block) and not any(page):
                    return None, UNFINISHED
                wrong = self._wrong(None, number, size)
                return None, wrong if is_ours(block, page) else UNKNOWN
            self.mended.append(number)
            if self._access != os.O_RDONLY:
                block[:] = bytes(BLOCK_BYTES)
                block[: len(header.pack())] = header.pack()
                write_fully(disk, file, block, 0)
                path = self._folder.segment_path(number)
                logger.warning("page store: the header of %s was damaged; mended", path)
        except OSError as error:
            disk.close(file)
            error.filename = str(self._folder.segment_path(number))
            raise
        return header, self._wrong(header, number, size)

    def _wrong(self, header: SegmentHeader | None, number: int, size: int) -> str:
        if header is None:
            return "its header is damaged"
        if header.store != self._folder.store_id:
            return FOREIGN
        if header.segment != number:
            return f"it is segment {header.segment} under another name"
        if header.slot_bytes < BLOCK_BYTES or header.slot_bytes % BLOCK_BYTES:
            return f"its slots have {header.slot_bytes} bytes"
        if size < BLOCK_BYTES + header.slot_bytes:
            return f"it was cut to {size} bytes"
        return ""

    def _open(self, number: int, flags: int) -> int:
        path = self._folder.segment_path(number)
        if self.direct:
            try:
                return self._folder.open(path, flags | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            # The file exists now if it was to be made: some file systems refuse afterwards.
            if flags & os.O_EXCL:
                self._folder.remove(path)
            file = self._folder.open(path, flags)  # tells what is no regular file
            self.direct = False
            logger.warning(
                "page store: %s is on a file system without O_DIRECT; pages go through the "
                "page cache, which costs a copy and memory",
                self._folder.segments,
            )
            return file
        return self._folder.open(path, flags)
