"""The tree of all prompts of a trace, cut wherever two prompts part or end.

A node is a run of blocks that every prompt passes as a whole or not at all, so a cache that drops
suffixes first is described by one number a node: how many of its blocks are resident. The tree
knows the whole trace; the policies do not look at it beyond the request at hand.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sglang_ext.replay.trace import IntArray, Trace

__all__ = ["PromptTree", "next_uses"]


@dataclass(frozen=True)
class PromptTree:
    """Nodes in an order in which parents come first.

    ``parent`` is -1 at the top. ``begin`` and ``end`` are depths in blocks: node x holds blocks
    [begin[x], end[x]) of every prompt that passes it. ``leaf[i]`` is where request i ends (-1: it
    has no block). Plain lists: one element at a time is what the replay reads.
    """

    parent: list[int]
    begin: list[int]
    end: list[int]
    leaf: list[int]

    @classmethod
    def of(cls, trace: Trace) -> "PromptTree":
        """The tree of ``trace``, in its own block size."""
        parents, shared, blocks = (
            array.tolist() for array in (trace.parent, trace.shared, trace.blocks)
        )
        cuts: list[set[int]] = [set() for _ in parents]

        def owner(request: int, depth: int) -> int:
            """The request that was first to have block ``depth - 1`` of ``request``'s prompt."""
            while depth <= shared[request]:
                request = parents[request]
            return request

        ends, joins = [], []
        for request, (common, total) in enumerate(zip(shared, blocks, strict=True)):
            ends.append(owner(request, total) if total else -1)
            joins.append(owner(request, common) if common else -1)
            if total:
                cuts[ends[-1]].add(total)
            if common:
                cuts[joins[-1]].add(common)
        parent: list[int] = []
        begin: list[int] = []
        end: list[int] = []
        at: dict[tuple[int, int], int] = {}
        for request, common in enumerate(shared):
            above = at[joins[request], common] if common else -1
            start = common
            for cut in sorted(cuts[request]):
                at[request, cut] = len(parent)
                parent.append(above)
                begin.append(start)
                end.append(cut)
                above, start = len(parent) - 1, cut
        leaf = [at[ends[request], total] if total else -1 for request, total in enumerate(blocks)]
        return cls(parent, begin, end, leaf)

    def path(self, leaf: int) -> Iterator[int]:
        """Nodes from ``leaf`` up to the top."""
        while leaf >= 0:
            yield leaf
            leaf = self.parent[leaf]

    def __len__(self) -> int:
        return len(self.parent)


def next_uses(tree: PromptTree, order: IntArray) -> list[IntArray]:
    """For each step, when each node on its path is passed again.

    Args:
        tree: the prompts.
        order: request of each step.

    Returns:
        For step q, steps of the next use of the nodes of its path, leaf first; a node that never
        comes back has ``len(order)``.
    """
    never = len(order)
    seen = np.full(len(tree), never, dtype=np.int64)
    uses: list[IntArray] = [seen[:0]] * len(order)
    for step in range(len(order) - 1, -1, -1):
        path = np.fromiter(tree.path(tree.leaf[order[step]]), dtype=np.int64)
        uses[step] = seen[path]
        seen[path] = step
    return uses
