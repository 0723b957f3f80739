"""What somebody who knows better than recency says about the order in which pages go.

Nothing of it is kept on disk: after a restart pages go least recently used first again.
"""

from collections.abc import Sequence

from sglang_ext.cache.store.catalog import Catalog
from sglang_ext.cache.store.index import NO_ROW

__all__ = ["EvictionAdvice"]


class EvictionAdvice:
    """Advice to one catalog, under its lock: no call waits for the disk.

    Args:
        catalog: of the store. That of a view evicts nothing, so nothing comes of advice to it.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def know(self, names: Sequence[bytes]) -> None:
        """Somebody looks after the chains that end with the pages of these keys."""
        with self._catalog.lock:
            for name in names:
                self._catalog.index.ends.know(name, self._catalog.index.rows.get(name))

    def unknow(self, names: Sequence[bytes]) -> None:
        """Nobody does any more."""
        with self._catalog.lock:
            for name in names:
                self._catalog.index.ends.forget(name)

    def first(self, names: Sequence[bytes]) -> None:
        """Evict what is left of these chains before all others, in this order.

        A page that has children, is being read, or is used before its turn comes stays.
        """
        with self._catalog.lock:
            now_us = self._catalog.now_us()
            for name in names:
                self._catalog.index.evict_first(name, now_us)

    def left(self) -> int:
        """How many chains that `first` named wait; some may have been used meanwhile."""
        return len(self._catalog.index.first)

    def forget(self) -> None:
        """Take back what `first` named."""
        with self._catalog.lock:
            self._catalog.index.first.clear()

    def oldest_stranger(self) -> tuple[bytes, float] | None:
        """Key of the least recently used leaf that nobody looks after, and seconds since its use.

        None: there is none, or it is far from being the next to go.
        """
        with self._catalog.lock:
            index = self._catalog.index
            row = index.oldest_stranger()
            if row == NO_ROW:
                return None
            return index.key_of(row), (self._catalog.now_us() - index.time_us[row]) / 1e6
