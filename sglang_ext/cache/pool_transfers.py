"""SGLang's transfers of several pools, as the third tier looks them up.

Source: ``sglang/srt/mem_cache/hicache_storage.py``, release 0.5.23.
"""

from collections.abc import Sequence

from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolTransfer, PoolTransferResult

from sglang_ext.cache.disk_tier import KV, DiskTier
from sglang_ext.cache.hits import Need, PoolPages, usable

__all__ = ["link", "look_up"]

_NEEDS = {
    PoolHitPolicy.ALL_PAGES: Need.ALL,
    PoolHitPolicy.TRAILING_PAGES: Need.LAST,
    PoolHitPolicy.BLOCK_GROUPS: Need.GROUPS,
}


def look_up(
    tier: DiskTier, keys: list[str], transfers: Sequence[PoolTransfer]
) -> PoolTransferResult:
    """How much of a prefix can be used: ``keys`` of its pages, and what other pools need of it."""
    link(tier, transfers)
    kv_pages = tier.prefix(keys)
    pools = []
    for transfer in transfers:
        need, name, own = _NEEDS[transfer.hit_policy], str(transfer.name), transfer.keys or []
        pools.append(
            PoolPages(
                name,
                need,
                tier.resident(name, own if need is Need.GROUPS else keys[:kv_pages]),
                window_pages=len(own) or 1,
                group_pages=transfer.group_pages,
                block_pages=transfer.block_pages,
            )
        )
    result = usable(kv_pages, pools)
    return PoolTransferResult(result.pages, result.by_pool, result.lengths)


def link(tier: DiskTier, transfers: Sequence[PoolTransfer]) -> None:
    """Tell the tier of which pools a prefix needs every page."""
    for transfer in transfers:
        if transfer.hit_policy == PoolHitPolicy.ALL_PAGES and transfer.indices_from_pool == KV:
            tier.link(str(transfer.name))
