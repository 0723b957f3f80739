"""The model of a tier under two orders, against caches of blocks that know nothing of nodes."""

import random
from functools import partial
from math import inf

from sglang_ext.cache.conversation import Conversation, Stop, Turn
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.shadow import Shadow


class Blocks:
    """One side: a dictionary of blocks; the lowest leaf that nobody holds goes first."""

    def __init__(self, capacity, worth):
        self.capacity, self.worth = capacity, worth
        self.held, self.last = set(), {}

    def hits(self, path):
        return next((n for n, block in enumerate(path) if block not in self.held), len(path))

    def cut(self, running):
        busy = {block for path in running for block in path}
        while len(self.held - busy) > self.capacity:
            inner = {block[:-1] for block in self.held}
            leaves = [b for b in self.held if b not in inner and b not in busy]
            self.held.discard(min(leaves, key=lambda block: (self.worth(block), self.last[block])))


def number(path):
    """A chained mark for each prefix."""
    return [hash(path[: end + 1]) >> 1 for end in range(len(path))]


def rank(liked, paths, turns, now):
    return liked[paths[turns[0]][0]], inf


def test_both_sides_hold_what_dictionaries_hold():
    for seed in range(40):
        rng = random.Random(seed)
        liked = {}  # by the first block of a path, so all of a node is worth the same

        def worth(block, liked=liked):
            return liked[block[0]]

        paths = {}
        shadow = Shadow(partial(rank, liked, paths))
        sizes = [rng.randrange(1, 12), rng.randrange(12, 40)]
        sides, models = [], []
        for size in sizes:
            sides += shadow.add(size)
            models += [Blocks(size, lambda block: 0.0), Blocks(size, worth)]
        assert sides == [0, 1, 2, 3]
        running, known = [], [()]
        for step in range(120):
            if running and rng.random() < 0.45:
                turn, path = running.pop(rng.randrange(len(running)))
                shadow.finish(turn, float(step))
                for model in models:
                    model.cut([path for _, path in running])
            else:
                base = rng.choice(known)
                path = base[: rng.randrange(len(base) + 1)]
                path += tuple(rng.choices(range(3), k=rng.randrange(0 if path else 1, 5)))
                known.append(path)
                liked.setdefault(path[0], rng.random())
                turn = Turn(Conversation(step, None, False, 0), float(step))
                turn.conversation.turn = turn
                paths[turn] = path
                blocks = [path[: end + 1] for end in range(len(path))]
                expected = [model.hits(blocks) for model in models]
                assert shadow.arrive(turn, number(path)) == expected, (seed, step)
                for model in models:
                    model.held.update(blocks)
                    model.last.update(dict.fromkeys(blocks, step))
                running.append((turn, blocks))
            shadow.check_integrity()
            used = [side.used for side in shadow._sides]
            assert used == [len(model.held) for model in models], (seed, step)
        for turn, _ in running:
            shadow.finish(turn, 1e3)
        shadow.check_integrity()
        assert all(side.used <= side.capacity for side in shadow._sides)


def test_a_conversation_that_grows_is_one_node():
    policy = Policy()
    policy.guard(1000)
    for turn in range(1, 50):
        marks = list(range(turn * 3))
        one, _ = policy.arrive(float(turn), Arrival(len(marks), marks, "s"))
        policy.finish(one, turn + 0.5, Stop.TOOL, 5)
    assert len(policy._shadow) == 1
    for turn in range(50, 90):  # the last block is another each time: what was there is left behind
        marks = [*range(turn * 3 - 1), -turn]
        one, _ = policy.arrive(float(turn), Arrival(len(marks), marks, "s"))
        policy.finish(one, turn + 0.5, Stop.TOOL, 5)
        policy._shadow.check_integrity()
    assert len(policy._shadow) > 40
    for turn in range(90, 200):  # until that has gone
        marks = [*range(turn * 3 - 1), -turn]
        one, _ = policy.arrive(float(turn), Arrival(len(marks), marks, "s"))
        policy.finish(one, turn + 0.5, Stop.TOOL, 5)
    policy._shadow.check_integrity()


def test_small_prompts_do_not_make_it_grow(monkeypatch):
    monkeypatch.setattr("sglang_ext.cache.shadow._LEAVES", 50)
    policy = Policy()
    policy.guard(10**6)
    for number in range(300):
        turn, _ = policy.arrive(float(number), Arrival(20, [number], None))
        policy.finish(turn, number + 0.5, Stop.END, 5)
    assert len(policy._shadow) <= 100
    assert all(side.used == 50 for side in policy._shadow._sides)
    policy._shadow.check_integrity()


def test_what_has_left_the_tree_keeps_no_memory():
    policy = Policy()
    policy.guard(500)
    turns = []
    for number in range(60):  # each remembered by its conversation, only the last still held
        marks = [number * 1000 + place for place in range(400)]
        turn, _ = policy.arrive(float(number), Arrival(400, marks, f"s{number}"))
        policy.finish(turn, number + 0.5, Stop.END, 5)
        turns.append(turn)
    held = sum(len(turn.shadow.marks) for turn in turns)
    assert 400 <= held <= 1200


def test_nodes_that_became_one_keep_nothing_of_it():
    shadow = Shadow(lambda turns, now: (0.0, inf))
    shadow.add(10_000)
    turns, path = [], []
    for number in range(100):
        conversation = Conversation(0, "s", False, 0)
        turn = conversation.turn = Turn(conversation, float(number))
        path += [number * 10 + place for place in range(10)]
        shadow.arrive(turn, path)
        shadow.finish(turn, number + 0.5)
        for older in turns:
            older.conversation.turn = None
        turns.append(turn)
    shadow.check_integrity()
    gone = [turn.shadow for turn in turns if turn.shadow.parent is None]
    assert all(not node.marks and not node.children and not node.turns for node in gone)


def test_a_prompt_below_a_block_is_no_matter():
    policy = Policy(block_tokens=10)
    policy.guard(1000)
    turn, _ = policy.arrive(0.0, Arrival(5))
    policy.finish(turn, 1.0, Stop.END, 5)
    assert len(policy._shadow) == 0
