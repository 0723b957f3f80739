"""The attention kernels against a dense float64 reference."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_ext.device.paged_attention import (
    Workspace,
    attend_all,
    attend_causal,
    attend_dense,
    find_segments,
    merge,
    read_segments,
)

BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
GEOMETRIES = [(9, 3), (4, 4), (8, 1)]  # query heads, KV heads


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def reference(q, k, v, visible, scale, cap=0.0):
    """Float64 ``[heads, rows, v_dim]`` and log-sum-exp ``[heads, rows]``."""
    group = q.shape[1] // k.shape[1]
    keys = k.double().repeat_interleave(group, 1)
    values = v.double().repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q.double(), keys) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~visible, -math.inf)
    return torch.einsum("hqk,khd->hqd", scores.softmax(-1), values), scores.logsumexp(-1)


@given(
    pieces=st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=8),
    min_run=st.integers(1, 10),
    multiple=st.integers(1, 4),
)
def test_segments_hold_each_slot_once_and_no_short_run(pieces, min_run, multiple):
    slots, cursor = [], 1
    for length, gap in pieces:
        cursor += 3 if gap else 0
        slots += range(cursor, cursor + length)
        cursor += length
    found = find_segments(torch.tensor(slots, dtype=torch.int32), min_run, multiple)
    rest = [] if found.rest is None else found.rest.tolist()
    runs = [slot for first, tokens in found.runs for slot in range(first, first + tokens)]
    assert sorted(runs + rest) == slots
    assert found.rest is None or rest
    if rest or len(found.runs) > 1:
        assert all(tokens > min_run - multiple for _, tokens in found.runs)
        assert all(tokens % multiple == 0 for _, tokens in found.runs)


def test_one_run_is_read_in_place_however_short():
    cache = draw(0, 16, 2, 4)
    segments = find_segments(torch.tensor([5, 6, 7]), 256)
    ((k, v),) = read_segments(segments, cache, cache, Workspace())
    assert k.data_ptr() == cache[5].data_ptr()
    assert torch.equal(v, cache[5:8])


def test_descending_slots_are_not_a_run():
    found = find_segments(torch.tensor([7, 6, 5, 4]), 2)
    assert found.runs == ()
    assert found.rest.tolist() == [7, 6, 5, 4]


def test_a_workspace_keeps_its_buffer_from_layer_to_layer():
    workspace, cache = Workspace(), draw(0, 16, 2, 4)
    first = workspace.gather("k", cache, torch.tensor([3, 9, 1]))
    address = first.data_ptr()
    again = workspace.gather("k", cache, torch.tensor([4, 2]))
    assert again.data_ptr() == address
    assert torch.equal(again, cache[[4, 2]])
    assert workspace.gather("v", cache, torch.tensor([1])).data_ptr() != address


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("heads", "kv_heads"), GEOMETRIES)
# 3 rows x 3 KV heads: a log-sum-exp with its axes swapped would have the same shape.
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 37), (3, 600), (70, 130)])
def test_every_query_sees_every_key(heads, kv_heads, rows, keys, dtype):
    q = draw(1, rows, heads, 16, dtype=dtype)
    k, v = draw(2, keys, kv_heads, 16, dtype=dtype), draw(3, keys, kv_heads, 16, dtype=dtype)
    out, lse = attend_all(q, k, v, 0.3)
    expected, expected_lse = reference(q, k, v, torch.ones(rows, keys, dtype=torch.bool), 0.3)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), expected, atol=BOUND[dtype], rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=BOUND[dtype], rtol=0)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize(("heads", "kv_heads"), GEOMETRIES)
@pytest.mark.parametrize("rows", [1, 3, 65, 800])
def test_a_query_sees_itself_and_what_came_before(heads, kv_heads, rows, dtype):
    q = draw(1, rows, heads, 16, dtype=dtype)
    k, v = draw(2, rows, kv_heads, 16, dtype=dtype), draw(3, rows, kv_heads, 16, dtype=dtype)
    out, lse = attend_causal(q, k, v, 0.3)
    visible = torch.ones(rows, rows, dtype=torch.bool).tril()
    expected, expected_lse = reference(q, k, v, visible, 0.3)
    torch.testing.assert_close(out.double(), expected, atol=BOUND[dtype], rtol=0)
    torch.testing.assert_close(lse.double(), expected_lse, atol=BOUND[dtype], rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    cached=st.integers(0, 150),
    rows=st.integers(1, 150),
    window=st.one_of(st.just(-1), st.integers(0, 200)),
    cap=st.sampled_from([0.0, 3.0]),
    v_dim=st.sampled_from([8, 16, 24]),
    geometry=st.sampled_from(GEOMETRIES),
)
def test_windows_caps_and_values_of_another_width(cached, rows, window, cap, v_dim, geometry):
    heads, kv_heads = geometry
    first_key = 0 if window < 0 else max(0, cached - window)
    keys = cached + rows
    q = draw(1, rows, heads, 16)
    k, v = draw(2, keys, kv_heads, 16), draw(3, keys, kv_heads, v_dim)
    out = attend_dense(
        q,
        k[first_key:],
        v[first_key:],
        first_query=cached,
        first_key=first_key,
        scale=0.3,
        window=window,
        logit_cap=cap,
    )
    at, of = torch.arange(cached, keys)[:, None], torch.arange(keys)[None]
    visible = (of <= at) & ((of >= at - window) if window >= 0 else True)
    expected, _ = reference(q, k, v, visible, 0.3, cap)
    torch.testing.assert_close(out.double(), expected.transpose(0, 1), atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", BOUND)
@pytest.mark.parametrize("cuts", [[200], [1, 199], [3, 100, 90, 7]])
def test_merging_parts_is_attention_over_their_union(cuts, dtype):
    q = draw(1, 5, 9, 16, dtype=dtype)
    k, v = draw(2, 200, 3, 16, dtype=dtype), draw(3, 200, 3, 16, dtype=dtype)
    parts = [
        attend_all(q, part_k, part_v, 0.3)
        for part_k, part_v in zip(k.split(cuts), v.split(cuts), strict=True)
    ]
    expected, _ = reference(q, k, v, torch.ones(5, 200, dtype=torch.bool), 0.3)
    merged = merge(parts)
    assert merged.dtype == dtype
    torch.testing.assert_close(merged.double(), expected, atol=BOUND[dtype], rtol=0)


def test_a_part_that_matters_nothing_leaves_no_trace_and_no_nan():
    q = torch.full((1, 1, 16), 30.0)
    loud = attend_all(q, torch.full((4, 1, 16), 30.0), draw(1, 4, 1, 16), 1.0)
    mute = attend_all(q, torch.full((4, 1, 16), -30.0), draw(2, 4, 1, 16), 1.0)
    assert torch.equal(merge([loud, mute]), loud[0])
    assert torch.equal(merge([mute, loud]), loud[0])
