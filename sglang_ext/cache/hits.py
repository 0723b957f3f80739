"""How long a prefix can be used when several pools have pages of it.

Pure: neither torch nor SGLang is imported.

Source: ``HiCacheStorage.batch_exists_v2`` in ``sglang/srt/mem_cache/hicache_storage.py``, release
0.5.23.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

__all__ = ["Need", "PoolPages", "Usable", "usable"]


class Need(Enum):
    """Which pages of a pool a prefix needs."""

    ALL = "all"
    LAST = "last"  # a window at its end
    GROUPS = "groups"  # none; the pool holds a second form of whole blocks


@dataclass(frozen=True)
class PoolPages:
    """What is there of one pool.

    Attributes:
        name: SGLang's name of the pool.
        need: which pages a prefix needs.
        there: for each page of the span whether it is there; for ``GROUPS`` for each of the
            pool's own pages.
        window_pages: length of the window of ``LAST``.
        group_pages: the pool's pages of one block, for ``GROUPS``.
        block_pages: pages of keys and values that a block covers, for ``GROUPS``.
    """

    name: str
    need: Need
    there: Sequence[bool]
    window_pages: int = 1
    group_pages: int = 0
    block_pages: int = 0


@dataclass(frozen=True)
class Usable:
    """The longest usable prefix; each pool's own verdict; every usable length, ascending."""

    pages: int
    by_pool: dict[str, int]
    lengths: list[int]


def usable(kv_pages: int, pools: Sequence[PoolPages]) -> Usable:
    """How much of a span can be used.

    Args:
        kv_pages: leading pages of keys and values that are there.
        pools: the others.

    Returns:
        A pool of which nothing is there has no verdict of its own.
    """
    by_pool = {"kv": kv_pages} if kv_pages else {}
    lengths = set(range(1, kv_pages + 1))
    for pool in pools:
        if pool.need is Need.GROUPS:
            verdict = _groups(pool, kv_pages)
        else:
            fitting = _lengths(pool, kv_pages)
            verdict = max(fitting, default=0)
            lengths &= fitting
        if verdict:
            by_pool[pool.name] = verdict
    return Usable(max(lengths, default=0), by_pool, sorted(lengths))


def _lengths(pool: PoolPages, kv_pages: int) -> set[int]:
    """The lengths of prefix for which the pool has what is needed."""
    there = list(pool.there[:kv_pages])
    run = 0  # pages in a row up to here
    fitting = set()
    for length, present in enumerate(there, start=1):
        run = run + 1 if present else 0
        needed = length if pool.need is Need.ALL else min(length, max(1, pool.window_pages))
        if run >= needed:
            fitting.add(length)
    return fitting


def _groups(pool: PoolPages, kv_pages: int) -> int:
    """Pages of keys and values that the leading whole groups cover."""
    if pool.group_pages < 1 or pool.block_pages < 1:
        return 0
    run = next((place for place, there in enumerate(pool.there) if not there), len(pool.there))
    return min(run // pool.group_pages * pool.block_pages, kv_pages)
