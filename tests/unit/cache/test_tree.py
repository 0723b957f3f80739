"""What SGLang's scheduler calls on our cache, and what the policy hears of it."""

import logging
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
from support.rank_child import made, request
from support.tree_driver import Driver

from sglang_ext.cache import unharmed


@pytest.fixture
def cache():
    return made(None, "")


def arrives(cache, rid="a", **fields):
    one = request(rid, range(16), 1000.0, "s")
    vars(one).update(fields)
    cache.match_prefix(MatchPrefixParams(key=RadixKey(one.origin_input_ids), req=one))
    return one


def stops(one):
    one.output_ids = [0] * 3
    one.finished_reason = SimpleNamespace(to_json=lambda: {"type": "stop"})
    one.finished = lambda: True
    return one


@dataclass(frozen=True)
class Handle:
    """Names a request that was aborted."""

    rid: str


def conversations(cache):
    return cache.policy.inspect()["conversations"]


def test_an_answer_ends_its_request(cache):
    one = arrives(cache)
    cache.on_release(one, checkpointed=True)  # it was retracted and goes on later
    assert len(cache.requests) == 1
    cache.on_release(stops(one), checkpointed=True)
    assert (len(cache.requests), conversations(cache)) == (0, 1)


def test_an_abort_ends_its_request(cache):
    cache.release_aborted_request(Handle(arrives(cache).rid))
    assert len(cache.requests) == 0


def test_a_row_that_a_streaming_session_keeps_ends_its_request(cache, monkeypatch):
    monkeypatch.setattr(UnifiedRadixCache, "claim_kv_row", lambda self, req: req.streams)
    one = arrives(cache, streams=True)
    assert cache.claim_kv_row(one)
    assert len(cache.requests) == 1
    assert cache.claim_kv_row(stops(one))
    assert len(cache.requests) == 0
    other = stops(arrives(cache, "b", streams=False))
    assert not cache.claim_kv_row(other)
    assert len(cache.requests) == 1, "its release is still to come"


def test_health_checks_are_no_requests(cache):
    arrives(cache, f"{HEALTH_CHECK_RID_PREFIX}_1")
    assert (len(cache.requests), conversations(cache)) == (0, 0)


@pytest.mark.parametrize("fault", ["arrive", "end"])
def test_a_fault_in_the_policy_ends_no_scheduler(cache, monkeypatch, caplog, fault):
    def fail(*args, **kwargs):
        raise FloatingPointError("wrong")

    monkeypatch.setattr(unharmed, "_gate", unharmed.LogGate())
    monkeypatch.setattr(cache.requests, fault, fail)
    with caplog.at_level(logging.ERROR):
        cache.on_release(stops(arrives(cache)), checkpointed=True)
        cache.release_aborted_request(Handle(arrives(cache, "b").rid))
    assert any("FloatingPointError" in record.exc_text for record in caplog.records)


def test_a_fault_in_what_is_known_of_locks_only_ends_the_steering(cache, monkeypatch):
    def fail(*args, **kwargs):
        raise FloatingPointError("wrong")

    core = cache.tree_core
    node = Driver(core, write_through=False).insert(range(16)).last_device_node
    monkeypatch.setattr(type(core.index), "lock", fail)
    lock = core.inc_lock_ref(node).to_dec_params()
    assert core.index is None
    assert core.counts["lost"] == 1
    core.dec_lock_ref(node, lock)
