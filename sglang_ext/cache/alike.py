"""Ranks that must evict alike: they begin with the same knowledge, and are known to reckon alike.

Each rank of a tensor- or pipeline-parallel group has a tree of its own, and each must evict the
same nodes: else one finds a prefix that another lacks, and they wait for each other for ever. What
the policy is told comes to all in the same order, with the same times. What it makes of that is
arithmetic, which is equal where processors and libraries are; both are compared when a server
starts.

Source: ``UnifiedRadixCache._all_reduce_attn_groups`` (which groups), release 0.5.23.
"""

from typing import Any

import torch
from torch import distributed

__all__ = ["AlikeRanks"]


class AlikeRanks:
    """The ranks that share each decision of one tree; all of them call each method together.

    Args:
        groups: process groups on the CPU whose product they are; None and groups of one are left
            out.
    """

    def __init__(self, *groups: Any) -> None:
        self._groups = [
            group for group in groups if group is not None and distributed.get_world_size(group) > 1
        ]

    @classmethod
    def of(cls, params: Any) -> "AlikeRanks":
        """The ranks of SGLang's ``CacheInitParams``."""
        attention = cls(params.attn_cp_cache_group, params.attn_tp_cache_group)
        within = attention._groups or [params.tp_cache_group]
        return cls(params.pp_cache_group, *within)

    def __bool__(self) -> bool:
        """Whether there is more than one."""
        return bool(self._groups)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank whose knowledge counts."""
        return all(distributed.get_rank(group) == 0 for group in self._groups)

    def from_first(self, data: bytes) -> bytes:
        """What the first rank gave; what the others give is ignored."""
        for group in self._groups:
            length = torch.tensor([len(data)], dtype=torch.int64)
            distributed.broadcast(length, group=group, group_src=0)
            body = torch.zeros(int(length), dtype=torch.uint8)
            if distributed.get_rank(group) == 0 and data:
                body = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            if len(body):
                distributed.broadcast(body, group=group, group_src=0)
            data = body.numpy().tobytes()
        return data

    def have_the_same(self, number: int) -> bool:
        """Whether all ranks gave the same number, which fits in 63 bits."""
        both = torch.tensor([number, -number], dtype=torch.int64)
        for group in self._groups:
            distributed.all_reduce(both, op=distributed.ReduceOp.MIN, group=group)
        return bool(both[0] == -both[1])
