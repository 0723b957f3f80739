"""The plan as a strategy of SGLang's context parallelism.

SGLang asks a strategy once a forward for metadata, and then to take the rank's rows out of the
batch and to put the ranks' rows together again. No batch with a token is left out.

Source: ``sglang/srt/layers/cp/base.py``, ``utils.py`` and ``padding.py``, release 0.5.23.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from sglang.srt.layers.cp.base import (
    BaseContextParallelMetadata,
    ContextParallelStrategy,
    ContextParallelStrategyKind,
)
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from sglang_ext.context_parallel.cost import Cost
from sglang_ext.context_parallel.names import STRATEGY
from sglang_ext.context_parallel.plan import Plan, plan
from sglang_ext.errors import DeviceError

__all__ = ["PlannedMetadata", "PlannedStrategy"]


@dataclass
class PlannedMetadata(BaseContextParallelMetadata):
    """What the layers of one forward share.

    Attributes:
        plan: who computes what.
        rank: who we are in it.
        mine: ``[tokens of this rank]`` int64: where they lie in the batch.
        per_rank_actual_token: rows of each rank's tensors, padding included; SGLang rounds up.
        per_rank_logical_token: the same without padding; SGLang fills it.
        max_rank_len: rows of the longest.
    """

    plan: Plan = field(kw_only=True)
    rank: int = field(kw_only=True)
    mine: Tensor = field(kw_only=True)
    per_rank_actual_token: list[int] = field(kw_only=True)
    per_rank_logical_token: list[int] | None = None
    max_rank_len: list[int] | None = None

    @property
    def rows(self) -> int:
        """Rows of a rank's tensors."""
        return self.per_rank_actual_token[self.rank]

    def in_batch_order(self) -> Tensor:
        """``[tokens]`` int64: where each token of the batch lies in all ranks' rows."""
        found = np.empty(int(self.plan.tokens.sum()), dtype=np.int64)
        for rank in range(self.plan.ranks):
            rows = self.plan.rows_of(rank)
            found[rows] = rank * self.rows + np.arange(len(rows))
        return torch.from_numpy(found)


class PlannedStrategy(ContextParallelStrategy):
    """Splits every extend batch by :func:`plan`."""

    name = STRATEGY
    kind = ContextParallelStrategyKind.NONE  # neither of SGLang's; rows are padded to the ranks

    def __init__(self, cp_size: int, cost: Cost | None = None) -> None:
        """Takes the number of ranks, and what tokens cost: full causal attention unless given."""
        super().__init__(cp_size=cp_size)
        self.cost = cost or Cost.causal()

    def can_apply(self, num_tokens: int, forward_batch: Any) -> bool:
        """Whether the batch is split: whenever it extends, by one token at least."""
        mode = forward_batch.forward_mode
        lengths = forward_batch.extend_seq_lens_cpu
        return num_tokens > 0 and mode.is_context_parallel_extend() and lengths is not None

    def build_metadata(
        self,
        num_tokens: int,
        seqs_len: list[int] | None,
        extend_seqs_len: list[int] | None = None,
    ) -> PlannedMetadata:
        """Plans a batch; every rank gets the same plan.

        Args:
            num_tokens: new tokens of the batch.
            seqs_len: tokens of each request, cached ones included.
            extend_seqs_len: new tokens of each request.

        Raises:
            DeviceError: the lengths do not say what is cached.
        """
        lengths, new = seqs_len or [], extend_seqs_len or []
        if len(lengths) != len(new) or sum(new) != num_tokens:
            raise DeviceError(
                f"a batch of {num_tokens} new tokens came with lengths {lengths}, of them new "
                f"{new}; context parallelism needs both of every request"
            )
        cached = [whole - part for whole, part in zip(lengths, new, strict=True)]
        found = plan(new, cached, self.cp_size, self.cost)
        return PlannedMetadata(
            total_seq_lens=num_tokens,
            bs=len(new),
            plan=found,
            rank=self.cp_rank,
            mine=torch.from_numpy(found.rows_of(self.cp_rank)),
            per_rank_actual_token=[found.rows] * self.cp_size,
        )

    def shard_hidden_states(self, x: Tensor, forward_batch: Any) -> Tensor:
        """``[rows, ...]``: this rank's rows of ``[tokens, ...]``, then zeros."""
        metadata = forward_batch.attn_cp_metadata
        mine = metadata.mine.to(x.device)
        sharded = x.new_zeros(metadata.rows, *x.shape[1:])
        sharded[: mine.shape[0]] = x[mine]
        return sharded

    def shard_position_ids(self, positions: Tensor, forward_batch: Any) -> Tensor:
        """``[rows]``: positions of this rank's tokens, then zeros."""
        if positions.dim() != 1:
            raise DeviceError(
                f"positions of shape {tuple(positions.shape)} are of several dimensions a token; "
                "leave out --ext-cp-size, or use a model of text alone"
            )
        return self.shard_hidden_states(positions, forward_batch)

    def gather_hidden_states(self, x: Tensor, forward_batch: Any, stream: Any = None) -> Tensor:
        """``[tokens, ...]`` in the batch's order, from ``[rows, ...]`` of each rank; blocks."""
        metadata = forward_batch.attn_cp_metadata
        gathered = x.new_empty(self.cp_size * metadata.rows, *x.shape[1:])
        group = get_parallel().attn_cp_group
        group.all_gather_into_tensor(gathered, x.contiguous())
        return gathered.index_select(0, metadata.in_batch_order().to(x.device))

    def gather_kv_cache(self, x: Tensor, forward_batch: Any, stream: Any = None) -> Tensor:
        """As :meth:`gather_hidden_states`; the attention does not need it."""
        return self.gather_hidden_states(x, forward_batch, stream)

    def run_attention(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: it is for backends that do not know the plan."""
        raise _unknown_backend()

    def materialize_full_kv(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as :meth:`run_attention`."""
        raise _unknown_backend()

    def materialize_full_mla_kv(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as :meth:`run_attention`."""
        raise _unknown_backend()


def _unknown_backend() -> DeviceError:
    return DeviceError(
        "this attention backend does not know the plan of --ext-cp-size; use the reference device, "
        "or SGLang's own --cp-strategy"
    )
