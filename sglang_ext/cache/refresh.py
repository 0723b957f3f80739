"""Hits in device and host memory, told to the disk tier by a thread of its own.

What is hot in memory is not read from disk, so to the disk tier it looks cold; evicted there, it
is lost at the next restart. SGLang's scheduler notes the last page of each prefix that it finds,
which costs it an entry in a dictionary; a thread refreshes that page and all before it.

Pure: neither torch nor SGLang is imported.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

__all__ = ["Refresher"]

logger = logging.getLogger(__name__)

# How long hits are collected: within it, a prefix that is hit again costs nothing more.
_INTERVAL_S = 0.2
# How often at most the pages of one prefix are asked for.
_ASK_AGAIN_S = 30.0
# Hits that wait, and prefixes of which not all is on disk. Cost: some 200 bytes each.
_MOST = 65_536

Value = TypeVar("Value")


class Refresher:
    """Takes hits from the scheduler and refreshes them elsewhere.

    A prefix may be longer in memory than on disk. Then its last page is not there to be
    refreshed, and its pages are asked for at a later hit; the deepest one that is there is
    remembered and refreshed from then on.
    """

    def __init__(
        self,
        touch: Callable[[str], bool],
        interval_s: float = _INTERVAL_S,
        also: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            touch: refreshes a page, by SGLang's hash, and all before it; False: it is not there.
            interval_s: how long hits are collected. Default 0.2 s.
            also: done once whenever the thread has woken, after the hits.
        """
        self._also = also
        self._touch = touch
        self._interval_s = interval_s
        self._hits: dict[str, Sequence[str] | None] = {}
        self._wanted: set[str] = set()  # prefixes whose pages are to be asked for
        self._asked_at: OrderedDict[str, float] = OrderedDict()
        self._deepest: OrderedDict[str, str] = OrderedDict()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self.refreshed = 0
        self.absent = 0
        self.failed = 0
        self._thread = threading.Thread(target=self._run, name="sglang-ext-refresh", daemon=True)
        self._thread.start()

    def hit(self, last_page: str, pages: Callable[[], Sequence[str]]) -> None:
        """A prefix was found in memory. Returns at once; called by the scheduler's thread.

        Args:
            last_page: hash of its last page.
            pages: gives the hashes of the pages before it, from the root on; called here and now,
                and only if the last page is known not to be on disk.
        """
        if last_page in self._hits or len(self._hits) >= _MOST:
            return
        chain = None
        if last_page in self._wanted:
            self._wanted.discard(last_page)
            chain = pages()
        self._hits[last_page] = chain
        if not self._wake.is_set():
            self._wake.set()

    def wake(self) -> None:
        """There is something to do beside hits. Returns at once."""
        self._wake.set()

    def close(self) -> None:
        """End the thread; what waits is dropped. Idempotent."""
        self._closed.set()
        self._wake.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._closed.is_set():
            self._wake.wait()
            self._wake.clear()
            while self._hits and not self._closed.is_set():
                self._take()
            self._do_also()
            self._closed.wait(self._interval_s)  # later hits of the same prefixes collect

    def _do_also(self) -> None:
        try:
            self._also()
        except Exception:  # whatever it is, as for a hit
            self.failed += 1
            logger.debug("What goes along with hits failed", exc_info=True)

    def _take(self) -> None:
        last_page, chain = self._hits.popitem()  # nobody else takes, so there is one
        try:
            self._refresh(last_page, chain)
        except Exception:
            # Whatever it is: a hit that is not refreshed must not end the thread.
            self.failed += 1
            logger.debug("A hit was not refreshed", exc_info=True)

    def _refresh(self, last_page: str, chain: Sequence[str] | None) -> None:
        if self._touch(last_page):
            self._deepest.pop(last_page, None)
            self.refreshed += 1
            return
        known = self._deepest.pop(last_page, None)
        candidates = reversed(chain) if chain is not None else [known] if known else []
        for page in candidates:
            if self._touch(page):
                _put(self._deepest, last_page, page)
                self.refreshed += 1
                return
        self.absent += 1
        self._want(last_page)

    def _want(self, last_page: str) -> None:
        """Ask for the prefix's pages at its next hit, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._asked_at.get(last_page, -_ASK_AGAIN_S) < _ASK_AGAIN_S:
            return
        if len(self._wanted) < _MOST:
            _put(self._asked_at, last_page, now)
            self._wanted.add(last_page)


def _put(table: OrderedDict[str, Value], key: str, value: Value) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > _MOST:
        table.popitem(last=False)
