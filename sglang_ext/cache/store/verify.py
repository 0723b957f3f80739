"""Reads every page of a store and tells what does not match; changes nothing."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from sglang_ext.cache.store.disk import Disk, RealDisk, read_fully
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.format import PageHeader
from sglang_ext.cache.store.index import Index
from sglang_ext.cache.store.segment_files import UNFINISHED
from sglang_ext.cache.store.segments import Segment, Segments, locate
from sglang_ext.cache.store.staging import aligned_block
from sglang_ext.cache.store.survey import survey
from sglang_ext.cache.store.transfer import mismatch
from sglang_ext.errors import StoreError

__all__ = ["Finding", "verify_store"]

_KEY = "key does not match"


@dataclass(frozen=True)
class Finding:
    """Something that does not match.

    Attributes:
        file: name below the store's folder.
        key: of the page, in hexadecimal; empty where the finding is about a file.
        what: what does not match.
        explained: a writer that was killed explains it; it tells nothing of the disk.
    """

    file: str
    key: str
    what: str
    explained: bool = False

    def to_json(self) -> dict[str, object]:
        """The same as plain values for ``json.dumps``."""
        return asdict(self)


def verify_store(
    folder: Path, on_page: Callable[[int, int], None] | None = None, *, disk: Disk | None = None
) -> Iterator[Finding]:
    """Check superblock, checkpoint, journal, segments and every page.

    Shares the writer's lock, so no server may run on the folder, which may be mounted for reading
    alone. Nothing is written.

    Args:
        folder: of the store.
        on_page: called after each page with the number of pages done and of all.
        disk: who reads; the operating system by default.

    Raises:
        StoreError: there is no store, it is in use, or it must not be used.
        OSError: the disk fails outside of a page.
    """
    disk = disk or RealDisk()
    try:
        store = StoreFolder(folder, disk, writer=False)
    except FileNotFoundError as error:
        raise StoreError(f"{folder} holds no page store") from error
    if not store.load():
        store.check_empty()
        raise StoreError(f"{folder} holds no page store")
    store.claim(shared=True)
    try:
        yield from _verify(store, disk, on_page or (lambda done, pages: None))
    finally:
        store.release()


def _verify(
    store: StoreFolder, disk: Disk, on_page: Callable[[int, int], None]
) -> Iterator[Finding]:
    with survey(store, direct=True, threads=16) as found:
        gone = found.recovered.gone
        for number, why in found.unusable:
            pages = gone.pop(number, 0)
            explained = why == UNFINISHED and not pages and found.recovered.how != "clean"
            yield _lost(store, number, why, pages, explained=explained)
        for number, pages in gone.items():
            why = "it was cut" if number in found.segments.by_number else "it is gone"
            yield _lost(store, number, why, pages)
        for name, what in found.recovered.damage:
            yield Finding(name, "", what)
        # The checkpoint of a store that was closed knows all that was overwritten.
        was_killed = found.recovered.how == "journal"
        index, segments = found.recovered.index, found.segments
        yield from _pages(store, disk, index, segments, on_page, was_killed=was_killed)


def _lost(
    store: StoreFolder, number: int, why: str, pages: int, *, explained: bool = False
) -> Finding:
    if pages:
        why += f", and {pages} pages with it"
    if explained:
        why += " while the writer was killed, no damage"
    return Finding(_name(store, number), "", why, explained)


def _pages(
    store: StoreFolder,
    disk: Disk,
    index: Index,
    segments: Segments,
    on_page: Callable[[int, int], None],
    *,
    was_killed: bool,
) -> Iterator[Finding]:
    # In the order of the disk, one after another: as fast as one reader is.
    rows = sorted(index.rows.values(), key=lambda row: index.location[row])
    block = aligned_block(max([segment.slot_bytes for segment in segments], default=4096))
    for number, row in enumerate(rows):
        segment_number, slot = locate(index.location[row])
        segment = segments.by_number[segment_number]
        why = _page(disk, index, row, segment, slot, block)
        if why:
            name = _name(store, segment_number)
            whole = block[: segment.slot_bytes]
            explained = was_killed and why == _KEY and _is_unknown_page(whole, index)
            more = ": overwritten while the writer was killed, no damage" if explained else ""
            yield Finding(name, index.key_of(row).hex(), f"slot {slot}: {why}{more}", explained)
        on_page(number + 1, len(rows))


def _page(
    disk: Disk, index: Index, row: int, segment: Segment, slot: int, block: memoryview
) -> str:
    view = block[: segment.slot_bytes]
    try:
        got = read_fully(disk, segment.file, view, segment.offset_of(slot))
    except OSError as error:
        return f"cannot be read: {os.strerror(error.errno or 0)}"
    if got < segment.slot_bytes:
        return "cut"
    why, _ = mismatch(view, index.key_of(row), None, index.payload_bytes[row])
    return why and f"{why} does not match"


def _is_unknown_page(slot: memoryview, index: Index) -> bool:
    """Whether a slot holds a whole page that no other slot is known to hold."""
    header = PageHeader.unpack(slot)
    if header is None or header.key in index.rows:
        return False
    return not mismatch(slot, header.key, None, header.payload_bytes)[0]


def _name(store: StoreFolder, number: int) -> str:
    return str(store.segment_path(number).relative_to(store.path))
