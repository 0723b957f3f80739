"""A disk tier in a replay, against a dictionary, and what the policy's names change."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from sglang_ext.replay.disk import DiskCache


class Oracle:
    """Blocks by the time of their last use; leaves go, the oldest first, of equals the deepest."""

    def __init__(self, capacity):
        self.capacity, self.held, self.parent = capacity, {}, {}

    def access(self, path, above, now):
        """As the store: all room that a write takes is made before it."""
        found = next((n for n, block in enumerate(path) if block not in self.held), len(path))
        for block in path[:found]:
            self.held[block] = now
        if found < above:
            return found
        new = path[found:]
        while len(self.held) + len(new) > self.capacity and self._drop(path[found - 1 : found]):
            pass
        for place, block in enumerate(new[: self.capacity - len(self.held)], found):
            self.parent[block] = path[place - 1] if place else None
            self.held[block] = now
        return found

    def _drop(self, pinned):
        inner = {self.parent[block] for block in self.held}
        leaves = [b for b in self.held if b not in inner and b not in pinned]
        if not leaves:
            return False
        del self.held[min(leaves, key=lambda block: (self.held[block], -self._depth(block)))]
        return True

    def _depth(self, block):
        depth = 0
        while (block := self.parent[block]) is not None:
            depth += 1
        return depth


def paths(rng, count):
    """Prompts that grow, branch and begin anew; a number stands for all blocks up to there."""
    made, fresh = [], 0
    for _ in range(count):
        base = rng.choice(made) if made and rng.random() < 0.8 else []
        path = base[: rng.randrange(len(base) + 1)]
        new = rng.randrange(0 if path else 1, 5)
        made.append([*path, *range(fresh, fresh + new)])
        fresh += new
    return made


@pytest.mark.parametrize("seed", range(10))
def test_a_disk_that_goes_by_use_holds_what_a_dictionary_holds(seed):
    rng = random.Random(seed)
    prompts = paths(rng, 200)
    capacity = rng.randrange(5, 60)
    disk = DiskCache([np.asarray(path, dtype=np.int32) for path in prompts], capacity)
    oracle = Oracle(capacity)
    for step in range(400):
        request = rng.randrange(len(prompts))
        above = rng.choice([0, 0, len(prompts[request])])
        expected = oracle.access(prompts[request], above, step)
        assert disk.access(request, above, float(step)) == expected, step
        disk.check_integrity()
        assert len(disk) == len(oracle.held)
    assert disk.evicted()


def test_what_memory_has_and_the_disk_has_lost_is_not_written():
    disk = DiskCache([np.arange(4), np.arange(10, 14), np.arange(6)], 4)
    assert disk.access(0, 0, 0.0) == 0
    assert disk.access(1, 0, 1.0) == 0
    assert disk.access(2, 4, 2.0) == 0, "its first four blocks are in memory, and nowhere else"
    assert disk.access(1, 0, 3.0) == 4
    assert disk.access(2, 0, 4.0) == 0
    assert disk.access(2, 0, 5.0) == 4


@pytest.mark.parametrize("trusted", [True, False])
def test_what_is_named_goes_before_what_was_used_longest_ago(trusted):
    named = []

    class Order:
        def __init__(self):
            self.trusted = trusted

        def forget(self, turn):
            return None

        def reconsider(self, turns, now):
            return None

        def paused(self, turn, tail, now):
            return None

        def least(self, count, oldest_s, now):
            return [named.pop()] if named and trusted else []

    disk = DiskCache([np.arange(first, first + 4) for first in (0, 10, 20, 30, 40)], 9, Order())

    def ended(request):
        turn = SimpleNamespace(is_current=True, place=request, conversation=object())
        disk.finished(turn, float(request))

    for request in range(3):
        disk.access(request, 0, float(request))
        ended(request)
    assert disk.evicted(), "from now on something is named"
    named.append("23")
    ended(2)
    disk.access(3, 0, 3.0)
    assert disk.access(1, 0, 4.0) == (4 if trusted else 1)
