"""Our radix cache as SGLang's scheduler calls it, with SGLang's own tree core and requests."""

from math import inf
from types import SimpleNamespace

import pytest
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.runtime_context import derive_attention_ranks, derive_attn_tp_size
from support.ext_cache import ExtCache

from sglang_ext.cache.conversation import Stop
from sglang_ext.cache.server import tool_calls, writes_log
from sglang_ext.cache.shares import TENANTS


@pytest.fixture
def time(monkeypatch):
    """Seconds that the cache sees; set ``now``."""
    time = SimpleNamespace(now=1e6)
    stub = SimpleNamespace(time=lambda: time.now, monotonic=lambda: time.now)
    monkeypatch.setattr("sglang_ext.cache.requests.time", stub)
    monkeypatch.setattr("sglang_ext.cache.tree.time", stub)
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
    probe = made.request(f"{HEALTH_CHECK_RID_PREFIX}_1", prompt(1, 40))
    probe.kv_hints = None  # nothing travels with it
    made.serve(probe)
    assert made.cache.policy.inspect()["conversations"] == 0
    assert made.cache.describe()["tokens"] == {}


def test_a_client_that_names_its_request_like_a_health_check_has_books(time):
    made = ExtCache()
    rid = f"{HEALTH_CHECK_RID_PREFIX}_mine"
    made.serve(made.request(rid, prompt(1, 40), {"received": 1.0}, cache_salt="mine"))
    assert made.cache.policy.inspect()["conversations"] == 1
    assert made.cache.describe()["tokens"]["asked"] == 40
    tenants = {node.tenant for node in made.cache.tree_core.index.mirror}
    made.serve(made.request("b", prompt(2, 40), {"received": 1.0}, cache_salt="mine"))
    assert {node.tenant for node in made.cache.tree_core.index.mirror} == tenants


def test_prompts_below_a_block_are_not_learned_from(time):
    made = ExtCache(block_tokens=16)
    made.serve(made.request("a", prompt(1, 40), {"session": "s"}))
    (alice,) = made.cache.policy.sessions.of_session("s")
    made.serve(made.request("b", prompt(2, 15), {"session": "s"}))
    assert not alice.superseded
    assert made.cache.policy.inspect()["pauses"] == 1
    assert made.cache.describe()["tokens"]["asked"] == 55


def test_a_request_is_one_arrival_however_often_it_is_looked_up(time):
    made = ExtCache()
    req = made.request("a", prompt(1, 40))
    made.arrive(req)
    made.insert(req)
    made.cache.on_release(req, checkpointed=False)  # retracted
    assert len(made.cache.requests) == 1
    made.arrive(req)
    made.finish(req)
    assert len(made.cache.requests) == 0
    assert made.cache.policy.inspect()["conversations"] == 1


def test_a_flush_undoes_pins_and_refused_ones_are_shown(time):
    made = ExtCache(tokens=1000, pin_share=0.05)
    for number in range(2):
        made.serve(made.request(f"r{number}", prompt(number, 40), {"session": f"s{number}"}))
    first, second = made.cache.policy.sessions.latest(2)
    sessions = first.session, second.session
    assert [made.cache.advise("pin", session, 60.0) for session in sessions] == [1, 0]
    assert made.cache.describe()["tokens"]["advice_pin_refused"] == 1
    made.cache.reset()
    made.allocator.clear()
    assert made.cache.policy.worth(first.turn, time.now)[0] < inf
    made.serve(made.request("r2", prompt(1, 40), {"session": "s1"}))
    assert made.cache.advise("pin", sessions[1], 60.0) == 1


def test_the_log_of_requests_is_shown(time, tmp_path):
    made = ExtCache(record_file=str(tmp_path / "log"))
    assert made.cache.describe()["record"] == {"written": 0, "dropped": 0, "full": False}
    made.serve(made.request("a", prompt(1, 40)))
    made.cache._log.close()
    assert made.cache.describe()["record"] == {"written": 1, "dropped": 0, "full": False}
    assert "record" not in ExtCache().cache.describe()


def test_an_aborted_request_ends(time):
    made = ExtCache()
    req = made.request("a", prompt(1, 40))
    made.arrive(req)
    made.cache.release_aborted_request(req.cache_request_handle)
    assert len(made.cache.requests) == 0
    assert made.cache.policy.inspect()["pauses"] == 1


def test_answers_to_one_prompt_are_requests_of_their_own(time):
    made = ExtCache()
    both = [made.request(rid, prompt(1, 40)) for rid in "ab"]
    for req in both:
        made.arrive(req)
        made.insert(req)
    for req in both:
        made.finish(req)
    assert len(made.cache.requests) == 0
    assert made.cache.describe()["tokens"]["asked"] == 80


def test_a_request_of_a_streaming_session_ends(time):
    made = ExtCache()
    req = made.request("a", prompt(1, 40))
    req.cached_tokens_device = 16
    made.arrive(req)
    assert made.claim(req)
    assert len(made.cache.requests) == 0
    assert made.cache.describe()["tokens"]["hit_device"] == 16
    assert made.cache.policy.inspect()["pauses"] == 1


@pytest.mark.parametrize(
    "part", ["requests.arrive", "requests.end", "requests.advise", "regret.asked"]
)
def test_a_fault_in_the_books_does_not_reach_the_scheduler(time, monkeypatch, part):
    made = ExtCache()

    def fail(*args, **kwargs):
        raise FloatingPointError(part)

    holder, name = part.split(".")
    told = {"advice": [[0, "end", "s", 0.0]]}
    whole, gone = made.request("a", prompt(1, 40), told), made.request("b", prompt(2, 40))
    with monkeypatch.context() as patch:
        patch.setattr(getattr(made.cache, holder), name, fail)
        made.arrive(whole)
        made.arrive(gone)
        made.insert(whole)
        made.finish(whole)
        made.cache.release_aborted_request(gone.cache_request_handle)
    assert made.cache.describe()["tokens"]["faults"] > 0
    later = made.request("c", [*prompt(1, 40), 5])
    assert made.arrive(later).device_prefix_len == 40


@pytest.mark.parametrize("part", ["_stop", "_count_hits", "_log"])
def test_a_request_ends_whatever_fails_at_its_end(time, monkeypatch, part):
    made = ExtCache()
    log = SimpleNamespace(put=lambda *what: 1 / 0, describe=dict)
    fails = log if part == "_log" else lambda *what: 1 / 0
    monkeypatch.setattr(made.cache, part, fails)
    req = made.request("a", prompt(1, 40))
    made.arrive(req)
    turn = made.cache.requests.get("a").turn
    made.insert(req)
    made.finish(req)
    assert len(made.cache.requests) == 0
    assert turn.conversation.stop != Stop.RUNNING
    assert made.cache.policy.worth(turn, time.now)[0] < inf
    assert made.cache.describe()["tokens"]["faults"] == 1


@pytest.mark.parametrize("name", ["lock", "unlock"])
def test_a_fault_in_the_mirror_does_not_reach_the_scheduler(time, monkeypatch, name):
    made = ExtCache()
    req = made.request("a", prompt(1, 40))
    made.arrive(req)
    node = made.insert(req).last_device_node
    monkeypatch.setattr(made.cache.tree_core.index, name, lambda *args: 1 / 0)
    held = made.cache.inc_lock_ref(node)
    made.cache.dec_lock_ref(node, held.to_dec_params())
    assert made.cache.describe()["moves"]["lost"] == 1


def test_a_busy_server_keeps_what_it_learned(time, tmp_path):
    state = tmp_path / "policy.state"
    made = ExtCache(state_file=str(state))
    made.arrive(made.request("runs on", prompt(0, 40)))
    times = []
    for number in range(1, 25):
        time.now += 100.0
        made.serve(made.request(f"r{number}", prompt(number, 20)))
        assert made.cache._learned._join(10.0)  # another thread writes
        if state.exists():
            times.append(number)
            state.unlink()
    assert times == [6, 12, 18, 24]


def test_an_idle_server_keeps_it_at_once(time, tmp_path):
    made = ExtCache(state_file=str(tmp_path / "policy.state"))
    time.now += 100.0
    made.serve(made.request("a", prompt(0, 40)))
    assert made.cache._learned._join(10.0)
    assert (tmp_path / "policy.state").exists()


@pytest.mark.parametrize(("groups", "context"), [(1, 1), (2, 1), (4, 1), (2, 2)])
def test_one_rank_of_each_attention_group_logs_its_requests(groups, context):
    size = 8
    width = derive_attn_tp_size(tp_size=size, attn_cp_size=context, attn_dp_size=groups)
    writers = []
    for rank in range(size):
        tensor, group = derive_attention_ranks(
            tp_rank=rank, attn_tp_size=width, attn_cp_size=context
        )
        place = SimpleNamespace(attn_tp_rank=tensor, attn_cp_rank=rank // width % context)
        if writes_log(place):
            writers.append(group)
    assert writers == list(range(groups))


def test_a_parser_that_cannot_be_made_is_told(caplog):
    tool_calls("no such parser", None)
    assert "no such parser" in caplog.text
    caplog.clear()
    tool_calls("", None)
    assert not caplog.text
