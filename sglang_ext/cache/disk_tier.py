"""The third tier as SGLang thinks of it: pages by their hashes, in pools, in a page store.

Pools beside the keys and values (an indexer, a draft model, a sliding window, the state of a
recurrent layer) have pages of their own under the same hashes. What a prefix cannot be used
without stands in one chain with it, so that the store, which never keeps a page without the pages
before it, keeps what can be used:

- a pool of which every page is needed: behind the page of keys and values, before the next one;
- a pool of which the last pages are needed: beside the chain, on the page of keys and values.

Pure: neither torch nor SGLang is imported.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from sglang_ext.cache.host_pages import Buffers, HostPages
from sglang_ext.cache.namespace import KeySpace
from sglang_ext.cache.store import Page, PageStore

__all__ = ["KV", "DiskTier", "TierPool"]

# SGLang's name of the pool of keys and values.
KV = "kv"


class TierPool:
    """One pool: how its pages are called in the store, and where they lie in host memory."""

    def __init__(self, name: str, keys: KeySpace, pages: HostPages) -> None:
        """A pool under SGLang's ``name``."""
        self.name = name
        self.keys = keys
        self.pages = pages


class DiskTier:
    """Reads and writes pages; of each kind of call SGLang has one thread.

    Every method may be called while another one runs, except that `offer` and `write` belong to
    the thread that writes.
    """

    def __init__(self, store: PageStore, namespace: bytes) -> None:
        """A tier over ``store``, which stays the caller's to close."""
        self.namespace = namespace
        self._store = store
        self._pools: dict[str, TierPool] = {}
        # Pools of which a prefix needs every page, in the order in which they stand in a chain.
        self._linked: tuple[str, ...] = ()
        self._held: dict[tuple[str, str], Buffers] | None = None
        self._lock = threading.Lock()

    def add_pool(self, pool: TierPool) -> None:
        """Make a pool known, or replace it."""
        self._pools[pool.name] = pool

    def link(self, name: str) -> None:
        """A prefix needs every page of this pool; said before the first page is written."""
        with self._lock:
            if name not in self._linked and name in self._pools and name != KV:
                self._linked = tuple(sorted((*self._linked, name)))

    def prefix(self, hashes: Sequence[str]) -> int:
        """How many leading pages of keys and values are there; starts to read them."""
        return self._store.prefix(self._pools[KV].keys.keys(hashes), read_ahead=True)

    def resident(self, name: str, hashes: Sequence[str]) -> list[bool]:
        """Which pages of a pool are there; none of a pool that is not known."""
        pool = self._pools.get(name)
        if pool is None:
            return [False] * len(hashes)
        return self._store.resident(pool.keys.keys(hashes))

    def read(self, name: str, hashes: Sequence[str], indices: Any) -> list[bool]:
        """Pages into host memory; False for one that is not there, or not as it was written."""
        pool = self._pools[name]
        targets, take = pool.pages.incoming(indices, len(hashes))
        done = self._store.read(self.namespace, pool.keys.keys(hashes), targets)
        for page, filled in enumerate(done):
            if filled:
                take(page)
        return done

    def write(self, before: str | None, hashes: Sequence[str], indices: Any) -> list[bool]:
        """Pages of keys and values, each behind the one before it, with what is held for them.

        Args:
            before: hash of the page in front of the first; None at a root.
            hashes: of a chain of pages.
            indices: where they lie.

        Returns:
            For each page whether it is there now.
        """
        payloads = self._pools[KV].pages.outgoing(indices, len(hashes))
        previous = None if before is None else self._tail(before)
        pages: list[Page] = []
        places: list[int] = []
        for page_hash, payload in zip(hashes, payloads, strict=True):
            places.append(len(pages))
            pages.append(Page(self._key(KV, page_hash), previous, payload))
            pages.extend(self._release(page_hash))
            previous = self._tail(page_hash)
        done = self._store.write(self.namespace, pages)
        return [done[place] for place in places]

    def offer(self, name: str, hashes: Sequence[str], indices: Any) -> list[bool]:
        """Pages of another pool. They are written now where their pages of keys and values are.

        SGLang writes them before those, so others are held until `write` brings theirs, or until
        the operation ends (`operation`). Without an operation they are refused.

        Returns:
            For each page whether it was written or is held.
        """
        pool = self._pools[name]
        payloads = pool.pages.outgoing(indices, len(hashes))
        there = self.resident(KV, hashes)
        pages: list[Page] = []
        done = [False] * len(hashes)
        places: list[int] = []
        for number, (page_hash, payload) in enumerate(zip(hashes, payloads, strict=True)):
            if there[number]:
                places.append(number)
                parent = self._parent(name, page_hash)
                pages.append(Page(self._key(name, page_hash), parent, payload))
            elif self._held is not None:
                self._held[name, page_hash] = payload
                done[number] = True
        if pages:
            written = self._store.write(self.namespace, pages)
            for number, ok in zip(places, written, strict=True):
                done[number] = ok
        return done

    def operation(self, run: Callable[[], Any]) -> Any:
        """Run one of SGLang's writes; what `offer` holds in it is forgotten at its end.

        After it SGLang unlocks the pages in host memory, and they may soon hold something else.
        """
        self._held = {}
        try:
            return run()
        finally:
            self._held = None

    def touch(self, page_hash: str) -> bool:
        """Refresh a page and all that it needs; False: it is not there."""
        key = self._tail(page_hash)
        if self._store.prefix([key]) != 1:
            return False
        self._store.touch(key)
        return True

    def tail_keys(self, hashes: Sequence[str]) -> list[bytes]:
        """Keys of the last of the pages that prefixes up to here need."""
        return [self._tail(page_hash) for page_hash in hashes]

    def know(self, keys: Sequence[bytes]) -> None:
        """See `EvictionAdvice.know`."""
        self._store.advice.know(keys)

    def unknow(self, keys: Sequence[bytes]) -> None:
        """See `EvictionAdvice.unknow`."""
        self._store.advice.unknow(keys)

    def evict_first(self, keys: Sequence[bytes]) -> None:
        """See `EvictionAdvice.first`."""
        self._store.advice.first(keys)

    def evict_first_left(self) -> int:
        """See `EvictionAdvice.left`."""
        return self._store.advice.left()

    def forget_first(self) -> None:
        """See `EvictionAdvice.forget`."""
        self._store.advice.forget()

    def oldest_stranger(self) -> tuple[bytes, float] | None:
        """See `EvictionAdvice.oldest_stranger`."""
        return self._store.advice.oldest_stranger()

    def evicted(self) -> int:
        """Pages evicted so far."""
        return self._store.stats().evicted

    def _release(self, page_hash: str) -> list[Page]:
        """What is held for a page of keys and values, parents first."""
        if not self._held:
            return []
        pages = []
        others = [name for name in self._pools if name not in self._linked and name != KV]
        for name in (*self._linked, *others):
            payload = self._held.pop((name, page_hash), None)
            if payload is not None:
                parent = self._parent(name, page_hash)
                pages.append(Page(self._key(name, page_hash), parent, payload))
        return pages

    def _key(self, name: str, page_hash: str) -> bytes:
        return self._pools[name].keys.key(page_hash)

    def _tail(self, page_hash: str) -> bytes:
        """The last of the pages that a prefix up to here needs."""
        return self._key(self._linked[-1] if self._linked else KV, page_hash)

    def _parent(self, name: str, page_hash: str) -> bytes:
        """What a page of another pool hangs on."""
        if name in self._linked:
            place = self._linked.index(name)
            return self._key(self._linked[place - 1] if place else KV, page_hash)
        return self._key(KV, page_hash)
