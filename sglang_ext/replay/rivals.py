"""The rivals: classic policies, each made leaf-first, one block at a time.

A cache that keeps prefixes can only drop a block whose successors are gone. Each rival orders
blocks by its own rule and drops the first in that order that is such a leaf. A block inserted or
hit with its whole path is as recent as the path; ties go to the deeper block.

Hits are arrays at once, so a request costs what it misses and what is dropped for it.
"""

import heapq
from collections import deque

import numpy as np
import numpy.typing as npt

from sglang_ext.replay.trace import IntArray

__all__ = ["ARC", "FIFO", "LFU", "RIVALS", "S3FIFO", "SLRU", "Rival"]

Flags = npt.NDArray[np.int8]


class Rival:
    """A leaf-first cache over numbered blocks. Subclasses say what is dropped first.

    Args:
        depth: depth of each block in its path; blocks are numbered, a path is an array of numbers.
        capacity: blocks.
    """

    queues = 1

    def __init__(self, depth: IntArray, capacity: int) -> None:
        blocks = len(depth)
        self.capacity = capacity
        self.used = 0
        self.depth = depth
        self.above = np.full(blocks, -1, dtype=np.int64)
        self.children = np.zeros(blocks, dtype=np.int32)
        # Queue that a block is in, -1: not resident; what it is ordered by there.
        self.queue: Flags = np.full(blocks, -1, dtype=np.int8)
        self.rank = np.zeros(blocks, dtype=np.int64)
        self.size = [0] * self.queues
        self._heaps: list[list[tuple[int, int, int]]] = [[] for _ in range(self.queues)]
        self.step = 0

    def access(self, path: IntArray) -> int:
        """Look ``path`` up, insert it, cut to capacity; returns how many blocks were there."""
        self.step += 1
        resident = self.queue[path] >= 0
        count = len(path) if resident.all() else int(np.argmin(resident))
        hits, misses = path[:count], path[count:]
        self.on_hit(hits)
        if len(misses):
            self.used += len(misses)
            self.on_miss(misses)
            above = path[count - 1 : -1] if count else np.concatenate([[-1], misses[:-1]])
            self.above[misses] = above
            inside = above[above >= 0]
            self.children[inside] += 1
        if len(path) and not self.children[path[-1]]:
            self._push(int(path[-1]))
        while self.used > self.capacity:
            self.drop(self.used - self.capacity)
        return count

    def on_hit(self, hits: IntArray) -> None:
        """Blocks, shallow first, that were there."""

    def on_miss(self, misses: IntArray) -> None:
        """Blocks, shallow first, that were not: put each into a queue, with its rank."""
        raise NotImplementedError

    def on_drop(self, block: int, queue: int) -> None:
        """``block`` was dropped from ``queue``."""

    def drop(self, over: int) -> None:
        """Drop at least one block, at most ``over``, or move blocks until one can be dropped."""
        self.drop_from(self.victims(), over)

    def victims(self) -> int:
        """The queue to drop from."""
        return 0

    def enter(self, blocks: IntArray | int, queue: int, rank: int) -> None:
        """Put blocks that are in no queue into one."""
        self.queue[blocks] = queue
        self.rank[blocks] = rank
        self.size[queue] += 1 if isinstance(blocks, int) else len(blocks)

    def leave(self, blocks: IntArray) -> None:
        """Take blocks out of their queues, without dropping them."""
        for queue, count in enumerate(np.bincount(self.queue[blocks], minlength=self.queues)):
            self.size[queue] -= int(count)

    def leaf(self, queue: int) -> int:
        """The block of ``queue`` to drop first; -1: it has no leaf."""
        heap = self._heaps[queue]
        while heap:
            rank, _, block = heap[0]
            if self.queue[block] == queue and not self.children[block]:
                if self.rank[block] == rank:
                    return block
                heapq.heappop(heap)
                self._push(block)
                continue
            heapq.heappop(heap)
        return -1

    def drop_from(self, queue: int, over: int) -> None:
        """Drop up to ``over`` leaves of ``queue``; of another one where it has none."""
        block = self.leaf(queue)
        if block < 0:
            queue = next(q for q in range(self.queues) if self.leaf(q) >= 0)
            block = self.leaf(queue)
        rank = self.rank[block]
        # A run of blocks of one rank goes in one go: whatever lies above is a leaf once it is bare.
        while over > 0 and block >= 0 and self.queue[block] == queue and self.rank[block] == rank:
            if self.children[block]:
                return
            self.queue[block] = -1
            self.size[queue] -= 1
            self.used -= 1
            over -= 1
            self.on_drop(block, queue)
            block = int(self.above[block])
            if block >= 0:
                self.children[block] -= 1
        if block >= 0 and not self.children[block]:
            self._push(block)

    def _push(self, block: int) -> None:
        queue = int(self.queue[block])
        heapq.heappush(self._heaps[queue], (int(self.rank[block]), -int(self.depth[block]), block))


class FIFO(Rival):
    """Oldest insertion first."""

    def on_miss(self, misses: IntArray) -> None:
        """Ranked by the time of insertion."""
        self.enter(misses, 0, self.step)


class LFU(Rival):
    """Fewest uses since insertion first, then the longest unused."""

    _STEPS = 1 << 32

    def on_hit(self, hits: IntArray) -> None:
        """Count the use, note the time."""
        self.rank[hits] = (self.rank[hits] // self._STEPS + 1) * self._STEPS + self.step

    def on_miss(self, misses: IntArray) -> None:
        """One use."""
        self.enter(misses, 0, self._STEPS + self.step)


class SLRU(Rival):
    """Segmented LRU: once used in a probation segment, used again in a protected one (80 %)."""

    queues = 2

    def on_hit(self, hits: IntArray) -> None:
        """Hit blocks are protected; what has no room there is on probation again, as if new."""
        self.leave(hits)
        self.enter(hits, 1, self.step)
        self._order.append((self.step, hits))
        while self.size[1] > self.capacity * 8 // 10:
            self._unprotect(self.size[1] - self.capacity * 8 // 10)

    def __init__(self, depth: IntArray, capacity: int) -> None:
        super().__init__(depth, capacity)
        self._order: deque[tuple[int, IntArray]] = deque()

    def _unprotect(self, over: int) -> None:
        """The protected blocks unused for longest, deepest first."""
        when, blocks = self._order[0]
        mine = blocks[(self.queue[blocks] == 1) & (self.rank[blocks] == when)]
        out = mine[-over:]
        if len(out) == len(mine):
            self._order.popleft()
        self.leave(out)
        self.enter(out, 0, self.step)
        for block in out[self.children[out] == 0].tolist():
            self._push(block)

    def on_miss(self, misses: IntArray) -> None:
        """New blocks are on probation."""
        self.enter(misses, 0, self.step)


class S3FIFO(Rival):
    """A small FIFO (10 %) before a main one, and a ghost of what left the small one unused.

    Source: Yang, Zhang, Qiu, Yue, Vigfusson, "FIFO queues are all you need" (SOSP 2023). Blocks
    used more than once while in the small queue move on; the main queue gives a used block another
    round, up to three.
    """

    queues = 2

    def __init__(self, depth: IntArray, capacity: int) -> None:
        super().__init__(depth, capacity)
        self.uses = np.zeros(len(depth), dtype=np.int8)
        self.ghost = np.zeros(len(depth), dtype=np.int64)  # number of its entry, 0: none
        self._ghosts: deque[tuple[int, int]] = deque()
        self._entries = 0
        self._held = 0

    def on_hit(self, hits: IntArray) -> None:
        """Count the use, up to three."""
        self.uses[hits] = np.minimum(self.uses[hits] + 1, 3)

    def on_miss(self, misses: IntArray) -> None:
        """Ghosts go to the main queue, others to the small one."""
        known = self.ghost[misses] > 0
        self.uses[misses] = 0
        self.enter(misses[~known], 0, self.step)
        self.enter(misses[known], 1, self.step)
        self._held -= int(known.sum())
        self.ghost[misses[known]] = 0

    def drop(self, over: int) -> None:
        """One decision of the small or of the main queue."""
        small = self.size[0] >= max(1, self.capacity // 10) or not self.size[1]
        queue = 0 if small else 1
        block = self.leaf(queue)
        if block < 0:
            queue = 1 - queue
            block = self.leaf(queue)
        again = self.uses[block] > 1 if queue == 0 else self.uses[block] > 0
        if not again:
            self.drop_from(queue, 1)
            return
        self.size[queue] -= 1
        self.uses[block] = 0 if queue == 0 else self.uses[block] - 1
        self.step += 1
        self.enter(block, 1, self.step)
        self._push(block)

    def on_drop(self, block: int, queue: int) -> None:
        """What leaves the small queue is remembered, as many as the main queue holds."""
        if queue != 0:
            return
        self._entries += 1
        self.ghost[block] = self._entries
        self._ghosts.append((block, self._entries))
        self._held += 1
        while self._held > max(1, self.capacity * 9 // 10):
            old, entry = self._ghosts.popleft()
            if self.ghost[old] == entry:
                self.ghost[old] = 0
                self._held -= 1


class ARC(Rival):
    """Adaptive replacement: recency and frequency lists whose split follows ghost hits.

    Source: Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache" (FAST 2003).
    A request's blocks are inserted together, then the cache is cut.
    """

    queues = 2

    def __init__(self, depth: IntArray, capacity: int) -> None:
        super().__init__(depth, capacity)
        self.target = 0.0  # of the recency list, in blocks
        self.ghost = np.zeros((2, len(depth)), dtype=np.int64)
        self._ghosts: tuple[deque[tuple[int, int]], ...] = (deque(), deque())
        self._held = [0, 0]
        self._entries = 0

    def on_hit(self, hits: IntArray) -> None:
        """A second use: into the frequency list."""
        self.leave(hits)
        self.enter(hits, 1, self.step)

    def on_miss(self, misses: IntArray) -> None:
        """A ghost's return moves the split toward the list it was dropped from."""
        returned = [self.ghost[side][misses] > 0 for side in (0, 1)]
        for side, sign in ((0, 1.0), (1, -1.0)):
            count = int(returned[side].sum())
            if not count:
                continue
            ratio = self._held[1 - side] / max(1, self._held[side])
            moved = self.target + sign * max(1.0, ratio) * count
            self.target = min(float(self.capacity), max(0.0, moved))
            self.ghost[side][misses[returned[side]]] = 0
            self._held[side] -= count
        known = returned[0] | returned[1]
        self.enter(misses[~known], 0, self.step)
        self.enter(misses[known], 1, self.step)

    def victims(self) -> int:
        """The recency list while it is above its target."""
        return 0 if self.size[0] and self.size[0] > self.target else 1

    def drop(self, over: int) -> None:
        """From the list above its target, until it is not."""
        queue = self.victims()
        if queue == 0:
            over = min(over, max(1, self.size[0] - int(self.target)))
        self.drop_from(queue, over)

    def on_drop(self, block: int, queue: int) -> None:
        """Remember it; the recency side holds a cache's worth with its ghosts, both two."""
        self._entries += 1
        self.ghost[queue][block] = self._entries
        self._ghosts[queue].append((block, self._entries))
        self._held[queue] += 1
        while self._held[0] and self.size[0] + self._held[0] > self.capacity:
            self._forget(0)
        while self._held[1] and sum(self.size) + sum(self._held) > 2 * self.capacity:
            self._forget(1)

    def _forget(self, side: int) -> None:
        block, entry = self._ghosts[side].popleft()
        if self.ghost[side][block] == entry:
            self.ghost[side][block] = 0
            self._held[side] -= 1


RIVALS: dict[str, type[Rival]] = {
    "lfu": LFU,
    "slru": SLRU,
    "fifo": FIFO,
    "s3fifo": S3FIFO,
    "arc": ARC,
}
