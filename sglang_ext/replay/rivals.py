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
# Blocks that are looked at in one go.
_RUN = 256


class _Ghosts:
    """Blocks that were dropped, remembered in that order; the oldest is forgotten first.

    Args:
        blocks: that there are.
    """

    def __init__(self, blocks: int) -> None:
        self._entry = np.zeros(blocks, dtype=np.int64)  # number of a block's entry, 0: none
        self._runs: deque[tuple[IntArray, IntArray]] = deque()
        self._entries = 0
        self.held = 0

    def add(self, blocks: IntArray) -> None:
        """Remember ``blocks``, none of which is."""
        entries = np.arange(self._entries + 1, self._entries + 1 + len(blocks))
        self._entries += len(blocks)
        self._entry[blocks] = entries
        self._runs.append((blocks, entries))
        self.held += len(blocks)

    def known(self, blocks: IntArray) -> npt.NDArray[np.bool_]:
        """Which of ``blocks`` are remembered."""
        return self._entry[blocks] > 0

    def take(self, blocks: IntArray) -> None:
        """Forget ``blocks``, which are remembered."""
        self._entry[blocks] = 0
        self.held -= len(blocks)

    def shrink(self, most: int) -> None:
        """Forget the oldest, until ``most`` are left."""
        while self.held > max(0, most):
            blocks, entries = self._runs.popleft()
            live = np.flatnonzero(self._entry[blocks] == entries)
            over = self.held - max(0, most)
            if len(live) > over:
                rest = live[over]
                self._runs.appendleft((blocks[rest:], entries[rest:]))
                live = live[:over]
            self.take(blocks[live])


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

    def on_drop(self, blocks: IntArray, queue: int) -> None:
        """``blocks``, deepest first, were dropped from ``queue``."""

    def stays(self, blocks: IntArray, queue: int) -> npt.NDArray[np.bool_] | None:
        """Which of ``blocks`` are not to be dropped from ``queue`` yet; None: all go."""
        return None

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
        while over > 0 and block >= 0 and not self.children[block]:
            # A run of blocks of one rank goes in one go: what lies above is a leaf once it is bare.
            run = self._run(block, queue, rank, over)
            if not len(run):
                break
            self.queue[run] = -1
            self.children[run] = 0
            self.size[queue] -= len(run)
            self.used -= len(run)
            over -= len(run)
            self.on_drop(run, queue)
            block = int(self.above[run[-1]])
            if block >= 0:
                self.children[block] -= 1
        if block >= 0 and not self.children[block]:
            self._push(block)

    def _run(self, block: int, queue: int, rank: int, most: int) -> IntArray:
        """``block`` and those above it that go with it, as far as their numbers follow."""
        run = np.arange(block, max(-1, block - min(most, _RUN)), -1)
        goes = (self.queue[run] == queue) & (self.rank[run] == rank)
        goes[1:] &= (self.children[run[1:]] == 1) & (self.above[run[:-1]] == run[1:])
        stays = self.stays(run, queue)
        if stays is not None:
            goes &= ~stays
        return run if goes.all() else run[: int(np.argmin(goes))]

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
        self._ghosts = _Ghosts(len(depth))

    def on_hit(self, hits: IntArray) -> None:
        """Count the use, up to three."""
        self.uses[hits] = np.minimum(self.uses[hits] + 1, 3)

    def on_miss(self, misses: IntArray) -> None:
        """Ghosts go to the main queue, others to the small one."""
        known = self._ghosts.known(misses)
        self.uses[misses] = 0
        self.enter(misses[~known], 0, self.step)
        self.enter(misses[known], 1, self.step)
        self._ghosts.take(misses[known])

    def drop(self, over: int) -> None:
        """Decide on one block of the small or of the main queue, and on those that go with it."""
        least = max(1, self.capacity // 10)
        queue = 0 if self.size[0] >= least or not self.size[1] else 1
        block = self.leaf(queue)
        if block < 0:
            queue = 1 - queue
            block = self.leaf(queue)
        elif queue == 0 and self.size[1]:
            over = min(over, self.size[0] - least + 1)
        if self.uses[block] <= self._spared(queue):
            self.drop_from(queue, over)
            return
        self.size[queue] -= 1
        self.uses[block] = 0 if queue == 0 else self.uses[block] - 1
        self.step += 1
        self.enter(block, 1, self.step)
        self._push(block)

    def stays(self, blocks: IntArray, queue: int) -> npt.NDArray[np.bool_]:
        """Those used often enough get another round when it is their turn."""
        return np.asarray(self.uses[blocks] > self._spared(queue))

    def on_drop(self, blocks: IntArray, queue: int) -> None:
        """What leaves the small queue is remembered, as many as the main queue holds."""
        if queue == 0:
            self._ghosts.add(blocks)
            self._ghosts.shrink(max(1, self.capacity * 9 // 10))

    @staticmethod
    def _spared(queue: int) -> int:
        """Uses at which a block still goes."""
        return 1 if queue == 0 else 0


class ARC(Rival):
    """Adaptive replacement: recency and frequency lists whose split follows ghost hits.

    Source: Megiddo and Modha, "ARC: a self-tuning, low overhead replacement cache" (FAST 2003).
    A request's blocks are inserted together, then the cache is cut.
    """

    queues = 2

    def __init__(self, depth: IntArray, capacity: int) -> None:
        super().__init__(depth, capacity)
        self.target = 0.0  # of the recency list, in blocks
        self._ghosts = (_Ghosts(len(depth)), _Ghosts(len(depth)))

    def on_hit(self, hits: IntArray) -> None:
        """A second use: into the frequency list."""
        self.leave(hits)
        self.enter(hits, 1, self.step)

    def on_miss(self, misses: IntArray) -> None:
        """A ghost's return moves the split toward the list it was dropped from."""
        returned = [ghosts.known(misses) for ghosts in self._ghosts]
        for side, sign in ((0, 1.0), (1, -1.0)):
            count = int(returned[side].sum())
            if not count:
                continue
            ratio = self._ghosts[1 - side].held / max(1, self._ghosts[side].held)
            moved = self.target + sign * max(1.0, ratio) * count
            self.target = min(float(self.capacity), max(0.0, moved))
            self._ghosts[side].take(misses[returned[side]])
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

    def on_drop(self, blocks: IntArray, queue: int) -> None:
        """Remember them; the recency side holds a cache's worth with its ghosts, both two."""
        self._ghosts[queue].add(blocks)
        self._ghosts[0].shrink(self.capacity - self.size[0])
        both = 2 * self.capacity - sum(self.size) - self._ghosts[0].held
        self._ghosts[1].shrink(both)


RIVALS: dict[str, type[Rival]] = {
    "lfu": LFU,
    "slru": SLRU,
    "fifo": FIFO,
    "s3fifo": S3FIFO,
    "arc": ARC,
}
