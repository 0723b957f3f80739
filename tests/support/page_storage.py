"""What SGLang calls a storage with: keys of pages, what they follow, transfers of pools."""

import hashlib

from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)

from support.host_pools import tokens

SIZE_BYTES = 20_000_000
ROOT = HiCacheStorageExtraInfo(prefix_keys=[])


def behind(*keys):
    return HiCacheStorageExtraInfo(prefix_keys=list(keys))


def chain(count, name="a"):
    return [hashlib.sha256(f"{name} {place}".encode()).hexdigest() for place in range(count)]


def transfer(name, keys, *pages, **more):
    return PoolTransfer(name=name, keys=list(keys), host_indices=tokens(*pages), **more)


def needs():
    """What a prefix needs of an indexer and of a recurrent layer."""
    return [
        PoolTransfer(PoolName.INDEXER, indices_from_pool=PoolName.KV),
        PoolTransfer(PoolName.MAMBA, hit_policy=PoolHitPolicy.TRAILING_PAGES, keys=["any"]),
    ]
