"""Attention of split batches on SGLang's own pools and layers, against a float64 oracle."""

import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from support.attention_world import BOUND, DIM, SLOTS, LatentWorld, Request, World, scattered

from sglang_ext.context_parallel.backend import SplitAttentionBackend
from sglang_ext.context_parallel.plan import Plan, plan
from sglang_ext.context_parallel.strategy import PlannedMetadata
from sglang_ext.errors import DeviceError

LAYERS, WAIT_S = 2, 60


class Meeting:
    """Ranks that are threads: every AllGather is a place where all of them leave their rows."""

    def __init__(self, ranks):
        self.ranks = ranks
        self._left = defaultdict(dict)
        self._changed = threading.Condition()

    def group(self, rank):
        return Seat(self, rank)

    def leave(self, number, rank, rows):
        with self._changed:
            self._left[number][rank] = rows.clone()
            self._changed.notify_all()

    def all_of(self, number):
        with self._changed:
            left = self._left[number]
            assert self._changed.wait_for(lambda: len(left) == self.ranks, WAIT_S)
        return torch.cat([left[rank] for rank in range(self.ranks)])


class Seat:
    """A rank's group."""

    def __init__(self, meeting, rank):
        self.meeting, self.rank, self.calls = meeting, rank, 0
        self.ranks = meeting.ranks

    def start(self, output, rows):
        number = self.calls
        self.calls += 1
        self.meeting.leave(number, self.rank, rows)
        return SimpleNamespace(wait=lambda: output.copy_(self.meeting.all_of(number)))


def named(runner, architecture="LlamaForCausalLM"):
    runner.model_config.hf_config = SimpleNamespace(architectures=[architecture])
    return runner


def split_over(worlds, requests, slots, mode):
    """What :func:`run_rank` returns on each rank, a rank a world."""
    meeting = Meeting(len(worlds))
    with ThreadPoolExecutor(len(worlds)) as threads:
        running = [
            threads.submit(run_rank, rank, meeting, requests, slots, mode, world)
            for rank, world in enumerate(worlds)
        ]
        return [rank.result(WAIT_S) for rank in running]


def check_ranks(worlds, requests, results):
    """Every rank's rows against the oracle, its AllGathers, and its cache against the others'."""
    for layer_id in range(LAYERS):
        expected = worlds[0].expected([r for r in requests if r.new], layer_id)
        for mine, outs, calls in results:
            out = outs[layer_id]
            bound = BOUND[worlds[0].dtype]
            torch.testing.assert_close(
                out[: len(mine)].double(), expected[mine], atol=bound, rtol=0
            )
            assert not out[len(mine) :].any()  # padding
            assert calls == LAYERS
    # All ranks have the keys of all tokens, bit for bit; slot 0 is SGLang's for padding.
    for buffers in zip(*(world.buffers() for world in worlds), strict=True):
        for other in buffers[1:]:
            torch.testing.assert_close(other[1:], buffers[0][1:], atol=0, rtol=0, equal_nan=True)


def run_rank(rank, meeting, requests, slots, mode, world):
    """Output of each layer for this rank's rows, and AllGathers."""
    found = plan([r.new for r in requests], [r.cached for r in requests], meeting.ranks)
    batch = world.batch(requests, slots, mode)
    mine = torch.from_numpy(found.rows_of(rank))
    rows = found.rows + 3  # SGLang pads further
    batch.attn_cp_metadata = PlannedMetadata(
        plan=found, rank=rank, mine=mine, per_rank_actual_token=[rows] * meeting.ranks
    )
    group = meeting.group(rank)
    backend = SplitAttentionBackend(named(world.runner), group)
    backend.init_forward_metadata(batch)
    outs = []
    for layer_id, layer in enumerate(world.layers):
        parts = [[t[r.cached :] for t in world.qkv(r, layer_id)] for r in requests]
        padded = []
        for tensors in zip(*parts, strict=True):
            whole = torch.cat(tensors)
            local = whole.new_full((rows, *whole.shape[1:]), torch.nan)
            local[: len(mine)] = whole[mine]
            padded.append(local)
        q, k, v = padded
        outs.append(backend.forward_extend(q.flatten(1), k, v, layer, batch))
    return mine, outs, group.calls


batches = st.lists(
    st.builds(Request, st.integers(0, 90), st.integers(0, 90), st.integers(0, 1000)),
    min_size=1,
    max_size=5,
).filter(lambda batch: sum(r.new for r in batch))


@settings(max_examples=25, deadline=None)
@given(
    requests=batches,
    geometry=st.sampled_from([(9, 3), (4, 4), (8, 1)]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    longest_run=st.sampled_from([1, 5, 4000]),
    ranks=st.sampled_from([2, 3, 4]),
    mode=st.sampled_from([ForwardMode.EXTEND, ForwardMode.MIXED]),
)
def test_any_batch_matches_the_oracle(requests, geometry, dtype, longest_run, ranks, mode):
    torch.set_num_threads(1)
    slots = scattered(sum(r.tokens for r in requests), longest_run, seed=7)
    worlds = [
        World(heads=geometry[0], kv_heads=geometry[1], dtype=dtype, layers=LAYERS)
        for _ in range(ranks)
    ]
    check_ranks(worlds, requests, split_over(worlds, requests, slots, mode))


@settings(max_examples=15, deadline=None)
@given(
    requests=batches,
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    longest_run=st.sampled_from([1, 5, 4000]),
    ranks=st.sampled_from([2, 3]),
)
def test_latents_match_the_oracle(requests, dtype, longest_run, ranks):
    torch.set_num_threads(1)
    slots = scattered(sum(r.tokens for r in requests), longest_run, seed=7)
    worlds = [LatentWorld(heads=4, dtype=dtype, layers=LAYERS) for _ in range(ranks)]
    check_ranks(worlds, requests, split_over(worlds, requests, slots, ForwardMode.EXTEND))


def test_a_latent_travels_once():
    """A row is latent and rotary part; the values lie in it."""
    sent = []
    seat = Meeting(1).group(0)
    plain = seat.start
    seat.start = lambda output, rows: sent.append(rows.shape) or plain(output, rows)
    world = LatentWorld(heads=4, latent=24, rotary=8)
    run_rank(
        0,
        SimpleNamespace(ranks=1, group=lambda _: seat),
        [Request(3, 9, 1)],
        range(1, 13),
        ForwardMode.EXTEND,
        world,
    )
    assert sent == [(9, (24 + 8) * 4)]


def test_keys_of_each_head_of_a_latent_model_are_refused():
    world = LatentWorld(heads=4)
    requests = [Request(0, 4, 1)]
    batch = world.batch(requests, [1, 2, 3, 4], ForwardMode.EXTEND)
    found = plan([4], [0], 1)
    batch.attn_cp_metadata = PlannedMetadata(
        plan=found, rank=0, mine=torch.arange(4), per_rank_actual_token=[4]
    )
    backend = SplitAttentionBackend(named(world.runner, "DeepseekV3ForCausalLM"), seat_of_one())
    backend.init_forward_metadata(batch)
    each = RadixAttention(4, 12, 0.3, 4, 0, v_head_dim=6)
    q, k, v = torch.zeros(4, 48), torch.zeros(4, 4, 12), torch.zeros(4, 4, 6)
    with pytest.raises(DeviceError, match="computes keys of each head"):
        backend.forward_extend(q, k, v, each, batch)


def seat_of_one():
    return Meeting(1).group(0)


def test_what_slices_attend_to_is_found_once_a_forward(monkeypatch):
    asked = []
    real = Plan.slices
    monkeypatch.setattr(Plan, "slices", lambda *args: asked.append(args) or real(*args))
    requests = [Request(5, 40, 1), Request(0, 9, 2)]
    slots = scattered(sum(r.tokens for r in requests), 5, seed=1)
    run_rank(0, Meeting(1), requests, slots, ForwardMode.EXTEND, World(layers=3))
    assert len(asked) == 1


def split_backend(**options):
    return SplitAttentionBackend(named(World(**options).runner), Meeting(2).group(0))


def test_a_decode_step_is_computed_as_on_one_rank():
    requests = [Request(40, 1, 1), Request(7, 1, 2)]
    world = World()
    world.backend = SplitAttentionBackend(named(world.runner), Meeting(2).group(0))
    slots = scattered(sum(r.tokens for r in requests), 5, seed=1)
    world.check(requests, slots, ForwardMode.DECODE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 8}, "a sliding window"),
        ({"logit_cap": 5.0}, "capped logits"),
        ({"v_dim": DIM // 2}, "values of another width"),
    ],
)
def test_layers_that_are_not_split_are_refused_at_start(options, said):
    with pytest.raises(DeviceError, match=said):
        split_backend(**options)


def test_models_that_were_not_tried_are_refused_at_start():
    world = World()
    with pytest.raises(DeviceError, match="GemmaForCausalLM is not among"):
        SplitAttentionBackend(named(world.runner, "GemmaForCausalLM"), Meeting(2).group(0))


def test_a_batch_that_another_strategy_split_is_refused():
    world = World()
    requests = [Request(0, 4, 1)]
    batch = world.batch(requests, [1, 2, 3, 4], ForwardMode.EXTEND)
    batch.attn_cp_metadata = SimpleNamespace()
    backend = SplitAttentionBackend(named(world.runner), Meeting(2).group(0))
    with pytest.raises(DeviceError, match="another strategy"):
        backend.init_forward_metadata(batch)


def test_keys_that_the_layer_does_not_hand_over_are_refused():
    world = World(pool=MHATokenToKVPool(SLOTS - 1, 1, torch.float32, 3, DIM, 1, "cpu", False))
    requests = [Request(0, 4, 1)]
    batch = world.batch(requests, [1, 2, 3, 4], ForwardMode.EXTEND)
    found = plan([4], [0], 2)
    batch.attn_cp_metadata = PlannedMetadata(
        plan=found,
        rank=0,
        mine=torch.from_numpy(found.rows_of(0)),
        per_rank_actual_token=[found.rows] * 2,
    )
    backend = SplitAttentionBackend(named(world.runner), Meeting(2).group(0))
    backend.init_forward_metadata(batch)
    q = torch.zeros(found.rows, 9 * DIM)
    with pytest.raises(DeviceError, match="no keys of its own"):
        backend.forward_extend(q, None, None, world.layers[0], batch)
