"""The attention backend on SGLang's own pools, layers and batches, against a float64 oracle."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from support.attention_world import DIM, LatentWorld, Request, World, draw, scattered

from sglang_ext.device.paged_attention import Workspace

pytestmark = pytest.mark.usefixtures("one_thread")


requests_of_any_mix = st.lists(
    st.builds(Request, st.integers(0, 90), st.integers(1, 90), st.integers(0, 1000)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=80, deadline=None)
@given(
    requests=requests_of_any_mix,
    geometry=st.sampled_from([(9, 3), (4, 4), (8, 1)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    window=st.one_of(st.just(-1), st.integers(1, 120)),
    longest_run=st.sampled_from([1, 5, 40, 4000]),
    min_run=st.sampled_from([1, 8, 256]),
    decodes=st.integers(0, 3),
)
def test_any_batch_matches_the_oracle(
    requests, geometry, dtype, window, longest_run, min_run, decodes
):
    for request in requests[:decodes]:
        request.new = 1
    world = World(
        heads=geometry[0], kv_heads=geometry[1], dtype=dtype, window=window, min_run=min_run
    )
    slots = scattered(sum(r.tokens for r in requests), longest_run, seed=7)
    mode = ForwardMode.MIXED if decodes else ForwardMode.EXTEND
    world.check(requests, slots, mode)


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=8),
    window=st.one_of(st.just(-1), st.integers(1, 200)),
    longest_run=st.sampled_from([1, 40, 4000]),
)
def test_decode_matches_the_oracle(lengths, window, longest_run):
    requests = [Request(cached, 1, seed) for seed, cached in enumerate(lengths)]
    slots = scattered(sum(r.tokens for r in requests), longest_run, seed=3)
    World(window=window).check(requests, slots, ForwardMode.DECODE)


@pytest.mark.parametrize("mode", [ForwardMode.EXTEND, ForwardMode.SPLIT_PREFILL])
@pytest.mark.parametrize("logit_cap", [0.0, 2.0])
@pytest.mark.parametrize("v_dim", [8, 16, 24])
def test_capped_logits_and_values_of_another_width(v_dim, logit_cap, mode):
    requests = [Request(0, 70, 1), Request(33, 5, 2), Request(70, 1, 3)]
    World(v_dim=v_dim, logit_cap=logit_cap).check(requests, scattered(179, 9, 1), mode)


@settings(max_examples=30, deadline=None)
@given(
    requests=requests_of_any_mix,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    longest_run=st.sampled_from([1, 40, 4000]),
    decodes=st.integers(0, 5),
)
def test_latent_attention_on_its_own_pool(requests, dtype, longest_run, decodes):
    for request in requests[:decodes]:
        request.new = 1
    slots = scattered(sum(r.tokens for r in requests), longest_run, seed=7)
    modes = (ForwardMode.EXTEND, ForwardMode.MIXED, ForwardMode.DECODE)
    mode = modes[(decodes > 0) + (decodes >= len(requests))]
    LatentWorld(heads=4, dtype=dtype).check(requests, slots, mode)


def test_latents_are_gathered_once(monkeypatch):
    gathered = []
    real = Workspace.gather
    monkeypatch.setattr(Workspace, "gather", lambda *args: gathered.append(args) or real(*args))
    LatentWorld(heads=4).check([Request(40, 3, 5)], scattered(43, 1, 1), ForwardMode.EXTEND)
    assert len(gathered) == 1


def test_keys_of_each_head_beside_a_pool_of_latents():
    """What a latent model does with a prompt of which nothing is cached, on one rank."""
    world, request = LatentWorld(heads=4), Request(0, 9, 5)
    each = RadixAttention(4, 12, 0.3, 4, 0, v_head_dim=6)
    q, k, v = draw(1, 9, 4, 12), draw(2, 9, 4, 12), draw(3, 9, 4, 6)
    batch = world.batch([request], range(1, 10), ForwardMode.EXTEND)
    world.backend.init_forward_metadata(batch)
    out = world.backend.forward_extend(q.flatten(1), k, v, each, batch, save_kv_cache=False)
    scores = torch.einsum("qhd,khd->hqk", q, k).double() * 0.3
    weights = scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1)
    expected = torch.einsum("hqk,khd->qhd", weights, v.double()).flatten(1)
    torch.testing.assert_close(out.double(), expected, atol=2e-6, rtol=0)


def test_a_request_does_not_feel_its_neighbours():
    requests = [Request(90, 30, 1), Request(7, 1, 2), Request(0, 64, 3), Request(200, 9, 4)]
    slots = scattered(sum(r.tokens for r in requests), 12, 2)
    world = World()
    together = world.run(world.batch(requests, slots, ForwardMode.MIXED), requests)
    row = 0
    for request in requests:
        own, slots = slots[: request.tokens], slots[request.tokens :]
        alone = World()
        out = alone.run(alone.batch([request], own, ForwardMode.MIXED), [request])
        assert torch.equal(out, together[row : row + request.new])
        row += request.new


@pytest.mark.parametrize("window", [-1, 100])
@pytest.mark.parametrize("cached", [1, 16, 256, 399])
def test_a_cached_prefix_changes_nothing_that_can_be_seen(cached, window):
    slots = scattered(400, 30, 4)
    cold_world, warm_world = World(window=window), World(window=window)
    cold, warm = Request(0, 400, 9), Request(cached, 400 - cached, 9)
    uncached = cold_world.run(cold_world.batch([cold], slots, ForwardMode.EXTEND), [cold])
    out = warm_world.run(warm_world.batch([warm], slots, ForwardMode.EXTEND), [warm])
    torch.testing.assert_close(out, uncached[cached:], atol=2e-6, rtol=0)


@pytest.mark.parametrize("window", [-1, 20])
def test_new_tokens_are_written_to_their_slots(window):
    request, slots = Request(30, 12, 6), scattered(42, 5, 6)
    world = World(window=window)
    world.run(world.batch([request], slots, ForwardMode.EXTEND), [request])
    _, k, v = world.qkv(request)
    assert torch.equal(world.pool.k_buffer[0][slots], k)
    assert torch.equal(world.pool.v_buffer[0][slots], v)


@pytest.mark.parametrize("window", [-1, 20])
def test_keys_that_another_layer_has_stored_are_read_from_the_pool(window):
    requests, slots = [Request(30, 12, 6), Request(9, 1, 7)], scattered(52, 5, 6)
    world = World(window=window)
    batch = world.batch(requests, slots, ForwardMode.EXTEND)
    first = world.run(batch, requests)
    assert torch.equal(world.run(batch, requests, without_kv=True), first)


@pytest.mark.parametrize("new", [1, 12])
@pytest.mark.parametrize("cached", [0, 30])
@pytest.mark.parametrize("window", [-1, 20])
def test_keys_that_are_not_stored_are_used_all_the_same(window, cached, new):
    request = Request(cached, new, 6)
    world = World(window=window)
    batch = world.batch([request], scattered(42, 5, 6), ForwardMode.EXTEND)
    out = world.run(batch, [request], save_kv_cache=False)
    assert world.pool.k_buffer[0][batch.out_cache_loc].isnan().all()
    torch.testing.assert_close(out.double(), world.expected([request]), atol=2e-6, rtol=0)


def test_rows_of_no_request_are_zero():
    requests = [Request(3, 2, 1), Request(5, 1, 2)]
    world = World()
    batch = world.batch(requests, range(1, 12), ForwardMode.EXTEND)
    world.backend.init_forward_metadata(batch)
    q = torch.full((6, 9 * DIM), torch.nan)
    q[:3] = 1.0
    k = v = torch.ones(3, 3 * DIM)
    batch.out_cache_loc = batch.out_cache_loc[:3]
    layer = world.layers[0]
    world.backend.forward(q[:3], k.view(3, 3, DIM), v.view(3, 3, DIM), layer, batch)
    out = world.backend.forward(q, None, None, layer, batch)
    assert out[:3].isfinite().all()
    assert torch.equal(out[3:], torch.zeros(3, 9 * DIM))


def test_a_request_without_tokens_between_others_leaves_a_zero_row():
    requests = [Request(30, 1, 1), Request(0, 1, 2), Request(9, 1, 3)]
    world = World()
    batch = world.batch(requests, range(1, 43), ForwardMode.DECODE)
    batch.seq_lens[1] = 0  # what a data-parallel rank pads its batch with
    out = world.run(batch, requests)
    assert torch.equal(out[1], torch.zeros(9 * DIM))
    kept = [requests[0], requests[2]]
    torch.testing.assert_close(out[[0, 2]].double(), world.expected(kept), atol=2e-6, rtol=0)


def test_a_window_pool_keeps_only_the_window():
    window, request = 20, Request(90, 3, 8)
    pool = SWAKVPool(
        size=255,
        size_swa=63,
        page_size=1,
        dtype=torch.float32,
        head_num=3,
        head_dim=DIM,
        swa_attention_layer_ids=[1],
        full_attention_layer_ids=[0],
        device="cpu",
    )
    slots = scattered(request.tokens, 6, 2)
    kept = slots[request.cached - window :]
    mapping = torch.zeros(257, dtype=torch.int64)  # slot 0: dropped from the window pool
    mapping[kept] = torch.tensor(scattered(len(kept), 4, 3))
    pool.register_mapping(mapping)
    world = World(pool=pool, layers=2, window=window)
    world.layers[0].sliding_window_size = -1
    for layer_id, positions in ((0, slice(0, 90)), (1, slice(90 - window, 90))):
        _, k, v = world.qkv(request, layer_id)
        own = torch.tensor(slots[positions])
        buffer = pool.full_kv_pool if layer_id == 0 else pool.swa_kv_pool
        at = own if layer_id == 0 else mapping[own]
        buffer.k_buffer[0][at], buffer.v_buffer[0][at] = k[positions], v[positions]
    batch = world.batch([request], slots, ForwardMode.EXTEND, store=False)
    out = world.run(batch, [request])
    torch.testing.assert_close(out.double(), world.expected([request], 1), atol=2e-6, rtol=0)
    new = mapping[slots[request.cached :]]
    assert torch.equal(pool.swa_kv_pool.k_buffer[0][new], world.qkv(request, 1)[1][90:])


def test_cached_keys_are_waited_for_layer_by_layer():
    requests, waited = [Request(30, 2, 1)], []
    world = World(layers=3)
    batch = world.batch(requests, range(1, 33), ForwardMode.EXTEND)
    world.pool.register_layer_transfer_counter(SimpleNamespace(wait_until=waited.append))
    world.run(batch, requests)
    assert list(dict.fromkeys(waited)) == [0, 1, 2]


def test_an_idle_batch_needs_no_plan():
    world = World()
    batch = world.batch([Request(0, 1, 1)], [1], ForwardMode.EXTEND)
    batch.forward_mode = ForwardMode.IDLE
    world.backend.init_forward_metadata(batch)
    assert world.backend.forward_metadata is None
