"""What the third tier is told to forget first, on both sides of the queue."""

from types import SimpleNamespace

import pytest

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.disk_order import DiskAdvice, DiskOrder
from sglang_ext.cache.forgetting import Forgetting, TreePaths
from sglang_ext.cache.mirror import Node
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.sessions import Arrival


class Store:
    """Keys of pages are their hashes."""

    def __init__(self, ages=(), evicted=1):
        self.first, self.ages, self.gone = [], dict(ages), evicted
        self.known = set()

    def tail_keys(self, hashes):
        return [page.encode() for page in hashes]

    def know(self, keys):
        self.known.update(keys)

    def unknow(self, keys):
        self.known.difference_update(keys)

    def evict_first(self, keys):
        self.first += keys

    def evict_first_left(self):
        return len(self.first)

    def forget_first(self):
        self.first.clear()

    def oldest_stranger(self):
        strangers = [(age, key) for key, age in self.ages.items() if key not in self.known]
        return max(strangers)[::-1] if strangers else None

    def evicted(self):
        return self.gone


@pytest.fixture
def policy():
    """A policy that has seen tools come back within seconds, and persons after ten minutes."""
    policy = Policy()
    for number in range(120):
        at = 2000.0 * number
        for stop, pause in ((Stop.TOOL, 5.0), (Stop.END, 600.0)):
            turn, _ = policy.arrive(at, Arrival(100 + number, [number]))
            policy.finish(turn, at + 1.0, stop, 50)
            at += 1.0 + pause
        turn, _ = policy.arrive(at, Arrival(100 + number, [number]))
        policy.finish(turn, at + 1.0, Stop.TOOL, 50)
    assert policy.model.steps
    return policy


NOW = 300_000.0


def paused(policy, name, stop, now=NOW, blocks=4):
    turn, _ = policy.arrive(now, Arrival(100, [(name, n) for n in range(blocks)]))
    policy.finish(turn, now, stop, 50)
    return turn


def order_of(policy, *, trusted=True):
    return DiskOrder(policy, SimpleNamespace(trusted=trusted))


def test_least_worth_goes_first_and_is_named_once(policy):
    order = order_of(policy)
    for name, stop in (("person", Stop.END), ("tool", Stop.TOOL)):
        order.paused(paused(policy, name, stop), name, NOW)
    assert order.least(1, None, NOW) == ["person"]
    assert order.least(8, None, NOW) == ["tool"]
    assert order.least(8, None, NOW) == []
    assert len(order) == 0


def test_what_nobody_knows_goes_by_use_until_it_is_worth_more(policy):
    order = order_of(policy)
    order.paused(paused(policy, "tool", Stop.TOOL), "tool", NOW)
    assert order.least(8, 3000.0, NOW) == [], "a stranger's old page is worth less"
    assert order.least(8, 0.5, NOW + 3000.0) == ["tool"]


def test_nothing_is_named_that_is_not_trusted(policy):
    order = order_of(policy, trusted=False)
    order.paused(paused(policy, "person", Stop.END), "person", NOW)
    assert order.least(8, None, NOW) == []


def test_what_is_trusted_reaches_the_store():
    advice, store = DiskAdvice(), Store({b"known": 90.0, b"stranger": 50.0})
    advice.knows("known")
    advice.work(store)
    assert (store.first, store.known, advice.wanted) == ([], {b"known"}, 4)
    advice.name(["a", "b"], trusted=True)
    assert advice.wanted == 0, "nothing more before the store was looked at"
    advice.work(store)
    assert store.first == [b"a", b"b"]
    assert (advice.oldest_s, advice.wanted) == (50.0, 2)
    advice.name_stranger()
    advice.work(store)
    assert store.first == [b"a", b"b", b"stranger"]
    advice.name([], trusted=False)
    advice.work(store)
    assert store.first == []


def test_nothing_is_wanted_before_the_store_evicts():
    advice, store = DiskAdvice(), Store(evicted=0)
    advice.name([], trusted=True)
    advice.work(store)
    assert advice.wanted == 0


def nodes():
    root = Node(0, None, 0, 0)
    trunk = Node(1, root, 0, 10)
    return trunk, Node(2, trunk, 10, 20), Node(3, trunk, 10, 30)


def forgetting(policy):
    order, advice = order_of(policy), DiskAdvice()
    return Forgetting(order, advice, TreePaths(lambda node: f"page{node}")), order, advice


def test_a_path_that_was_rewritten_goes_first(policy):
    _, old, new = nodes()
    to, order, _ = forgetting(policy)
    first = paused(policy, "a", Stop.TOOL)
    first.place = old
    to.finished(first, NOW)
    second, changed = policy.arrive(NOW + 1, Arrival(100, [("a", n) for n in range(4)]))
    assert second.conversation is first.conversation
    assert first in changed
    to.changed(changed, NOW + 1)
    assert len(order) == 0, "a conversation that runs is not forgotten"
    second.place = new
    policy.finish(second, NOW + 2, Stop.TOOL, 50)
    to.finished(second, NOW + 2)
    assert order.least(2, None, NOW + 2) == ["page2", "page3"]


def test_a_path_that_has_grown_stands_once(policy):
    trunk, _, new = nodes()
    to, order, _ = forgetting(policy)
    first = paused(policy, "a", Stop.TOOL)
    first.place = trunk
    to.finished(first, NOW)
    second, changed = policy.arrive(NOW + 1, Arrival(100, [("a", n) for n in range(4)]))
    to.changed(changed, NOW + 1)
    second.place = new
    policy.finish(second, NOW + 2, Stop.TOOL, 50)
    to.finished(second, NOW + 2)
    assert order.least(8, None, NOW + 2) == ["page3"]


def test_pages_that_the_store_wants_are_named_at_the_end_of_an_answer(policy):
    _, old, _ = nodes()
    to, order, advice = forgetting(policy)
    store = Store()
    one = paused(policy, "a", Stop.END)
    one.place = old
    to.finished(one, NOW)
    advice.work(store)
    to.finished(SimpleNamespace(is_current=False, place=None), NOW)
    advice.work(store)
    assert store.first == [b"page2"]
    assert len(order) == 0
