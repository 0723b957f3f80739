"""The third tier of a replay, as the server has it: the store's own index, and what goes first.

An order by worth to the block, as in memory, is more than a disk tier can do. Room is made before a
page is written, so what has just paused is not the first to go; conversations are named a few at a
time (`sglang_ext.cache.disk_order`), and what is needed beyond that goes by use. A page that is
evicted while memory still has it is not written again, and neither is what follows it until memory
has lost it, too.

ASSUMPTION: what is written and named is on its way for no time.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.disk_order import DiskAdvice, DiskOrder
from sglang_ext.cache.forgetting import Forgetting
from sglang_ext.cache.store.format import KEY_BYTES
from sglang_ext.cache.store.index import NO_ROW, Index
from sglang_ext.cache.store.placing import spare_slots

__all__ = ["DiskCache"]


class DiskCache:
    """One disk tier.

    Args:
        paths: for each request, the numbers of its blocks.
        capacity: blocks.
        order: what goes first; None: all go by use.
        in_memory: whether the end of a request's path is in the tiers above.
    """

    def __init__(
        self,
        paths: Sequence[npt.NDArray[np.int32]],
        capacity: int,
        order: DiskOrder | None = None,
        in_memory: Callable[[int], bool] = lambda request: False,
    ) -> None:
        self._paths = paths
        self._capacity = capacity
        self._in_memory = in_memory
        self._index = Index()
        self._evicted = 0
        self._now = 0.0
        self._advice = DiskAdvice()
        self._forgetting = None if order is None else Forgetting(order, self._advice, self)

    def __len__(self) -> int:
        """Blocks."""
        return len(self._index)

    def access(self, request: int, above: int, now: float) -> int:
        """A request is served: its path is looked up, and what it adds to it is written.

        Args:
            request: which one.
            above: blocks of it that the tiers above had.
            now: seconds.

        Returns:
            Blocks of it that were there.
        """
        self._now = now
        path, index = self._paths[request], self._index
        found = self._found(path)
        row = NO_ROW
        if found:
            row = index.rows[_key(path[found - 1])]
            index.touch(row, self._now_us())
        if found >= above and found < len(path):
            self._write(path[found:].tolist(), row)
        return found

    def changed(self, turns: Sequence[Turn], now: float) -> None:
        """See `Forgetting.changed`."""
        self._now = now
        if self._forgetting is not None:
            self._forgetting.changed(turns, now)
            self._advice.work(self)

    def finished(self, turn: Turn, now: float) -> None:
        """See `Forgetting.finished`."""
        self._now = now
        if self._forgetting is not None:
            self._forgetting.changed([turn], now)
            self._forgetting.finished(turn, now)
            self._advice.work(self)

    # --- where paths end, see `sglang_ext.cache.forgetting.Paths`

    def is_there(self, place: object) -> bool:
        """Whether it is a request that has blocks."""
        return isinstance(place, int) and len(self._paths[place]) > 0

    def tail(self, place: object) -> str | None:
        """The last block of a request."""
        return str(self._paths[place][-1]) if isinstance(place, int) else None

    def has_left(self, before: object, place: object) -> bool:
        """Whether the path of a request ends beside another one's."""
        if not isinstance(before, int) or not isinstance(place, int):
            return False
        old, new = self._paths[before], self._paths[place]
        within = len(old) <= len(new) and bool(old[-1] == new[len(old) - 1])
        return not within and self._in_memory(before)

    # --- what is told to a store, see `sglang_ext.cache.disk_order.AdvisedStore`

    def tail_keys(self, hashes: Sequence[str]) -> list[bytes]:
        """Keys of last blocks."""
        return [_key(int(block)) for block in hashes]

    def know(self, keys: Sequence[bytes]) -> None:
        """These chains are looked after."""
        for key in keys:
            self._index.ends.know(key, self._index.rows.get(key))

    def unknow(self, keys: Sequence[bytes]) -> None:
        """They are not any more."""
        for key in keys:
            self._index.ends.forget(key)

    def evict_first(self, keys: Sequence[bytes]) -> None:
        """These go first."""
        for key in keys:
            self._index.evict_first(key, self._now_us())

    def evict_first_left(self) -> int:
        """How many of them wait."""
        return len(self._index.first)

    def forget_first(self) -> None:
        """Nothing goes first."""
        self._index.first.clear()

    def oldest_stranger(self) -> tuple[bytes, float] | None:
        """What was used least recently of what is not looked after, and seconds since."""
        row = self._index.oldest_stranger()
        if row == NO_ROW:
            return None
        return self._index.key_of(row), (self._now_us() - self._index.time_us[row]) / 1e6

    def evicted(self) -> int:
        """Blocks evicted so far."""
        return self._evicted

    def check_integrity(self) -> None:
        """Raise where the state contradicts itself; for tests.

        Raises:
            StoreError, ValueError: saying what.
        """
        self._index.check_integrity()
        if len(self) > self._capacity:
            raise ValueError(f"{len(self)} blocks where there is room for {self._capacity}")

    def _found(self, path: npt.NDArray[np.int32]) -> int:
        """How many leading blocks are there; what is there has all before it."""
        low, high, rows = 0, len(path), self._index.rows
        while low < high:
            middle = (low + high) // 2
            if _key(path[middle]) in rows:
                low = middle + 1
            else:
                high = middle
        return low

    def _write(self, blocks: list[int], row: int) -> None:
        index = self._index
        over = len(index) + len(blocks) - self._capacity
        if over > 0:
            index.pin(row)
            gone = index.evict(0, over + spare_slots(self._capacity))
            index.unpin(row)
            self._evicted += len(gone)
        for block in blocks[: self._capacity - len(index)]:
            row = index.add(_key(block), row, 0, 0, 0, self._now_us())

    def _now_us(self) -> int:
        return int(self._now * 1e6)


def _key(block: int) -> bytes:
    return int(block).to_bytes(KEY_BYTES, "little")
