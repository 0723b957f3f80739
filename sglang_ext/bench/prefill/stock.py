"""SGLang's own context-parallel strategies without a server: one rank of a group that counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

from torch import Tensor

__all__ = ["CountingGroup", "as_rank_zero", "stock_strategy"]


class CountingGroup:
    """Stands where SGLang's group stands, and counts; every other rank sends what we send.

    Attributes:
        calls: AllGathers.
        received_bytes: bytes that other ranks would have sent, padding included.
    """

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.calls = 0
        self.received_bytes = 0

    def all_gather_into_tensor(self, output: Tensor, rows: Tensor) -> None:
        """As SGLang's ``GroupCoordinator`` has it."""
        self.calls += 1
        self.received_bytes += (self.ranks - 1) * rows.numel() * rows.element_size()
        output.copy_(rows.repeat(self.ranks, *(1,) * (rows.ndim - 1)))


def stock_strategy(scheme: str, ranks: int) -> Any:
    """Rank 0 of SGLang's ``zigzag`` or ``interleave``."""
    from sglang.srt.layers.cp.interleave import InterleaveCPStrategy
    from sglang.srt.layers.cp.zigzag import ZigzagCPStrategy

    base = {"zigzag": ZigzagCPStrategy, "interleave": InterleaveCPStrategy}[scheme]
    # A property of SGLang asks the groups of the process, and there are none here.
    return type(base.__name__, (base,), {"cp_rank": 0})(cp_size=ranks)


@contextmanager
def as_rank_zero(group: CountingGroup, pool: Any) -> Iterator[None]:
    """Inside, SGLang's strategies gather over ``group`` and write to ``pool``."""
    import torch
    from sglang.srt.layers import dp_attention
    from sglang.srt.layers.cp import interleave, zigzag

    parallel = SimpleNamespace(attn_cp_group=group, attn_cp_rank=0, attn_cp_size=group.ranks)
    with ExitStack() as stack:

        def put(owner: Any, name: str, answer: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, return_value=answer))

        for module in (dp_attention, interleave, zigzag):
            put(module, "get_parallel", parallel)
        # Interleave asks for a CUDA stream and for symmetric memory on every device.
        put(torch.cuda, "current_stream", None)
        put(interleave, "use_symmetric_memory", nullcontext())
        put(interleave, "is_allocation_symmetric", False)
        put(zigzag, "get_token_to_kv_pool", pool)
        yield
