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
from dataclasses import dataclass

import torch
from torch import Tensor

from sglang_ext.context_parallel.plan import Plan
from sglang_ext.device.paged_attention import Part, attend_all, attend_causal, merge

__all__ = ["Read", "Task", "attend_slices", "tasks_of"]

# (request, first position, end) -> keys and values [tokens, kv_heads, head_dim] from the cache, in
# order of position; positions count from the request's first token, cached or not.
Read = Callable[[int, int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Task:
    """One slice of a rank, and where the keys lie that it attends to beside its own.

    Attributes:
        request: whose tokens they are.
        rows: the slice, among the rows of its rank.
        cached: tokens of the request's cached prefix.
        earlier: rows of the rank's slices of the same request before it.
        gaps: positions (first, end) of new tokens before it that other ranks have.
    """

    request: int
    rows: slice
    cached: int
    earlier: tuple[slice, ...]
    gaps: tuple[tuple[int, int], ...]


def tasks_of(plan: Plan, rank: int) -> tuple[Task, ...]:
    """What :func:`attend_slices` does for a rank: the same in every layer of a forward."""
    cached_lens = plan.prefix_lens.tolist()
    found: list[Task] = []
    request, row, at = -1, 0, 0
    earlier: tuple[slice, ...] = ()
    gaps: tuple[tuple[int, int], ...] = ()
    for piece in plan.slices(rank):
        if piece.request != request:
            request, at, earlier, gaps = piece.request, 0, (), ()
        cached = cached_lens[request]
        if piece.start > at:
            gaps = (*gaps, (cached + at, cached + piece.start))
        rows = slice(row, row + piece.stop - piece.start)
        found.append(Task(request, rows, cached, earlier, gaps))
        earlier = (*earlier, rows)
        row, at = rows.stop, piece.stop
    return tuple(found)


def attend_slices(
    tasks: Sequence[Task],
    new: tuple[Tensor, Tensor, Tensor],
    scale: float,
    read: Read,
    land: Callable[[], None],
) -> Tensor:
    """Causal attention of this rank's new tokens over all tokens before them.

    Args:
        tasks: this rank's slices in this forward.
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
    parts: list[list[Part]] = []
    for task in tasks:
        mine = task.rows
        found = [attend_causal(q[mine], k[mine], v[mine], scale)]
        found += [attend_all(q[mine], k[rows], v[rows], scale) for rows in task.earlier]
        if task.cached:
            found.append(attend_all(q[mine], *read(task.request, 0, task.cached), scale))
        parts.append(found)
    land()
    out = torch.empty_like(q)
    for task, found in zip(tasks, parts, strict=True):
        mine = task.rows
        for first, end in task.gaps:
            found.append(attend_all(q[mine], *read(task.request, first, end), scale))
        out[mine] = merge(found).transpose(0, 1)
    return out
