"""Where the pages of a disk tier lie, for tests that wait for them or damage them."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from sglang_ext.cache.folder import rank_folders
from sglang_ext.cache.store.disk import RealDisk
from sglang_ext.cache.store.folder import StoreFolder
from sglang_ext.cache.store.segments import locate
from sglang_ext.cache.upkeep import look, resident

BACKUP_S = 30
_HEADER_BYTES = 4096


@dataclass(frozen=True)
class StoredPage:
    """A page on disk: its slot in a segment's file."""

    file: Path
    offset: int
    slot_bytes: int
    depth: int

    def flip(self, at: int) -> None:
        """Flip a bit of the payload's byte ``at``."""
        self._change(_HEADER_BYTES + at, lambda old: bytes([old[0] ^ 1]), 1)

    def tear(self) -> None:
        """Lose the second half, as a disk that did not write all of it before the power went."""
        half = self.slot_bytes // 2
        self._change(half, lambda old: bytes(len(old)), self.slot_bytes - half)

    def _change(self, at, new, length):
        with self.file.open("r+b") as file:
            file.seek(self.offset + at)
            old = file.read(length)
            file.seek(self.offset + at)
            file.write(new(old))
            file.flush()
            os.fsync(file.fileno())


def stored(folder: Path) -> dict[bytes, StoredPage]:
    """The pages of all stores in the folder of a tier, by key; a server may be using it."""
    found = {}
    for rank in rank_folders(folder).values():
        if not (rank / "STORE").exists():
            continue  # about to be made
        store = StoreFolder(rank, RealDisk(), writer=False)
        store.load()
        pages = resident(store, in_use=look(rank).in_use_by is not None)
        for key, row in pages.index.rows.items():
            number, slot = locate(pages.index.location[row])
            segment = pages.segments.by_number[number]
            found[key] = StoredPage(
                store.segment_path(number),
                segment.offset_of(slot),
                segment.slot_bytes,
                pages.index.depth[row],
            )
    return found


def wait_for_pages(folder: Path, count: int) -> dict[bytes, StoredPage]:
    """Until so many pages are on disk, which are returned; bounded."""
    deadline = time.monotonic() + BACKUP_S
    while len(found := stored(folder)) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} pages on disk"
        time.sleep(0.1)
    return found
