"""How often and how much a layer's attention sends: counted on the group, ours and SGLang's."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any
from unittest import mock

from sglang_ext.context_parallel.plan import plan

__all__ = ["compare_collectives"]

RANKS = 4
TOKENS = 4099  # new tokens of one request; not a multiple of anything, so that padding shows
KV_HEADS, HEAD_DIM = 8, 128  # of Llama 3 and Qwen3
LATENT, ROPE, INDEX_KEY = 512, 64, 128  # of DeepSeek-V3.2


def compare_collectives() -> dict[str, Any]:
    """AllGathers of one layer's attention and bytes that a rank receives in them.

    Returns:
        By scheme ``per_layer``, ``bytes_per_rank`` and ``shape``: ``dense`` is K and V in bfloat16,
        ``dsa`` the latent, rotary part and indexer key. SGLang's zigzag does not do DSA and its
        interleave does nothing else; of ours, which does both, ``dsa`` stands beside.
    """
    import torch

    dense = [(KV_HEADS, HEAD_DIM)] * 2
    dsa = [(LATENT,), (ROPE,), (INDEX_KEY,)]
    return {
        "ranks": RANKS,
        "tokens": TOKENS,
        "ext": {**_ours(dense, torch.bfloat16, "dense"), "dsa": _ours(dsa, torch.bfloat16, "dsa")},
        "zigzag": _zigzag(),
        "interleave": _interleave(),
    }


def _ours(shapes: Sequence[tuple[int, ...]], dtype: Any, name: str) -> dict[str, Any]:
    import torch

    from sglang_ext.bench.prefill.stock import CountingGroup
    from sglang_ext.context_parallel.collective import CountedGroup, Part, RowExchange, RowLayout

    class Started:
        ranks = RANKS

        def start(self, output: Any, rows: Any) -> Any:
            CountingGroup(RANKS).all_gather_into_tensor(output, rows)
            return SimpleNamespace(wait=lambda: None)

    found = plan([TOKENS], [0], RANKS)
    group = CountedGroup(Started())
    layout = RowLayout(tuple(Part(shape, dtype) for shape in shapes))
    exchange = RowExchange(found, 0, torch.arange(1, TOKENS + 1))
    parts = [torch.zeros(int(found.tokens[0]), *shape, dtype=dtype) for shape in shapes]
    caches = [torch.zeros(TOKENS + 1, *shape, dtype=dtype) for shape in shapes]
    exchange.begin(group, layout, parts).land(caches)
    return _row(group.calls, group.received_bytes, name)


def _zigzag() -> dict[str, Any]:
    import torch

    from sglang_ext.bench.prefill.stock import CountingGroup, as_rank_zero, stock_strategy

    strategy, group = stock_strategy("zigzag", RANKS), CountingGroup(RANKS)
    batch = _batch(strategy)
    rows = batch.attn_cp_metadata.per_rank_actual_token[0]
    keys = torch.zeros(rows, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16)
    layer = SimpleNamespace(is_cross_attention=False, k_scale=None, v_scale=None)
    with as_rank_zero(group, mock.Mock()), _no_write_location():
        strategy.materialize_full_kv(batch, layer, keys, keys)
    return _row(group.calls, group.received_bytes, "dense")


def _interleave() -> dict[str, Any]:
    import torch

    from sglang_ext.bench.prefill.stock import CountingGroup, as_rank_zero, stock_strategy

    strategy, group = stock_strategy("interleave", RANKS), CountingGroup(RANKS)
    batch = _batch(strategy)
    rows = batch.attn_cp_metadata.per_rank_actual_token[0]

    def zeros(*shape: int) -> Any:
        return torch.zeros(rows, *shape, dtype=torch.bfloat16)

    with as_rank_zero(group, mock.Mock()):
        strategy.materialize_full_mla_kv(batch, None, zeros(1, LATENT), zeros(1, ROPE))
        strategy.materialize_full_indexer_k_cache(zeros(INDEX_KEY), batch)
    return _row(group.calls, group.received_bytes, "dsa")


def _batch(strategy: Any) -> Any:
    import torch

    metadata = strategy.build_metadata(TOKENS, [TOKENS], [TOKENS])
    return SimpleNamespace(attn_cp_metadata=metadata, out_cache_loc=torch.arange(1, TOKENS + 1))


def _no_write_location() -> Any:
    from sglang.srt.layers.cp import zigzag

    return mock.patch.object(zigzag, "KVWriteLoc", mock.Mock())


def _row(calls: int, received_bytes: int, shape: str) -> dict[str, Any]:
    return {"per_layer": calls, "bytes_per_rank": received_bytes, "shape": shape}
