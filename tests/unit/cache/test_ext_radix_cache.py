"""Our radix cache as SGLang's scheduler calls it, with SGLang's own tree core and requests."""

from types import SimpleNamespace

import pytest
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from support.ext_cache import ExtCache

from sglang_ext.cache.shares import TENANTS


@pytest.fixture
def time(monkeypatch):
    """Seconds that the cache sees; set ``now``."""
    time = SimpleNamespace(now=1e6)
    stub = SimpleNamespace(time=lambda: time.now)
    monkeypatch.setattr("sglang_ext.cache.requests.time", stub)
    return time


def prompt(number, count=10):
    return [1000 * number + place for place in range(count)]


def test_invented_salts_are_counted_in_a_bounded_number_of_places(time):
    made = ExtCache(tokens=2000)
    for number in range(3 * TENANTS):
        made.serve(made.request(f"r{number}", prompt(0), cache_salt=f"salt {number}"))
    index = made.cache.tree_core.index
    index.check_integrity()
    assert len(index.mirror) == 3 * TENANTS
    assert len({node.tenant for node in index.mirror}) == TENANTS
    assert len(index.device_shares.excess(time.now)) == TENANTS


def test_a_tenant_that_comes_after_many_others_has_its_share(time):
    made = ExtCache(tokens=1000)
    for number in range(TENANTS):
        made.serve(made.request(f"old {number}", prompt(0, 1), extra_key=f"old {number}"))
    time.now += 10_000.0
    for number in range(10):
        made.serve(made.request(f"a{number}", prompt(number), cache_salt="late"))
        time.now += 1.0
    for number in range(120):
        made.serve(made.request(f"b{number}", prompt(number), extra_key="old 3"))
        time.now += 1.0
    late = [
        made.request(f"again {number}", prompt(number), cache_salt="late") for number in range(10)
    ]
    assert sum(made.arrive(req).device_prefix_len for req in late) == 100


def test_health_checks_are_not_learned_from(time):
    made = ExtCache()
    probe = made.request(f"{HEALTH_CHECK_RID_PREFIX}_1", prompt(1, 40), {"session": "s"})
    made.serve(probe)
    assert made.cache.policy.inspect()["conversations"] == 0
    assert made.cache.describe()["tokens"] == {}


def test_prompts_below_a_block_are_not_learned_from(time):
    made = ExtCache(block_tokens=16)
    made.serve(made.request("a", prompt(1, 40), {"session": "s"}))
    (alice,) = made.cache.policy.sessions.of_session("s")
    made.serve(made.request("b", prompt(2, 15), {"session": "s"}))
    assert not alice.superseded
    assert made.cache.policy.inspect()["pauses"] == 1
    assert made.cache.describe()["tokens"]["asked"] == 55
