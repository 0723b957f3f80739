"""Which process of a server owns which part of the third tier.

Pure: neither torch nor SGLang is imported.

Source: ``derive_attention_ranks`` in ``sglang/srt/runtime_context.py`` (the order of ranks) and
``HiCacheStorageConfig.is_storage_writer`` in ``sglang/srt/mem_cache/hicache_storage.py``, release
0.5.23.
"""

from dataclasses import dataclass

__all__ = ["Placement", "Ranks", "place"]


@dataclass(frozen=True)
class Ranks:
    """Where a process stands among those of its server.

    ``tp_rank`` counts within the whole tensor-parallel group; attention data and context
    parallelism split that group and add no processes.
    """

    replica: int
    replicas: int
    pp_rank: int
    pp_size: int
    tp_rank: int
    tp_size: int
    # Neighbours that hold the same KV: 1, or the tensor-parallel ranks of an MLA model.
    sharers: int = 1


@dataclass(frozen=True)
class Placement:
    """The store that a process uses: number ``owner`` of ``owners``; one process writes to it."""

    owner: int
    owners: int
    writes: bool

    @property
    def folder(self) -> str:
        """Name of the store's folder."""
        return f"rank-{self.owner}"

    def share(self, total_bytes: int) -> int:
        """This store's part of what the whole server may use; the parts never exceed it."""
        return total_bytes // self.owners


def place(ranks: Ranks) -> Placement:
    """The store of a process.

    Raises:
        ValueError: the ranks contradict each other.
    """
    checks = (
        ("replica", ranks.replica, ranks.replicas),
        ("pp_rank", ranks.pp_rank, ranks.pp_size),
        ("tp_rank", ranks.tp_rank, ranks.tp_size),
    )
    for name, rank, size in checks:
        if not 0 <= rank < size:
            raise ValueError(f"{name} {rank} of {size}")
    if ranks.sharers < 1 or ranks.tp_size % ranks.sharers:
        raise ValueError(f"{ranks.sharers} of {ranks.tp_size} ranks share their pages")
    process = (ranks.replica * ranks.pp_size + ranks.pp_rank) * ranks.tp_size + ranks.tp_rank
    processes = ranks.replicas * ranks.pp_size * ranks.tp_size
    return Placement(
        owner=process // ranks.sharers,
        owners=processes // ranks.sharers,
        writes=process % ranks.sharers == 0,
    )
