"""The order of eviction and shares in it, against a dictionary."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.cache.order import EvictionOrder, FairOrder
from sglang_ext.cache.shares import Shares, Tenants

STEPS = st.lists(
    st.tuples(st.sampled_from("aad?"), st.integers(0, 9), st.floats(0.0, 5.0)), max_size=80
)


@given(STEPS, st.lists(st.floats(1.0, 9.0), min_size=10, max_size=10))
def test_the_order_equals_a_dictionary(steps, halves):
    """Worth falls in steps: it halves every ``halves[leaf]`` seconds after the leaf was added."""
    held = {}

    def worth(leaf, when):
        since = held[leaf][0]
        count = int((when - since) / halves[leaf])
        return 2.0**-count, since + (count + 1) * halves[leaf]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sglang_ext.cache.order._RERANKS", 10)  # all leaves
        _compare(EvictionOrder(worth), worth, held, steps)


def _compare(order, worth, held, steps):
    now = 0.0
    for touch, (what, leaf, pause) in enumerate(steps, start=1):
        now += pause
        if what == "a":
            held[leaf] = now, touch
            order.add(leaf, touch, now)
        elif what == "d":
            held.pop(leaf, None)
            order.discard(leaf)
        expected = min(held, key=lambda x: (worth(x, now)[0], held[x][1]), default=None)
        assert order.lowest(now) == expected
        assert len(order) == len(held)
        assert all(x in order for x in held)


def test_entries_that_no_longer_count_are_dropped():
    order = EvictionOrder(lambda leaf, now: (float(leaf), now + 1.0), lambda: True)
    for number in range(10_000):
        order.add(number % 3, number, 0.0)
    for rows in (order._lowest, order._oldest, order._due):
        assert len(rows) <= 2 * (64 + 4 * 3)


@pytest.mark.parametrize("ages", [False, True])
def test_what_has_become_due_together_is_ranked_a_few_leaves_a_call(ages):
    asked = []

    def rank(leaf, now):
        asked.append(leaf)
        return (leaf / 1e4, 10.0) if now < 10.0 else (1.0 - leaf / 1e4, inf)

    order = EvictionOrder(rank, lambda: ages)
    for leaf in range(5000):
        order.add(leaf, leaf, 0.0)
    assert order.lowest(1.0) == 0
    asked.clear()
    most = 0
    for _ in range(3000):
        before = len(asked)
        lowest = order.lowest(20.0)
        most = max(most, len(asked) - before)
    assert 0 < most <= 4
    assert len(asked) == 5000, "each leaf once"
    assert lowest == (0 if ages else 4999)


def test_recency_may_take_over_at_any_time():
    ages = False
    order = EvictionOrder(lambda leaf, now: (-float(leaf), inf), lambda: ages)
    for leaf in range(10):
        order.add(leaf, leaf, 0.0)
    assert order.lowest(0.0) == 9
    ages = True
    assert order.lowest(0.0) == 0
    order.add(0, 20, 1.0)
    assert order.lowest(1.0) == 1
    ages = False
    assert order.lowest(1.0) == 9


def test_what_is_held_comes_last_under_recency_too():
    order = EvictionOrder(lambda leaf, now: (inf if leaf == 0 else 1.0, inf), lambda: True)
    for leaf in range(3):
        order.add(leaf, leaf, 0.0)
    assert order.lowest(0.0) == 1


def test_a_time_that_is_due_at_once_is_due_once():
    asked = []

    def rank(leaf, now):
        asked.append(now)
        return 1.0, now  # as when a sum of times is rounded down

    order = EvictionOrder(rank)
    order.add("x", 1, 3.3)
    assert order.lowest(3.3) == "x"
    assert order.lowest(9.0) == "x"
    assert len(asked) == 2


def fair(capacity, worth):
    tenants = Tenants()
    shares = Shares(capacity, tenants)
    order = FairOrder(lambda leaf, now: (worth(leaf), inf), lambda leaf: leaf[0], shares)
    return tenants, shares, order


def test_a_tenant_alone_has_everything():
    tenants, shares, order = fair(10, lambda leaf: 0.0)
    for number in range(12):
        tenants.seen("a", 0.0)
        shares.charge("a", 1)
        order.add(("a", number), number, 0.0)
    assert order.lowest(0.0) == ("a", 0)


def test_no_tenant_pushes_another_below_its_share():
    # The flood says that all it has is priceless.
    tenants, shares, order = fair(100, lambda leaf: 1e9 if leaf[0] == "flood" else 0.0)
    held = {"calm": 0, "flood": 0}
    for number in range(2000):
        tenant = "calm" if number < 60 or number % 50 == 0 else "flood"
        tenants.seen(tenant, float(number) / 10)
        shares.charge(tenant, 1)
        held[tenant] += 1
        order.add((tenant, number), number, 0.0)
        while sum(held.values()) > 100:
            leaf = order.lowest(float(number) / 10)
            order.discard(leaf)
            shares.charge(leaf[0], -1)
            held[leaf[0]] -= 1
        if number > 60:
            assert held["calm"] >= 50
    assert held == {"calm": shares.held("calm"), "flood": shares.held("flood")}


def test_a_tenant_that_left_is_not_protected():
    tenants, shares, order = fair(10, lambda leaf: 1.0 if leaf[0] == "b" else 0.0)
    tenants.seen("a", 0.0)
    shares.charge("a", 4)
    order.add(("a", 0), 0, 0.0)
    tenants.seen("b", 1.0)
    shares.charge("b", 6)
    order.add(("b", 0), 1, 1.0)
    assert order.lowest(1.0) == ("b", 0)
    assert order.lowest(1000.0) == ("a", 0)


def test_leaves_change_hands():
    owner = {"x": "a"}
    shares = Shares(10, Tenants())
    order = FairOrder(lambda leaf, now: (0.0, inf), owner.__getitem__, shares)
    order.add("x", 0, 0.0)
    owner["x"] = "b"
    order.add("x", 1, 0.0)
    assert len(order) == 1
    order.discard("x")
    assert order.lowest(0.0) is None
    assert "x" not in order
