"""The pages of ``bench store``: chains of keys, and the memory they are written from."""

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglang_ext.errors import ConfigError

__all__ = ["CALL_PAGES", "Batch", "Load", "PageMemory", "keys_of"]

# Pages of one call, as SGLang makes them (STORAGE_BATCH_SIZE of hicache_storage.py, 0.5.23).
CALL_PAGES = 128
# A chain is a conversation: SGLang's 64-token pages and the contexts of agents give some hundreds
# of pages. Where the data set is small there are still this many chains.
_CHAIN_PAGES = 320
_MIN_CHAINS = 4
_BLOCK_BYTES = 4096
_PATTERNS = 16


@dataclass(frozen=True)
class Batch:
    """Pages of one call.

    Attributes:
        first: number of the first page in the data set.
        keys: 32-byte keys.
        parent: key of the page before the first one; None at the head of a chain.
    """

    first: int
    keys: tuple[bytes, ...]
    parent: bytes | None


@dataclass(frozen=True)
class Load:
    """A data set of equal pages in chains, one after another.

    Args:
        page_bytes: bytes a page, a multiple of 4 KiB.
        data_bytes: bytes of the data set; what does not fill a page is left out.

    Raises:
        ConfigError: a page size that O_DIRECT cannot move, or fewer than four pages.
    """

    page_bytes: int
    data_bytes: int

    def __post_init__(self) -> None:
        if self.page_bytes < _BLOCK_BYTES or self.page_bytes % _BLOCK_BYTES:
            raise ConfigError(
                f"a page of {self.page_bytes} bytes cannot be moved with O_DIRECT; expected a "
                "multiple of 4 KiB"
            )
        if self.pages < _MIN_CHAINS:
            raise ConfigError(
                f"{self.data_bytes} bytes hold {self.pages} pages of {self.page_bytes} bytes; "
                f"expected at least {_MIN_CHAINS} pages: give more --bytes"
            )

    @property
    def pages(self) -> int:
        """Pages of the data set."""
        return self.data_bytes // self.page_bytes

    @property
    def payload_bytes(self) -> int:
        """Bytes of all pages."""
        return self.pages * self.page_bytes

    def chains(self) -> list[list[Batch]]:
        """All chains, each as the calls that SGLang would make for it."""
        length = min(_CHAIN_PAGES, self.pages // _MIN_CHAINS)
        starts = range(0, self.pages, length)
        return [list(self._calls(start, min(start + length, self.pages))) for start in starts]

    def _calls(self, start: int, stop: int) -> Iterator[Batch]:
        parent = None
        for first in range(start, stop, CALL_PAGES):
            numbers = range(first, min(first + CALL_PAGES, stop))
            keys = tuple(self._key(number) for number in numbers)
            yield Batch(first, keys, parent)
            parent = keys[-1]

    def _key(self, number: int) -> bytes:
        return hashlib.sha256(f"{self.page_bytes}/{number}".encode()).digest()


def keys_of(chain: Sequence[Batch]) -> list[bytes]:
    """All keys of a chain, in order."""
    return [key for batch in chain for key in batch.keys]


class PageMemory:
    """All pages of a data set in memory, as a host pool holds them; used by one thread.

    They are written from here, wiped, read back to the same place and compared. Nothing is
    prepared or compared between two calls, because an engine with threads of its own would go on
    meanwhile and have that time for free.

    Every 4 KiB block carries a number of its own, so that no layer below can store a block once
    that was written twice.

    Memory: the data set and sixteen pages; touched at once so that no pass pays for page faults.

    Raises:
        ConfigError: the machine has not the memory for it.
    """

    def __init__(self, load: Load) -> None:
        needed = load.payload_bytes + _PATTERNS * load.page_bytes
        free = _available_bytes()
        if needed * 4 // 3 > free:
            raise ConfigError(
                f"pages of {needed / 1e9:.1f} GB do not fit into memory beside everything else "
                f"({free / 1e9:.1f} GB available); give fewer --bytes"
            )
        self._blocks = load.page_bytes // _BLOCK_BYTES
        # Begins at a page of the machine, as O_DIRECT asks for. Private and in huge pages, as the
        # host pools of a server with a disk tier: Python's default is shared memory.
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        memory = mmap.mmap(-1, load.payload_bytes, flags=private)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._pages = np.frombuffer(memory, np.uint8).reshape(load.pages, load.page_bytes)
        pattern = np.random.default_rng(0).bytes(_PATTERNS * load.page_bytes)
        self._patterns = np.frombuffer(bytearray(pattern), np.uint8).reshape(_PATTERNS, -1)

    def fill(self) -> None:
        """Make every page what it shall be."""
        for number, page in enumerate(self._pages):
            page[:] = self._expected(number)

    def wipe(self) -> None:
        """Make every block of every page differ from what it shall be."""
        _stamps(self._pages)[:] = 0

    def wrong(self) -> int:
        """How many pages are not what they shall be."""
        return sum(
            not np.array_equal(page, self._expected(number))
            for number, page in enumerate(self._pages)
        )

    def views(self, batch: Batch) -> list[memoryview]:
        """The pages of ``batch``."""
        return [memoryview(page) for page in self._pages[batch.first :][: len(batch.keys)]]

    def _expected(self, number: int) -> npt.NDArray[np.uint8]:
        page: npt.NDArray[np.uint8] = self._patterns[number % _PATTERNS]
        first = number * self._blocks + 1
        _stamps(page[None])[0] = np.arange(first, first + self._blocks, dtype=np.uint64)
        return page


def _stamps(pages: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each block: [pages, blocks]."""
    return pages.view(np.uint64)[:, :: _BLOCK_BYTES // 8]


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
