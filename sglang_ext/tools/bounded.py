"""A cache with a bound in bytes; the entry that was not used for longest goes first. Pure."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["BoundedCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Values by key, up to a total size; safe to use from several threads.

    Args:
        most_bytes: bound on the sum of all sizes, exact.
        size_of: size of a value in bytes, asked once.
    """

    def __init__(self, most_bytes: int, size_of: Callable[[K, V], int]) -> None:
        self._most_bytes = most_bytes
        self._size_of = size_of
        self._lock = threading.Lock()
        self._held: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self.held_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: K) -> V | None:
        """The value of ``key``, which is now the one used last; None where it is not there."""
        with self._lock:
            entry = self._held.get(key)
            if entry is None:
                return None
            self._held.move_to_end(key)
            return entry[0]

    def __contains__(self, key: K) -> bool:
        """Whether it is there; asking is no use of it."""
        return key in self._held

    def put(self, key: K, value: V) -> None:
        """Hold ``value``; one that is larger than the whole cache is not held."""
        size = self._size_of(key, value)
        with self._lock:
            self._drop(key)
            if size > self._most_bytes:
                return
            while self.held_bytes + size > self._most_bytes:
                self._drop(next(iter(self._held)))
            self._held[key] = (value, size)
            self.held_bytes += size

    def drop(self, key: K) -> None:
        """No longer hold ``key``."""
        with self._lock:
            self._drop(key)

    def shrink(self, most_bytes: int) -> None:
        """Hold no more than ``most_bytes`` now; the bound of `put` stays."""
        with self._lock:
            while self.held_bytes > max(most_bytes, 0):
                self._drop(next(iter(self._held)))

    def clear(self) -> None:
        """Hold nothing."""
        with self._lock:
            self._held.clear()
            self.held_bytes = 0

    def _drop(self, key: K) -> None:
        entry = self._held.pop(key, None)
        if entry is not None:
            self.held_bytes -= entry[1]
