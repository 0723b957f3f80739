"""The reference device's attention for batches that are split over ranks.

A batch without metadata of ours (a decode step) is computed as on one rank: every rank has all
keys. In a split batch each layer is one :meth:`RowExchange.begin`, :func:`attend_slices` and
:meth:`Flight.land`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.runtime_context import get_parallel
from torch import Tensor

from sglang_ext.context_parallel.attention import Task, attend_slices, tasks_of
from sglang_ext.context_parallel.collective import (
    GatherGroup,
    Part,
    ProcessGroup,
    RowExchange,
    RowLayout,
)
from sglang_ext.context_parallel.latent import absorb_keys
from sglang_ext.context_parallel.names import ARCHITECTURES
from sglang_ext.context_parallel.strategy import PlannedMetadata
from sglang_ext.device.attention import ReferenceAttentionBackend, RequestRows
from sglang_ext.device.attention_limits import refuse_call
from sglang_ext.errors import DeviceError

__all__ = ["SplitAttentionBackend"]


@dataclass(frozen=True, slots=True)
class _Split:
    """One forward that is split over ranks.

    Attributes:
        exchange: its plan, and where gathered rows go.
        tasks: what this rank's slices attend to.
        requests: by number in the plan, those with new tokens.
    """

    exchange: RowExchange
    tasks: tuple[Task, ...]
    requests: dict[int, RequestRows]


class SplitAttentionBackend(ReferenceAttentionBackend):
    """Attention of a context-parallel rank; see :class:`ReferenceAttentionBackend`."""

    takes_split_batches = True

    def __init__(self, runner: Any, group: GatherGroup | None = None) -> None:
        """Takes the pools of ``runner`` and refuses what it cannot serve.

        Args:
            runner: SGLang's ``ModelRunner``, model loaded and pools allocated.
            group: who gathers; the attention's context-parallel group unless given.

        Raises:
            DeviceError: the model or a flag needs what this backend does not do.
        """
        architecture = runner.model_config.hf_config.architectures[0]
        if architecture not in ARCHITECTURES:
            raise _refusal(f"{architecture} is not among {', '.join(ARCHITECTURES)}")
        if isinstance(runner.token_to_kv_pool, SWAKVPool):
            raise _refusal("the model has layers with a sliding window")
        super().__init__(runner)
        if self._latent_width is not None:
            absorb_keys()
        self._group = group or ProcessGroup(get_parallel().attn_cp_group.device_group)
        self._split: _Split | None = None

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plans one forward; a split one also gets the index that all layers share."""
        super().init_forward_metadata(forward_batch)
        self._split = None
        metadata = forward_batch.attn_cp_metadata
        if self.forward_metadata is None or metadata is None:
            return
        if not isinstance(metadata, PlannedMetadata):
            raise _refusal(f"the batch was split by another strategy ({type(metadata).__name__})")
        found = metadata.plan
        slots = forward_batch.out_cache_loc.to(torch.int64)
        by_row = {request.first_row: request for request in self.forward_metadata.requests}
        first_rows = (found.extend_lens.cumsum() - found.extend_lens).tolist()
        self._split = _Split(
            RowExchange(found, metadata.rank, slots),
            tasks_of(found, metadata.rank),
            {
                number: by_row[row]
                for number, (row, new) in enumerate(
                    zip(first_rows, found.extend_lens.tolist(), strict=True)
                )
                if new
            },
        )

    def _refuse(self, layer: RadixAttention, name: str) -> None:
        super()._refuse(layer, name)
        # A latent model has layers for both forms; those for keys of each head are not called.
        other_width = layer.qk_head_dim != layer.v_head_dim and self._latent_width is None
        for unsupported, feature in (
            (layer.sliding_window_size >= 0, "a sliding window"),
            (layer.logit_cap > 0, "capped logits"),
            (other_width, "values of another width than keys"),
        ):
            if unsupported:
                raise _refusal(f"layer {layer.layer_id} ({name}) has {feature}")

    def _forward(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: RadixAttention,
        batch: ForwardBatch,
        save_kv_cache: bool,
        extras: dict[str, Any],
    ) -> Tensor:
        split = self._split
        if split is None:
            return super()._forward(q, k, v, layer, batch, save_kv_cache, extras)
        self._admit(layer)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        refuse_call(layer, batch, queries.shape[0], k, extras)
        if k is None or v is None or not save_kv_cache:
            raise _refusal(f"layer {layer.layer_id} has no keys of its own to store")
        exchange = split.exchange
        mine = int(exchange.plan.tokens[exchange.rank])
        shape = (layer.tp_k_head_num, layer.qk_head_dim)
        keys = k.reshape(-1, *shape)[:mine]
        in_keys = self._values_in_keys(layer)
        if self._latent_width is not None and not in_keys:
            raise _refusal(f"layer {layer.layer_id} of a latent model computes keys of each head")
        values = keys if in_keys else v.reshape(-1, *shape)[:mine]
        # Latent and rotary part are one tensor, and the values lie in it: they travel once.
        sent = (keys,) if in_keys else (keys, values)
        layout = RowLayout(tuple(Part(shape, part.dtype) for part in sent))
        flight = exchange.begin(self._group, layout, sent)

        def read(request: int, first: int, end: int) -> tuple[Tensor, Tensor]:
            return self._read_stored(layer, split.requests[request], first, end)

        def land() -> None:
            # Asked for here: the pool waits for a layer that is still being loaded.
            flight.land(self._caches(layer)[: len(sent)])

        out = queries.new_zeros(*queries.shape[:2], layer.v_head_dim)
        new = (queries[:mine], keys, values)
        attended = attend_slices(split.tasks, new, layer.scaling, read, land)
        out[:mine] = attended[..., : layer.v_head_dim]
        return out.view(out.shape[0], -1)


def _refusal(why: str) -> DeviceError:
    return DeviceError(
        f"context parallelism (--ext-cp-size) is not possible: {why}; leave out --ext-cp-size"
    )
