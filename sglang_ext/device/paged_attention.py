"""Attention over a paged KV cache on a plain CPU: pure functions of torch tensors.

Three kernels and the way to put their results together:

- :func:`attend_all`: every query sees every key (a cached prefix, a decode step);
- :func:`attend_causal`: query *i* sees keys 0..*i* (the new tokens among themselves);
- :func:`attend_dense`: whatever a flash kernel does not do here: sliding windows that cut off
  keys, capped logits, values narrower or wider than keys; in query blocks, always in float32;
- :func:`merge`: softmax over a union of keys from the softmax over its parts.

The first two run torch's flash kernel for CPUs, called directly because the public function does
not return the log-sum-exp that :func:`merge` needs. A cached key costs one read: keys whose slots
are consecutive are read in place (:func:`find_segments`), only the others are gathered.

Shapes: ``heads`` is the number of query heads, ``kv_heads`` divides it (grouped-query attention);
query head ``h`` reads KV head ``h // (heads // kv_heads)``. All tensors are on one CPU device.

Source: FlashAttention (arXiv:2205.14135) for merging by log-sum-exp;
``aten/src/ATen/native/cpu/FlashAttentionKernel.cpp`` of torch 2.14.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor

__all__ = [
    "MIN_RUN_TOKENS",
    "Part",
    "Segments",
    "Workspace",
    "attend_all",
    "attend_causal",
    "attend_dense",
    "find_segments",
    "merge",
    "read_segments",
]

# Default: 1,024. A run read in place saves a copy and costs one more kernel call and merge. A
# decode step of 4 requests at 1,024 tokens, 3 KV heads x 64 in float32 on 2 cores, took 1.9 ms a
# layer with runs of 300 read in place and 1.3 ms with them gathered; runs of 600: 1.7 and 1.3 ms.
MIN_RUN_TOKENS = 1024
# Query rows that attend_dense scores at once. Default: 64, the fastest of 64, 128, 256 and 512 at
# 3,001 keys; the scores take 64 x heads x keys x 4 bytes.
DENSE_BLOCK_ROWS = 64

# Keys a piece, at least, before the keys of a decode step are split over threads. Default: 256; a
# split costs about 40 us, which is what 256 keys of 3 KV heads x 64 in float32 cost.
MIN_PIECE_TOKENS = 256
# Query rows that the flash kernel hands to one thread when there are few of them.
_FLASH_BLOCK_ROWS = 32

# (attended values [heads, rows, v_head_dim], log-sum-exp of the scaled scores [heads, rows] fp32)
Part = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the keys of one request lie in the cache; the order of keys is not kept.

    Attributes:
        runs: (first slot, tokens) of runs of consecutive slots, read in place.
        rest: ``[tokens]`` int32 or int64 slots of all other keys, gathered; None when there are
            none.
    """

    runs: tuple[tuple[int, int], ...]
    rest: Tensor | None


class Workspace:
    """Buffers that gathers write into, kept from layer to layer.

    A fresh buffer of some MiB is new memory from the kernel each time, and its page faults cost
    more than the copy (1,081 us against 62 us for 4,096 tokens, measured). One buffer is kept for
    each (name, dtype), as large as the largest request so far. Memory handed out is owned by the
    workspace and valid until the next call with the same name; not thread-safe.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A contiguous uninitialised tensor of ``shape``."""
        size = 1
        for extent in shape:
            size *= extent
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < size:
            # A context grows with every decode step: leave room, or each step would reallocate.
            buffer = torch.empty(size + size // 4, dtype=dtype)
            self._buffers[name, dtype] = buffer
        return buffer[:size].view(shape)

    def gather(self, name: str, cache: Tensor, slots: Tensor) -> Tensor:
        """``cache[slots]`` in a buffer of this workspace.

        Args:
            name: which buffer to use.
            cache: ``[slots, kv_heads, head_dim]``.
            slots: ``[tokens]`` int32 or int64.

        Returns:
            ``[tokens, kv_heads, head_dim]``, valid until the next call with ``name``.
        """
        out = self.take(name, (slots.shape[0], *cache.shape[1:]), cache.dtype)
        return torch.index_select(cache, 0, slots, out=out)


def find_segments(
    slots: Tensor, min_run_tokens: int = MIN_RUN_TOKENS, multiple: int = 1
) -> Segments:
    """Splits slots into long runs of consecutive ones and the rest.

    Args:
        slots: ``[tokens]`` int32 or int64, one token at least.
        min_run_tokens: shorter runs go to the rest, unless everything is one run.
        multiple: one of several runs is cut to a multiple of this many tokens, so that it splits
            evenly over threads; what is cut off is attended to with the rest.

    Returns:
        Segments that hold each slot exactly once.
    """
    tokens = slots.shape[0]
    breaks = (torch.nonzero(slots[1:] - slots[:-1] != 1).view(-1) + 1).tolist()
    if not breaks:
        return Segments(((int(slots[0]), tokens),), None)
    bounds = [0, *breaks, tokens]
    long = [
        (start, end - (end - start) % multiple)
        for start, end in pairwise(bounds)
        if end - start >= max(min_run_tokens, multiple)
    ]
    if not long:
        return Segments((), slots)
    gathered = torch.ones(tokens, dtype=torch.bool)
    for start, end in long:
        gathered[start:end] = False
    rest = slots[gathered]
    runs = tuple((int(slots[start]), end - start) for start, end in long)
    return Segments(runs, rest if rest.shape[0] else None)


def read_segments(
    segments: Segments, k_cache: Tensor, v_cache: Tensor, workspace: Workspace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of each segment: views of the cache, then one gathered pair.

    Args:
        segments: from :func:`find_segments`.
        k_cache: ``[slots, kv_heads, head_dim]``.
        v_cache: ``[slots, kv_heads, v_head_dim]``; ``k_cache`` itself where values lie in keys.
        workspace: owns the gathered pair, which is valid until the workspace's next use.

    Yields:
        ``[tokens, kv_heads, head_dim]`` and ``[tokens, kv_heads, v_head_dim]``.
    """
    for first, tokens in segments.runs:
        yield k_cache[first : first + tokens], v_cache[first : first + tokens]
    if segments.rest is not None:
        k = workspace.gather("k", k_cache, segments.rest)
        yield k, k if v_cache is k_cache else workspace.gather("v", v_cache, segments.rest)


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Part:
    """Attention in which every query sees every key.

    The query heads that share a KV head become rows of one head, so that keys are read (and, in
    bfloat16, converted) once instead of once for each query head.

    Args:
        q: ``[rows, heads, head_dim]``, float32 or bfloat16.
        k: ``[keys, kv_heads, head_dim]`` of q's dtype, one key at least.
        v: the same shape and dtype as k.
        scale: what scores are multiplied by before the softmax.

    Returns:
        Attended values ``[heads, rows, head_dim]`` and log-sum-exp ``[heads, rows]`` float32.
    """
    rows, heads, head_dim = q.shape
    keys, kv_heads = k.shape[:2]
    folded = _fold(q, kv_heads)
    pieces = _pieces(folded.shape[1], keys, kv_heads, torch.get_num_threads())
    if pieces == 1:
        out, lse = _flash(folded, k.transpose(0, 1), v.transpose(0, 1), scale, causal=False)
    else:
        out, lse = _attend_pieces(folded, k, v, scale, pieces)
    return out.reshape(heads, rows, head_dim), lse.reshape(heads, rows)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Part:
    """Attention in which query ``i`` sees keys ``0..i``.

    Args:
        q: ``[rows, heads, head_dim]``, float32 or bfloat16.
        k: ``[rows, kv_heads, head_dim]`` of q's dtype.
        v: the same shape and dtype as k.
        scale: what scores are multiplied by before the softmax.

    Returns:
        Attended values ``[heads, rows, head_dim]`` and log-sum-exp ``[heads, rows]`` float32.
    """
    return _flash(q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), scale, causal=True)


def attend_dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    first_query: int,
    first_key: int,
    scale: float,
    window: int = -1,
    logit_cap: float = 0.0,
) -> Tensor:
    """Causal attention with a sliding window, capped logits or values of another width.

    Scores, softmax and sums are float32 whatever the inputs are. Query ``i`` stands at position
    ``first_query + i`` and sees positions ``p`` with ``first_query + i - window <= p <=
    first_query + i``; keys hold positions ``first_key`` onwards. Every query must see its own
    position, so no row is empty and no NaN can arise from one.

    Args:
        q: ``[rows, heads, head_dim]``.
        k: ``[keys, kv_heads, head_dim]``, from ``first_key`` to the last query's position.
        v: ``[keys, kv_heads, v_head_dim]``.
        first_query: position of the first query.
        first_key: position of the first key; not above ``first_query - window``, or 0.
        scale: what scores are multiplied by before cap and softmax.
        window: how many positions before its own a query sees; negative: all of them.
        logit_cap: scores become ``cap * tanh(score / cap)``; 0: they stay.

    Returns:
        Attended values ``[rows, heads, v_head_dim]`` of q's dtype.
    """
    rows, heads, _ = q.shape
    kv_heads, v_head_dim = v.shape[1:]
    keys_t = k.permute(1, 2, 0).float()
    values = v.transpose(0, 1).float()
    out = q.new_empty(rows, heads, v_head_dim)
    for start in range(0, rows, DENSE_BLOCK_ROWS):
        end = min(rows, start + DENSE_BLOCK_ROWS)
        low = 0 if window < 0 else max(0, first_query + start - window - first_key)
        high = first_query + end - first_key
        block = _fold(q[start:end], kv_heads).float() * scale
        scores = torch.bmm(block, keys_t[:, :, low:high])
        if logit_cap > 0:
            scores = scores.div_(logit_cap).tanh_().mul_(logit_cap)
        hidden = _hidden(first_query + start, end - start, first_key + low, high - low, window)
        scores = scores.view(heads, end - start, high - low).masked_fill_(hidden, float("-inf"))
        weights = torch.softmax(scores, -1).view(kv_heads, -1, high - low)
        attended = torch.bmm(weights, values[:, low:high])
        out[start:end] = attended.view(heads, end - start, v_head_dim).transpose(0, 1)
    return out


def merge(parts: list[Part]) -> Tensor:
    """Attention over a union of disjoint keys from attention over each.

    Args:
        parts: one at least; values ``[heads, rows, head_dim]``, log-sum-exp ``[heads, rows]``.

    Returns:
        ``[heads, rows, head_dim]`` in the dtype of the values; float32 between parts.
    """
    out, total = parts[0]
    if len(parts) == 1:
        return out
    dtype = out.dtype
    out = out.float()
    for values, lse in parts[1:]:
        out = torch.lerp(out, values.float(), torch.sigmoid(lse - total).unsqueeze(-1))
        total = torch.logaddexp(total, lse)
    return out.to(dtype)


def _pieces(rows: int, keys: int, kv_heads: int, threads: int) -> int:
    """In how many pieces the keys are attended to, so that all threads have the same to do.

    The flash kernel hands out (KV head, block of query rows) pairs. A decode step has one block, so
    that 3 heads leave one of 2 threads idle a third of the time.
    """
    if rows > _FLASH_BLOCK_ROWS:
        return 1
    pieces = threads // gcd(kv_heads, threads)
    return pieces if keys >= pieces * MIN_PIECE_TOKENS else 1


def _attend_pieces(q: Tensor, k: Tensor, v: Tensor, scale: float, pieces: int) -> Part:
    """:func:`attend_all` for folded queries, over equal pieces of the keys and what is left.

    Args:
        q: ``[kv_heads, rows, head_dim]``.
        k: ``[keys, kv_heads, head_dim]``.
        v: the same shape as k.
        scale: what scores are multiplied by before the softmax.
        pieces: how many; each is a batch entry of the flash kernel.

    Returns:
        ``[kv_heads, rows, head_dim]`` and log-sum-exp ``[kv_heads, rows]`` float32.
    """
    whole = k.shape[0] // pieces * pieces
    queries = q.expand(pieces, *q.shape)
    k_pieces, v_pieces = (
        cache[:whole].unflatten(0, (pieces, -1)).transpose(1, 2) for cache in (k, v)
    )
    out, lse = _flash_batch(queries, k_pieces, v_pieces, scale, causal=False)
    weights = torch.softmax(lse, 0).unsqueeze(-1)
    merged = (out * weights).sum(0, dtype=torch.float32), torch.logsumexp(lse, 0)
    if whole == k.shape[0]:
        return merged[0].to(q.dtype), merged[1]
    left = _flash(q, k[whole:].transpose(0, 1), v[whole:].transpose(0, 1), scale, causal=False)
    total = torch.logaddexp(merged[1], left[1])
    return merge([merged, left]).to(q.dtype), total


def _fold(q: Tensor, kv_heads: int) -> Tensor:
    """``[rows, heads, dim]`` to ``[kv_heads, heads / kv_heads * rows, dim]``, group major."""
    return q.transpose(0, 1).reshape(kv_heads, -1, q.shape[2])


def _flash(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> Part:
    """The flash kernel on ``[heads, tokens, head_dim]``; KV heads may be fewer than q's."""
    q, k, v = (tensor.unsqueeze(0) for tensor in (q, k, v))
    out, lse = _flash_batch(q, k, v, scale, causal=causal)
    return out[0], lse[0]


def _flash_batch(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> Part:
    """The flash kernel on ``[batch, heads, tokens, head_dim]``."""
    # Only this operator returns the log-sum-exp; test_attention_kernels.py pins it.
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001
    out, lse = flash(q, k, v, 0.0, causal, scale=scale)
    return out, lse


def _hidden(first_query: int, rows: int, first_key: int, keys: int, window: int) -> Tensor:
    """``[rows, keys]`` bool: True where a query must not see a key."""
    query = torch.arange(first_query, first_query + rows).unsqueeze(1)
    key = torch.arange(first_key, first_key + keys).unsqueeze(0)
    hidden = key > query
    if window >= 0:
        hidden |= key < query - window
    return hidden
