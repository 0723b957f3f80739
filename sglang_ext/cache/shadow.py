"""What a tier would hold under recency and under the learned order, side by side.

One tree of prompts for all tiers and both orders, in blocks: a node is a run that every remembered
prompt passes as a whole or not at all, and holds for each *side* how many of its first blocks that
side has. What several conversations share is there once. A request costs what it adds and the
nodes of its path, a few for each branch of its history; marks are chained, so a run is compared by
its last one.

What runs is held and takes no room, as a server has it in memory that is no cache then.

Pure: neither torch nor SGLang is imported, time is an argument.
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import inf

from sglang_ext.cache.conversation import Turn
from sglang_ext.cache.order import EvictionOrder

__all__ = ["Shadow"]

# Leaves of one side. Default: 16,384. Cost: 3 KB each with its conversation; with fewer the
# comparison is of a smaller tier than there is.
_LEAVES = 16_384


# Requests that a node remembers, the latest first. Default: 8. Cost: ranking a leaf asks each once,
# 1 us.
_TURNS = 8
# Nodes of a path at which the next question for one above them begins. Default: 2, for the leaves
# that one path has in two tiers. A path that is given up from its end would else be walked anew
# for each of its nodes.
_ASKED = 2


class _Node:
    __slots__ = (
        "begin",
        "children",
        "held",
        "kids",
        "marks",
        "parent",
        "running",
        "touch",
        "turns",
    )

    def __init__(self, parent: "_Node | None", begin: int, marks: "array[int]", sides: int) -> None:
        self.parent = parent
        self.begin = begin
        self.marks = marks
        self.children: dict[int, _Node] = {}
        self.touch = 0  # number of the last request that passed it
        self.turns: tuple[Turn, ...] = ()  # of it, and earlier ones that may come back
        self.running = 0  # requests that pass it and run
        self.held = [0] * sides  # blocks
        self.kids = [0] * sides  # children of which anything is held


_Rank = Callable[[_Node, float], tuple[float, float]]


class _Side:
    def __init__(self, capacity: int, rank: _Rank) -> None:
        self.capacity = capacity
        self._rank = rank
        self.clear()

    def clear(self) -> None:
        self.order: EvictionOrder[_Node] = EvictionOrder(self._rank)
        self.used = 0


class Shadow:
    """The tree, and its sides: two for each tier.

    Args:
        rank: worth of what turns have passed, as learned, and until when it holds.
    """

    def __init__(self, rank: Callable[[Sequence[Turn], float], tuple[float, float]]) -> None:
        self._rank = rank
        self._root = _Node(None, 0, array("q"), 0)
        self._sides: list[_Side] = []
        self._running: dict[Turn, _Node] = {}
        self._held = 0  # blocks that are held because a request runs
        self._touch = 0

    def __len__(self) -> int:
        """Nodes of the tree."""
        return len(self._nodes()) - 1

    def add(self, capacity: int) -> tuple[int, int]:
        """A tier of ``capacity`` blocks; returns its sides: by recency, as learned."""
        for node in self._nodes():
            node.held += [0, 0]
            node.kids += [0, 0]
        self._sides.append(_Side(capacity, lambda node, now: (0.0, inf)))
        self._sides.append(_Side(capacity, lambda node, now: self._rank(node.turns, now)))
        return len(self._sides) - 2, len(self._sides) - 1

    def clear(self) -> None:
        """Forget all prompts: no side holds anything."""
        for node in self._nodes():
            _let_go(node)
        self._root = _Node(None, 0, array("q"), len(self._sides))
        self._running.clear()
        self._held = 0
        for side in self._sides:
            side.clear()

    def arrive(self, turn: Turn, marks: Sequence[int]) -> list[int]:
        """A request is here and runs until `finish`.

        Args:
            turn: of the request, its conversation's latest.
            marks: of its prompt.

        Returns:
            Blocks that each side had of it.
        """
        path, hits = self._walk(marks)
        if not path:
            return hits
        self._touch += 1
        for node in path:
            node.touch, node.turns = self._touch, _latest(turn, node.turns)
            self._held += 0 if node.running else len(node.marks)
            node.running += 1
        for place, side in enumerate(self._sides):
            self._fill(path, place, side)
        turn.shadow = self._running[turn] = self._merged(path)
        return hits

    def finish(self, turn: Turn, now: float) -> None:
        """The request of ``turn`` runs no longer: what it holds competes with the rest."""
        node = self._running.pop(turn, self._root)
        while node.parent is not None:
            node.running -= 1
            self._held -= 0 if node.running else len(node.marks)
            node = node.parent
        self.reconsider(turn, now)
        for place, side in enumerate(self._sides):
            self._cut(place, side, now)

    def turns(self, turn: Turn, block: int) -> Sequence[Turn]:
        """Turns that may come back to a block of the path of ``turn``, the latest first.

        ``turn`` alone where no side has had that block for long.
        """
        node = self._at(turn, block)
        return (turn,) if node is None else node.turns

    def begin(self, turn: Turn, block: int) -> int:
        """The first of the blocks up to ``block`` that have the same `turns`."""
        node = self._at(turn, block)
        return 0 if node is None else node.begin

    def reconsider(self, turn: Turn, now: float) -> None:
        """More is known of a pause, or it has just begun."""
        node = turn.shadow
        if isinstance(node, _Node) and node.parent is not None and not node.running:
            for place, side in enumerate(self._sides):
                if node.held[place] and not node.kids[place]:
                    side.order.add(node, node.touch, now)

    def check_integrity(self) -> None:
        """Raise where the state contradicts itself; for tests.

        Raises:
            ValueError: saying what.
        """
        nodes = [node for node in self._nodes() if node.parent is not None]
        for place, side in enumerate(self._sides):
            if side.used != sum(node.held[place] for node in nodes):
                raise ValueError(f"side {place} has not the {side.used} blocks that it counts")
            if side.used - self._held > side.capacity and len(side.order):
                raise ValueError(f"side {place} is over its capacity")
            for node in [self._root, *nodes]:
                self._check_node(node, place, side)
        for node in nodes:
            if not node.running and not any(node.held):
                raise ValueError(f"a node at {node.begin} is held by nobody")
        if self._held != sum(len(node.marks) for node in nodes if node.running):
            raise ValueError(f"{self._held} blocks are counted as held")

    def _check_node(self, node: _Node, place: int, side: _Side) -> None:
        held, below = node.held[place], [one.held[place] for one in node.children.values()]
        whole = node.parent is None or held == len(node.marks)
        if node.kids[place] != sum(blocks > 0 for blocks in below):
            raise ValueError(f"a node at {node.begin} miscounts what is below it")
        if bool(held and not any(below) and not node.running) != (node in side.order):
            raise ValueError(f"a node at {node.begin} is a leaf and not in order, or not")
        if not whole and (any(below) or node.running):
            raise ValueError(f"a node at {node.begin} was cut before its time")

    def _at(self, turn: Turn, block: int) -> _Node | None:
        """The node of the path of ``turn`` that a block is in; None: the path's end is gone."""
        end = turn.shadow
        if not isinstance(end, _Node) or end.parent is None:
            return None
        if end.begin <= block:
            return end
        asked = [one for one in turn.shadow_asked if isinstance(one, _Node)]
        below = [one for one in asked if one.parent is not None and _end(one) > block]
        begin = node = min(below, key=_end, default=end)
        while node.begin > block and node.parent is not None:
            node = node.parent
        if node is not begin:
            kept = (one for one in turn.shadow_asked if one is not begin and one is not node)
            turn.shadow_asked = (node, *kept)[:_ASKED]
        return node

    def _nodes(self) -> list[_Node]:
        nodes = [self._root]
        for node in nodes:
            nodes += node.children.values()
        return nodes

    def _walk(self, marks: Sequence[int]) -> tuple[list[_Node], list[int]]:
        """The path of a prompt, made where it is not there; and blocks of it that each side had."""
        node, depth, path = self._root, 0, []
        hits = [0] * len(self._sides)
        while depth < len(marks) and (child := node.children.get(marks[depth])) is not None:
            common = _common(child.marks, marks, depth)
            for place, held in enumerate(child.held):
                if hits[place] == depth:
                    hits[place] += min(held, common)
            if common < len(child.marks):
                child = self._split(child, common)
            path.append(child)
            node, depth = child, depth + common
        if depth < len(marks):
            rest = array("q", marks[depth:])
            if path and not node.children and not node.running and not _awaited(node.turns):
                node.marks += rest
            else:
                below = _Node(node, depth, rest, len(self._sides))
                node.children[rest[0]] = below
                path.append(below)
        return path, hits

    def _split(self, node: _Node, blocks: int) -> _Node:
        """Cut a node after ``blocks``; returns the upper part, the lower one stays what it was."""
        parent = node.parent or self._root
        upper = _Node(parent, node.begin, node.marks[:blocks], 0)
        node.marks, node.begin, node.parent = node.marks[blocks:], node.begin + blocks, upper
        upper.touch, upper.turns, upper.running = node.touch, node.turns, node.running
        upper.held = [min(held, blocks) for held in node.held]
        node.held = [max(0, held - blocks) for held in node.held]
        upper.kids = [int(held > 0) for held in node.held]
        parent.children[upper.marks[0]] = upper
        upper.children[node.marks[0]] = node
        for side, held in zip(self._sides, node.held, strict=True):
            if not held:
                side.order.discard(node)
        self._remove_if_empty(node)
        return upper

    def _fill(self, path: list[_Node], place: int, side: _Side) -> None:
        for node in path:
            side.order.discard(node)
            held, size = node.held[place], len(node.marks)
            if held < size:
                node.held[place] = size
                side.used += size - held
                if not held and node.parent is not None:
                    node.parent.kids[place] += 1

    def _merged(self, path: list[_Node]) -> _Node:
        """Make one of nodes that no longer differ; returns the last of the path."""
        for upper, node in pairwise(path):
            if (
                len(upper.children) == 1
                and upper.turns == node.turns
                and upper.running == node.running
                and upper.parent is not None
            ):
                node.marks, node.begin, node.parent = (
                    upper.marks + node.marks,
                    upper.begin,
                    upper.parent,
                )
                node.held = [
                    above + below for above, below in zip(upper.held, node.held, strict=True)
                ]
                upper.parent.children[node.marks[0]] = node
                _let_go(upper)
        return path[-1]

    def _cut(self, place: int, side: _Side, now: float) -> None:
        while (over := side.used - self._held - side.capacity) > 0 or len(side.order) > _LEAVES:
            node = side.order.lowest(now)
            if node is None or node.parent is None:
                return
            held = node.held[place]
            if 0 < over < held:
                node.held[place] -= over
                side.used -= over
                continue
            node.held[place] = 0
            side.used -= held
            side.order.discard(node)
            parent = node.parent
            parent.kids[place] -= 1
            if parent.parent is not None and not parent.kids[place] and not parent.running:
                side.order.add(parent, parent.touch, now)
            self._remove_if_empty(node)

    def _remove_if_empty(self, node: _Node) -> None:
        if node.parent is not None and not node.running and not any(node.held):
            del node.parent.children[node.marks[0]]
            _let_go(node)


def _end(node: _Node) -> int:
    return node.begin + len(node.marks)


def _let_go(node: _Node) -> None:
    """Take a node out of the tree; turns that ended there keep hold of it, and of no more."""
    node.parent, node.marks, node.children, node.turns = None, array("q"), {}, ()


def _common(run: "array[int]", marks: Sequence[int], depth: int) -> int:
    """How many marks of ``run`` are those of ``marks`` from ``depth`` on; the first is."""
    low, high = 1, min(len(run), len(marks) - depth)
    if marks[depth + high - 1] == run[high - 1]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if marks[depth + middle - 1] == run[middle - 1]:
            low = middle
        else:
            high = middle
    return low


def _awaited(turns: Sequence[Turn]) -> bool:
    """Whether a conversation may come back to where the node ends."""
    return any(turn.is_current for turn in turns)


def _latest(turn: Turn, turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """``turn``, and those of the others whose conversations have not moved on."""
    return (turn, *(other for other in turns if other.is_current and other is not turn))[:_TURNS]
