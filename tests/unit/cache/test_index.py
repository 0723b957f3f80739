"""Which leaf goes first, in each tier."""

from array import array

import pytest

from sglang_ext.cache.index import TreeIndex
from sglang_ext.cache.mirror import PathEntry
from sglang_ext.cache.policy import Policy
from sglang_ext.cache.ranks import Learned, Recency
from sglang_ext.cache.sessions import Arrival
from sglang_ext.errors import MirrorError


@pytest.fixture
def index():
    return TreeIndex(0, Recency(), 100, 100)


def add(index, node_id, parent_id=0, begin=0, end=10, device=True, tenant=""):
    path = [
        PathEntry(n.id, n.parent.id, n.begin, n.end, len(n), len(n.children))
        for n in reversed(list(index.mirror.path(index.get(parent_id))))
    ]
    path.append(PathEntry(node_id, parent_id, begin, end, end - begin if device else None, 0))
    node, _ = index.learn(path, lambda begin: (node_id, begin), 0.0, tenant)
    node.tokens = array("q", range(end))
    index.touch(node, None, 0.0)
    return node


def test_least_recent_leaf_goes_first(index):
    first, second = add(index, 1), add(index, 2)
    assert index.device.lowest(0.0) is first
    index.touch(first, None, 1.0)
    assert index.device.lowest(1.0) is second


def test_inner_node_comes_up_when_its_children_have_left_the_device(index):
    top = add(index, 1)
    low = add(index, 2, 1, 10, 20)
    other = add(index, 3)
    assert top not in index.device
    index.to_host(low, 1.0)
    assert top in index.device
    assert low in index.host
    assert top.touch == low.touch < other.touch
    assert index.device.lowest(1.0) is top
    index.to_device(low, 2.0)
    assert top not in index.device
    assert low not in index.host
    index.check_integrity()


def test_locked_leaf_is_no_candidate(index):
    node = add(index, 1)
    index.lock(node)
    index.lock(node)
    assert index.device.lowest(0.0) is None
    index.unlock(node, 0.0)
    assert index.device.lowest(0.0) is None
    index.unlock(node, 0.0)
    assert index.device.lowest(0.0) is node


def test_lock_in_host_memory_holds_what_is_above_it_on_the_device(index):
    top = add(index, 1)
    low = add(index, 2, 1, 10, 20)
    index.to_host(low, 0.0)
    index.lock(low)
    assert index.is_locked(top)
    assert index.device.lowest(0.0) is None
    assert index.host.lowest(0.0) is None
    index.check_integrity()
    index.unlock(low, 0.0)
    assert index.device.lowest(0.0) is top
    assert index.host.lowest(0.0) is low


def test_gone_takes_what_is_below_in_host_memory(index):
    top = add(index, 1)
    low = add(index, 2, 1, 10, 20)
    with pytest.raises(MirrorError, match="on the device"):
        index.gone(top, 0.0)
    index.to_host(low, 0.0)
    index.gone(top, 0.0)
    assert len(index.mirror) == 0
    index.check_integrity()


def test_no_tenant_pushes_out_another_beyond_its_share(index):
    index.device_shares.capacity = 40
    for tenant in ("a", "b"):
        index.tenants.seen(tenant, 0.0)
    mine = add(index, 1, tenant="a")
    theirs = [add(index, 10 + n, tenant="b") for n in range(3)]
    assert index.device.lowest(0.0) is theirs[0]  # 30 of 40, with a share of 20
    assert index.device_shares.held("a") == 10
    index.to_host(mine, 0.0)
    assert index.device_shares.held("a") == 0
    assert index.host_shares.held("a") == 10
    index.check_integrity()


def test_what_a_conversation_has_left_behind_goes_first():
    policy = Policy()
    index = TreeIndex(0, Learned(policy), 100, 100)
    turn, _ = policy.arrive(0.0, Arrival(10, [1], "s"))
    old, other = add(index, 1), add(index, 2)
    index.touch(old, turn, 0.0)
    assert turn.place is old
    assert index.device.lowest(0.0) is other  # a request that runs is worth the most
    _, changed = policy.arrive(1.0, Arrival(20, [1, 2], "s"))
    policy.model.steps = 1  # a cold policy equals LRU and keeps the order of ages
    index.reconsider(changed, 1.0)
    assert index.device.lowest(1.0) is old
