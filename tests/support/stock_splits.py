"""How SGLang itself splits a prefill batch over ranks: its own strategies, run on token numbers."""

from types import SimpleNamespace

import torch
from sglang.srt.layers.cp.interleave import InterleaveCPStrategy
from sglang.srt.layers.cp.zigzag import ZigzagCPStrategy
from sglang.srt.model_executor.forward_batch_info import ForwardMode


class _Zigzag(ZigzagCPStrategy):
    cp_rank = 0  # of the process's groups otherwise, and there are none here


class _Interleave(InterleaveCPStrategy):
    cp_rank = 0


_STRATEGIES = {"zigzag": _Zigzag, "interleave": _Interleave}


def stock_split(scheme, extend_lens, prefix_lens, ranks):
    """For each rank the batch's tokens that it computes; None where the scheme opts out."""
    total = sum(extend_lens)
    seq_lens = [new + cached for new, cached in zip(extend_lens, prefix_lens, strict=True)]
    tokens = torch.arange(total)
    split = []
    for rank in range(ranks):
        strategy = _STRATEGIES[scheme](cp_size=ranks)
        strategy.cp_rank = rank
        batch = SimpleNamespace(
            forward_mode=ForwardMode.EXTEND, extend_seq_lens_cpu=list(extend_lens)
        )
        if not strategy.can_apply(total, batch):
            return None
        batch.attn_cp_metadata = strategy.build_metadata(total, seq_lens, list(extend_lens))
        split.append(strategy.shard_hidden_states(tokens, batch).tolist())
    return split
