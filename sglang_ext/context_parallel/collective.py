"""One AllGather a layer: everything a layer must tell the other ranks, packed in equal rows.

Every rank sends one buffer of ``plan.rows`` rows. What arrives is not put back into order: one
index, computed once a forward from the plan alone, says into which cache slot each row goes.

Source: what stock SGLang does instead is ``_all_gather_reorganized`` and ``gather_kv_cache`` of
``sglang/srt/layers/cp/zigzag.py``, release 0.5.23: after the AllGather it concatenates twice, then
splits and copies keys and values, in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sglang_ext.context_parallel.plan import Plan
from sglang_ext.errors import DeviceError

__all__ = [
    "CountedGroup",
    "Flight",
    "GatherGroup",
    "Part",
    "ProcessGroup",
    "RowExchange",
    "RowLayout",
    "Work",
]

# Rows and parts begin at multiples of this many bytes. Default: 16, the widest load of a GPU; it
# costs up to 15 bytes a part and row.
ALIGN_BYTES = 16


class Work(Protocol):
    """A collective that was started."""

    def wait(self) -> object:
        """Blocks until the output of the collective can be read."""


class GatherGroup(Protocol):
    """Ranks that gather."""

    @property
    def ranks(self) -> int:
        """How many they are."""

    def start(self, output: Tensor, rows: Tensor) -> Work:
        """Starts an AllGather of ``rows`` into ``output``, in order of ranks; does not block.

        Args:
            output: ``[ranks * n, row_bytes]`` uint8, contiguous; not to be read before the wait.
            rows: ``[n, row_bytes]`` uint8, contiguous; not to be written before the wait.
        """


class ProcessGroup:
    """A group of ``torch.distributed``; every rank calls in the same order."""

    def __init__(self, group: torch.distributed.ProcessGroup | None = None) -> None:
        """Takes a group; None is the world."""
        self._group = group

    @property
    def ranks(self) -> int:
        """How many they are."""
        return int(torch.distributed.get_world_size(self._group))

    def start(self, output: Tensor, rows: Tensor) -> Work:
        """See :class:`GatherGroup`."""
        work: Work = torch.distributed.all_gather_into_tensor(
            output, rows, group=self._group, async_op=True
        )
        return work


@dataclass
class CountedGroup:
    """Counts what goes through a group.

    Attributes:
        group: who does the work.
        calls: AllGathers started.
        received_bytes: bytes that came from other ranks, padding included.
    """

    group: GatherGroup
    calls: int = 0
    received_bytes: int = 0

    @property
    def ranks(self) -> int:
        """How many they are."""
        return self.group.ranks

    def start(self, output: Tensor, rows: Tensor) -> Work:
        """Counts, then as :meth:`GatherGroup.start`."""
        self.calls += 1
        self.received_bytes += (self.ranks - 1) * rows.numel() * rows.element_size()
        return self.group.start(output, rows)


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of a token: ``shape`` without the token dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def row_bytes(self) -> int:
        """Bytes of one token."""
        return math.prod(self.shape) * int(self.dtype.itemsize)


@dataclass(frozen=True)
class RowLayout:
    """Where the parts of a token lie in a packed row.

    Attributes:
        parts: in order; keys and values, or latent, rotary part and indexer key.
    """

    parts: tuple[Part, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """First byte of each part, then of the next row."""
        at = [0]
        for part in self.parts:
            at.append(at[-1] + -(-part.row_bytes // ALIGN_BYTES) * ALIGN_BYTES)
        return tuple(at)

    @property
    def row_bytes(self) -> int:
        """Bytes of a packed row."""
        return self.offsets[-1]

    def views(self, buffer: Tensor) -> tuple[Tensor, ...]:
        """The parts of packed rows, in place.

        Args:
            buffer: ``[rows, row_bytes]`` uint8, contiguous.

        Returns:
            ``[rows, *shape]`` of each part; a strided view of ``buffer``.
        """
        found = []
        for part, offset in zip(self.parts, self.offsets, strict=False):
            flat = buffer[:, offset : offset + part.row_bytes].view(part.dtype)
            found.append(flat.unflatten(1, part.shape))
        return tuple(found)


@dataclass
class Flight:
    """An AllGather under way.

    Attributes:
        layout: how rows are packed.
        gathered: ``[ranks * rows, row_bytes]`` uint8.
        destinations: ``[ranks * rows]`` slot of each row.
        work: the collective.
    """

    layout: RowLayout
    gathered: Tensor
    destinations: Tensor
    work: Work
    _sent: Tensor = field(repr=False)  # must live until the collective is done

    def land(self, caches: Sequence[Tensor]) -> None:
        """Waits, then writes every row to its cache slot; blocks.

        Args:
            caches: ``[slots, *shape]`` of each part of the layout, in order.
        """
        self.work.wait()
        for cache, part in zip(caches, self.layout.views(self.gathered), strict=True):
            if part.dtype.itemsize == 1:  # torch has no index_copy of 8-bit floats
                cache, part = cache.view(torch.uint8), part.view(torch.uint8)
            cache.index_copy_(0, self.destinations, part)


class RowExchange:
    """The exchange of one forward: made once, used by every layer.

    Nothing is sent to make it: the plan is the same on all ranks, and so are the slots.
    """

    def __init__(self, plan: Plan, rank: int, slots: Tensor, padding_slot: int = 0) -> None:
        """Computes the index that all layers share.

        Args:
            plan: the plan of this forward.
            rank: who we are in it.
            slots: ``[new tokens]`` int64 cache slots of the batch, in the batch's order.
            padding_slot: where rows go that belong to no token. SGLang keeps slot 0 for that.

        Raises:
            DeviceError: there are more or fewer slots than tokens.
        """
        tokens = int(plan.tokens.sum())
        if slots.shape != (tokens,):
            raise DeviceError(
                f"a plan of {tokens} tokens got slots of shape {tuple(slots.shape)}; give one slot "
                "for each new token of the batch"
            )
        rows = torch.from_numpy(plan.gathered_rows()).to(slots.device)
        padded = torch.cat((slots, slots.new_full((1,), padding_slot)))
        self.plan = plan
        self.rank = rank
        self.destinations = padded[rows]

    def begin(self, group: GatherGroup, layout: RowLayout, parts: Sequence[Tensor]) -> Flight:
        """Packs this rank's rows and starts the layer's one AllGather; does not block.

        Args:
            group: the ranks of the plan.
            layout: how rows are packed.
            parts: ``[tokens of this rank, *shape]`` of each part, in order of the plan's rows.

        Raises:
            DeviceError: a part does not have a row for each token of this rank.
        """
        mine = int(self.plan.tokens[self.rank])
        sent = torch.zeros(
            self.plan.rows, layout.row_bytes, dtype=torch.uint8, device=parts[0].device
        )
        for view, part in zip(layout.views(sent), parts, strict=True):
            if part.shape != (mine, *view.shape[1:]) or part.dtype != view.dtype:
                raise DeviceError(
                    f"rank {self.rank} has {mine} tokens and got {tuple(part.shape)} {part.dtype}; "
                    f"give {(mine, *view.shape[1:])} {view.dtype}"
                )
            view[:mine] = part
        gathered = sent.new_empty(group.ranks * self.plan.rows, layout.row_bytes)
        return Flight(layout, gathered, self.destinations, group.start(gathered, sent), sent)
