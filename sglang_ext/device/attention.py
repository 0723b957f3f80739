"""The attention backend of the reference device: plain CPUs, torch only.

A forward costs what its *new* tokens cost: query rows are computed for new tokens alone, their
keys come from the layer's own inputs, and cached keys are read from the pool in place wherever
their slots are consecutive. SGLang's ``torch_native`` computes query rows for the whole prompt, so
that a request with 3,000 of 3,001 tokens cached costs half of a cold one.

Values of latent attention (MLA, absorbed) are the first columns of its one key head: the kernels
get keys as values, too, and the other columns, a ninth of DeepSeek's, are dropped.

Each request is computed on its own. Its result depends on its own tokens and on where they lie in
the pool, never on the other requests of the batch.

Bounds (tested against a dense float64 reference, values of order 1): float32 within 2e-6, bfloat16
within 2e-2. The same request cached and uncached differs by at most 2e-6 in float32.

What it does not do is refused with a :class:`DeviceError`, at start where it can be known from the
model and the flags: cross-attention and encoder-only layers, attention sinks, speculative decoding,
diffusion models, quantised KV or KV of another dtype, other KV layouts than token-major, xAI's
temperature, ALiBi, context parallelism (`context_parallel.backend` does that).

Source: ``sglang/srt/layers/attention/base_attn_backend.py`` and ``torch_native_backend.py`` of
SGLang 0.5.23.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MLATokenToKVPool
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from torch import Tensor

from sglang_ext.device.attention_limits import (
    refuse_batch,
    refuse_call,
    refuse_configuration,
    refuse_layer,
)
from sglang_ext.device.paged_attention import (
    MIN_RUN_TOKENS,
    Part,
    Segments,
    Workspace,
    attend_all,
    attend_causal,
    attend_dense,
    find_segments,
    merge,
    read_segments,
)
from sglang_ext.errors import DeviceError

__all__ = ["BatchPlan", "ReferenceAttentionBackend", "RequestRows", "create_reference_backend"]


def create_reference_backend(runner: Any) -> ReferenceAttentionBackend:
    """Factory for ``register_attention_backend``.

    Args:
        runner: SGLang's ``ModelRunner``, model loaded and pools allocated.

    Raises:
        DeviceError: the model or a flag needs what this backend does not do.
    """
    return ReferenceAttentionBackend(runner)


@dataclass(frozen=True, slots=True)
class RequestRows:
    """One request's part of a batch.

    Attributes:
        first_row: its first query row in the batch.
        new_tokens: its query rows; one at least.
        cached_tokens: keys that were in the pool before this forward.
        slots: ``[cached_tokens + new_tokens]`` int32, its pool slots in order of position; a view
            of SGLang's table that is valid during this forward.
    """

    first_row: int
    new_tokens: int
    cached_tokens: int
    slots: Tensor

    @property
    def rows(self) -> slice:
        """Its query rows in the batch."""
        return slice(self.first_row, self.first_row + self.new_tokens)


@dataclass(slots=True)
class BatchPlan:
    """What the layers of one forward share.

    Attributes:
        requests: requests with new tokens, in order of rows.
        window_loc: ``[tokens]`` slots in the sliding-window pool that new tokens are written to;
            None without such a pool.
        segments: by (first row, in the window pool, first position, end); the first layer that asks
            fills it, the others read it.
        window_slots: by first row, the request's slots in the sliding-window pool.
    """

    requests: list[RequestRows]
    window_loc: Tensor | None
    segments: dict[tuple[int, bool, int, int], Segments] = field(default_factory=dict)
    window_slots: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Task:
    """One request in one layer.

    Attributes:
        new: keys and values of its new tokens; None when the layer did not hand them over.
        stored: whether the pool holds the keys and values of its new tokens.
    """

    layer: RadixAttention
    plan: BatchPlan
    request: RequestRows
    new: tuple[Tensor, Tensor] | None
    stored: bool


class ReferenceAttentionBackend(AttentionBackend):
    """Attention for CPUs without vendor kernels.

    Called by SGLang's model runner: :meth:`init_forward_metadata` once a forward, then
    :meth:`forward_extend` or :meth:`forward_decode` once a layer, all on the scheduler's thread.
    """

    # Whether a rank may get its own part of a batch; a backend that can says so.
    takes_split_batches = False

    def __init__(self, runner: Any, min_run_tokens: int = MIN_RUN_TOKENS) -> None:
        """Takes the pools of ``runner`` and refuses what it cannot serve.

        Args:
            runner: SGLang's ``ModelRunner``, model loaded and pools allocated.
            min_run_tokens: the shortest run of consecutive slots that is read in place rather than
                gathered; what a run costs is told at ``MIN_RUN_TOKENS``.

        Raises:
            DeviceError: the model or a flag needs what this backend does not do.
        """
        super().__init__()
        self.device = runner.device
        # The forward batch does not carry the pools; every backend keeps its own references.
        self.req_to_token_pool = runner.req_to_token_pool
        self.token_to_kv_pool = runner.token_to_kv_pool
        self.forward_metadata: BatchPlan | None = None
        self._min_run_tokens = min_run_tokens
        self._workspace = Workspace()
        self._admitted: set[int] = set()
        pool = self.token_to_kv_pool
        self._has_window_pool = isinstance(pool, SWAKVPool) and pool.swa_layer_nums > 0
        self._latent_width = pool.kv_cache_dim if isinstance(pool, MLATokenToKVPool) else None
        refuse_configuration(runner, may_be_split=self.takes_split_batches)
        for name, module in runner.model.named_modules():
            if isinstance(module, RadixAttention):
                self._admit(module, name)

    def support_triton(self) -> bool:
        """Triton kernels do not run on a plain CPU."""
        return False

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Plans one forward: which rows and slots belong to which request.

        Raises:
            DeviceError: the batch needs what this backend does not do.
        """
        refuse_batch(forward_batch, may_be_split=self.takes_split_batches)
        if forward_batch.forward_mode.is_idle():
            self.forward_metadata = None
            return
        window_loc = None
        if self._has_window_pool and forward_batch.out_cache_loc is not None:
            window_loc = self.token_to_kv_pool.translate_loc_from_full_to_swa(
                forward_batch.out_cache_loc
            )
        self.forward_metadata = BatchPlan(list(self._requests(forward_batch)), window_loc)

    def forward_extend(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Attention of new tokens over their cached prefix and themselves.

        Args:
            q: ``[tokens, heads * head_dim]``.
            k: ``[tokens, kv_heads, head_dim]``; None when the pool already holds it.
            v: ``[tokens, kv_heads, v_head_dim]``; None exactly when k is.
            layer: geometry, scale and window.
            forward_batch: the batch that :meth:`init_forward_metadata` was called with.
            save_kv_cache: write k and v to the pool.
            **kwargs: model extras; refused unless empty, None or False.

        Returns:
            ``[tokens, heads * v_head_dim]``, q's dtype, owned by the caller. Rows that belong to
            no request (padding) are zero.

        Raises:
            DeviceError: the layer or an extra needs what this backend does not do.
        """
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, kwargs)

    def forward_decode(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **kwargs: Any,
    ) -> Tensor:
        """Attention of one new token of each request; see :meth:`forward_extend`."""
        return self._forward(q, k, v, layer, forward_batch, save_kv_cache, kwargs)

    def _requests(self, batch: ForwardBatch) -> Iterator[RequestRows]:
        seq_lens = batch.seq_lens.tolist()
        if batch.forward_mode.is_decode():
            new_lens = [1] * len(seq_lens)
        else:
            new_lens = batch.extend_seq_lens.tolist()
        table = self.req_to_token_pool.req_to_token
        first_row = 0
        for entry, seq_len, new_tokens in zip(
            batch.req_pool_indices.tolist(), seq_lens, new_lens, strict=True
        ):
            # Idle data-parallel ranks pad their batch with requests that have no tokens.
            if new_tokens and seq_len >= new_tokens:
                slots = table[entry, :seq_len]
                yield RequestRows(first_row, new_tokens, seq_len - new_tokens, slots)
            first_row += new_tokens

    def _admit(self, layer: RadixAttention, name: str = "") -> None:
        """Refuses a layer that needs what this backend does not do; looks at each layer once."""
        if id(layer) not in self._admitted:
            self._refuse(layer, name)
            self._admitted.add(id(layer))

    def _refuse(self, layer: RadixAttention, name: str) -> None:
        """Raises for a layer that needs what this backend does not do."""
        refuse_layer(layer, name)

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
        self._admit(layer)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        refuse_call(layer, batch, queries.shape[0], k, extras)
        plan = self.forward_metadata
        if plan is None:
            raise _unplanned(layer)
        if self._values_in_keys(layer):
            v = k
        if save_kv_cache and k is not None:
            loc = KVWriteLoc.for_batch(batch, swa_loc=plan.window_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, loc, k, v)
        out = queries.new_empty(queries.shape[0], layer.tp_q_head_num, layer.v_head_dim)
        covered = 0
        for request in plan.requests:
            out[covered : request.first_row] = 0
            covered = request.rows.stop
            new = None if k is None or v is None else (k[request.rows], v[request.rows])
            task = _Task(layer, plan, request, new, new is None or save_kv_cache)
            out[request.rows] = self._attend(queries[request.rows], task)[..., : layer.v_head_dim]
        out[covered:] = 0
        return out.view(out.shape[0], -1)

    def _attend(self, q: Tensor, task: _Task) -> Tensor:
        """``[new_tokens, heads, v_head_dim]`` of one request in one layer; wider: to be cut."""
        layer, request = task.layer, task.request
        seq_len = request.cached_tokens + request.new_tokens
        window = layer.sliding_window_size
        # Keys before this position are seen by no query; a window pool may have dropped them.
        first = 0 if window < 0 else max(0, request.cached_tokens - window)
        window_cuts = window >= 0 and seq_len - 1 - window > first
        other_width = layer.qk_head_dim != layer.v_head_dim and not self._values_in_keys(layer)
        if window_cuts or layer.logit_cap > 0 or other_width:
            k, v = self._in_order(task, first)
            return attend_dense(
                q,
                k,
                v,
                first_query=request.cached_tokens,
                first_key=first,
                scale=layer.scaling,
                window=window,
                logit_cap=layer.logit_cap,
            )
        if request.new_tokens == 1 and task.stored:
            # One new token sees every key, and its own is in the pool by now.
            return merge(self._attend_pool(q, task, first, seq_len)).transpose(0, 1)
        k, v = task.new or self._in_order(task, request.cached_tokens)
        parts = [attend_causal(q, k, v, layer.scaling)]
        if first < request.cached_tokens:
            parts += self._attend_pool(q, task, first, request.cached_tokens)
        return merge(parts).transpose(0, 1)

    def _attend_pool(self, q: Tensor, task: _Task, first: int, end: int) -> list[Part]:
        """Attention of every query over all pool keys at positions ``first..end - 1``."""
        k_cache, v_cache = self._caches(task.layer)
        segments = self._segments(task, first, end)
        return [
            attend_all(q, k, v, task.layer.scaling)
            for k, v in read_segments(segments, k_cache, v_cache, self._workspace)
        ]

    def _in_order(self, task: _Task, first: int) -> tuple[Tensor, Tensor]:
        """Keys and values from position ``first`` to the last new token, in order of position."""
        request = task.request
        end = request.cached_tokens + request.new_tokens
        if task.new is not None and first == request.cached_tokens:
            return task.new
        if task.new is not None and not task.stored:
            k, v = self._read(task, first, request.cached_tokens)
            return torch.cat((k, task.new[0])), torch.cat((v, task.new[1]))
        return self._read(task, first, end)

    def _read(self, task: _Task, first: int, end: int) -> tuple[Tensor, Tensor]:
        """Pool keys and values at positions ``first..end - 1``, in order."""
        k_cache, v_cache = self._caches(task.layer)
        segments = self._segments(task, first, end)
        if len(segments.runs) != 1 or segments.rest is not None:
            segments = Segments((), self._slots(task)[first:end])
        return next(read_segments(segments, k_cache, v_cache, self._workspace))

    def _read_stored(
        self, layer: RadixAttention, request: RequestRows, first: int, end: int
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of a request at positions ``first..end - 1``, all of them in the pool."""
        if self.forward_metadata is None:
            raise _unplanned(layer)
        task = _Task(layer, self.forward_metadata, request, None, stored=True)
        return self._read(task, first, end)

    def _caches(self, layer: RadixAttention) -> tuple[Tensor, Tensor]:
        # Asked for in every layer: the pool waits here for a layer that is still being loaded.
        pool = self.token_to_kv_pool
        keys = pool.get_key_buffer(layer.layer_id)
        return keys, keys if self._values_in_keys(layer) else pool.get_value_buffer(layer.layer_id)

    def _values_in_keys(self, layer: RadixAttention) -> bool:
        """Whether the layer's values are the first columns of its keys: MLA, absorbed."""
        return bool(layer.tp_k_head_num == 1 and layer.qk_head_dim == self._latent_width)

    def _segments(self, task: _Task, first: int, end: int) -> Segments:
        key = (task.request.first_row, self._in_window_pool(task.layer), first, end)
        found = task.plan.segments.get(key)
        if found is None:
            found = find_segments(
                self._slots(task)[first:end], self._min_run_tokens, torch.get_num_threads()
            )
            task.plan.segments[key] = found
        return found

    def _slots(self, task: _Task) -> Tensor:
        """The request's slots in the pool that holds the layer."""
        slots = task.request.slots
        if not self._in_window_pool(task.layer):
            return slots
        found = task.plan.window_slots.get(task.request.first_row)
        if found is None:
            found = self.token_to_kv_pool.translate_loc_from_full_to_swa(slots)
            task.plan.window_slots[task.request.first_row] = found
        return found

    def _in_window_pool(self, layer: RadixAttention) -> bool:
        return self._has_window_pool and self.token_to_kv_pool.layers_mapping[layer.layer_id][1]


def _unplanned(layer: RadixAttention) -> DeviceError:
    return DeviceError(
        f"layer {layer.layer_id} was called without a plan for its batch; "
        "call init_forward_metadata once before the layers"
    )
