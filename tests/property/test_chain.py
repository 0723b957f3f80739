"""A chain of nested conversations is given up at a cost that grows with its length, not faster."""

import sys

import pytest
from support.tree_driver import Driver, init_params

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.index import TreeIndex
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.ranks import Learned
from sglang_ext.cache.sessions import Arrival
from sglang_ext.cache.steering import SteeredRustCore


class Work:
    """Counts lines of ours that run, and nodes that the core is made to walk."""

    def __init__(self, core):
        self.lines = self.nodes = 0
        read = core.path_entries

        def path_entries(node_id):
            path = read(node_id)
            self.nodes += len(path)
            return path

        core._check._path = path_entries
        core._check._core = Pins(self, core)

    def _line(self, frame, event, arg):
        if "sglang_ext" not in frame.f_code.co_filename:
            return None
        self.lines += event == "line"
        return self._line

    def of(self, call, *values):
        """Work of one call: lines and nodes."""
        self.lines = self.nodes = 0
        before = sys.gettrace()
        sys.settrace(self._line)
        try:
            call(*values)
        finally:
            sys.settrace(before)
        return self.lines, self.nodes


class Pins:
    """A core whose pins are counted as the nodes of their paths."""

    def __init__(self, work, core):
        self._work, self._core = work, core

    def inc_full_pin(self, node_id):
        self._work.nodes += len(self._core.path_entries(node_id))
        self._core.inc_full_pin(node_id)

    def __getattr__(self, name):
        return getattr(self._core, name)


def chain(length, *, write_through):
    """Each conversation begins with all that the one before it has, and runs beside it."""
    policy, now = Policy(block_tokens=1), 0.0
    for number in range(60):  # enough for it to have learned
        turn, _ = policy.arrive(now, Arrival(1, [10**9 + number % 3]))
        policy.finish(turn, now, Stop.TOOL, 5)
        now += 10.0
    policy.guard(10 * length)
    assert policy.model.steps
    core = SteeredRustCore(init_params(1))
    core.steer(lambda root: TreeIndex(root, Learned(policy), 10**6, 10**6), lambda: now)
    driver = Driver(core, write_through=write_through)
    turns = []
    for end in range(1, length + 1):
        tokens = list(range(end))
        turn, changed = policy.arrive(now, Arrival(end, tokens, session=f"s{end}"))
        core.index.reconsider(changed, now)
        core.turn = turn
        driver.match(tokens)
        driver.insert(tokens)
        core.turn = None
        turns.append(turn)
    for turn in turns:
        policy.finish(turn, now, Stop.TOOL, 5)
    core.index.reconsider(turns, now)
    assert len(core.index.mirror) == length
    return driver


@pytest.mark.parametrize("write_through", [False, True])
def test_a_chain_is_evicted_at_a_cost_that_grows_with_its_length(write_through):
    found = []
    for length in (100, 400):
        driver = chain(length, write_through=write_through)
        work = Work(driver.core)
        found.append(work.of(driver.evict, length))
        assert not driver.core.full_evictable_size()
        driver.core.index.check_integrity()
        assert driver.core.counts["refused"] == driver.core.counts["own_walks"] == 0
    (lines, nodes), (lines_of_four, nodes_of_four) = found
    assert lines_of_four < 5 * lines
    assert nodes_of_four < 5 * nodes


def test_a_chain_leaves_both_tiers_at_a_cost_that_grows_with_its_length():
    found = []
    for length in (100, 400):
        driver = chain(length, write_through=True)
        work = Work(driver.core)

        def both(driver=driver, length=length):
            driver.evict(length // 2)
            for _ in range(length // 10):
                driver.evict(4)
                driver.evict_host(6)

        lines, _ = work.of(both)
        found.append(lines)
        driver.core.index.check_integrity()
        assert driver.core.counts["refused"] == driver.core.counts["own_walks"] == 0
    assert found[1] < 5 * found[0]
