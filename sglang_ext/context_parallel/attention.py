"""Attention of one rank's slices, with the AllGather hidden behind what is already here.

While the rows of the other ranks are under way a rank attends to the cached prefix and to its own
new tokens; when they have landed, to theirs. The parts are put together by log-sum-exp, which is
exact up to rounding (2e-6 in float32 for values of order 1), whatever the order of the parts.

For devices without attention kernels of their own. Every part is one call of a flash kernel.

Source: FlashAttention (arXiv:2205.14135) for merging by log-sum-exp; the order after Context
Parallelism for Scalable Million-Token Inference (arXiv:2411.01783).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sglang_ext.context_parallel.plan import Plan, Slice
from sglang_ext.device.paged_attention import Part, attend_all, attend_causal, merge

__all__ = ["Read", "attend_slices"]

# (request, first position, end) -> keys and values [tokens, kv_heads, head_dim] from the cache, in
# order of position; positions count from the request's first token, cached or not.
Read = Callable[[int, int, int], tuple[Tensor, Tensor]]


def attend_slices(
    plan: Plan,
    rank: int,
    new: tuple[Tensor, Tensor, Tensor],
    scale: float,
    read: Read,
    land: Callable[[], None],
) -> Tensor:
    """Causal attention of this rank's new tokens over all tokens before them.

    Args:
        plan: the plan of this forward.
        rank: who we are in it.
        new: queries ``[tokens, heads, head_dim]``, keys and values ``[tokens, kv_heads, head_dim]``
            of this rank's tokens, in order of the plan's rows.
        scale: what scores are multiplied by before the softmax.
        read: reads the cache. Before ``land`` it is asked for cached tokens alone.
        land: waits for the other ranks' rows and writes them to the cache; called once, after
            everything that needs none of them.

    Returns:
        ``[tokens, heads, head_dim]`` in order of the plan's rows.
    """
    q, k, v = new
    slices = plan.slices(rank)
    rows = _rows(slices)
    parts: list[list[Part]] = []
    for number, piece in enumerate(slices):
        mine = rows[number]
        found = [attend_causal(q[mine], k[mine], v[mine], scale)]
        for earlier in _earlier(slices, number):
            theirs = rows[earlier]
            found.append(attend_all(q[mine], k[theirs], v[theirs], scale))
        cached = int(plan.prefix_lens[piece.request])
        if cached:
            found.append(attend_all(q[mine], *read(piece.request, 0, cached), scale))
        parts.append(found)
    land()
    out = torch.empty_like(q)
    for number, piece in enumerate(slices):
        mine = rows[number]
        cached = int(plan.prefix_lens[piece.request])
        for first, end in _gaps(slices, number):
            keys = read(piece.request, cached + first, cached + end)
            parts[number].append(attend_all(q[mine], *keys, scale))
        out[mine] = merge(parts[number]).transpose(0, 1)
    return out


def _rows(slices: Sequence[Slice]) -> list[slice]:
    """Rows of each slice among those of its rank."""
    found, first = [], 0
    for piece in slices:
        found.append(slice(first, first + piece.stop - piece.start))
        first += piece.stop - piece.start
    return found


def _earlier(slices: Sequence[Slice], number: int) -> list[int]:
    """Slices of the same request and rank before slice ``number``; they are in order."""
    return [other for other in range(number) if slices[other].request == slices[number].request]


def _gaps(slices: Sequence[Slice], number: int) -> list[tuple[int, int]]:
    """Runs of new tokens before slice ``number`` that other ranks have."""
    found, at = [], 0
    for other in [*_earlier(slices, number), number]:
        if slices[other].start > at:
            found.append((at, slices[other].start))
        at = slices[other].stop
    return found
