"""Several pools of pages in one storage, with SGLang's own records and pools."""

import pytest

pytest.importorskip("sglang")

import torch
from sglang.srt.mem_cache.hicache_storage import PoolHitPolicy, PoolName, PoolTransfer
from support.host_pools import contents, mha_pool, tokens
from support.page_storage import ROOT, behind, chain, needs, transfer

from sglang_ext.cache import hooks


@pytest.fixture
def hybrid(make_storage):
    """Keys and values, an indexer of which every page is needed, and the state at the end."""
    one = make_storage(pool=mha_pool(seed=1))
    one.register_mem_host_pool_v2(mha_pool(seed=2), PoolName.INDEXER)
    one.register_mem_host_pool_v2(mha_pool(seed=3), PoolName.MAMBA)
    return one


def backup(one, keys, before=(), state=None):
    """As SGLang writes a node: sidecars first, keys and values last."""
    pages = range(len(before), len(before) + len(keys))

    def run():
        derived = {"indices_from_pool": PoolName.KV, "hit_policy": PoolHitPolicy.ALL_PAGES}
        transfers = [transfer(PoolName.INDEXER, keys, *pages, **derived)]
        done = one.batch_set_v2(transfers, behind(*before))
        if state is not None:
            last = PoolHitPolicy.TRAILING_PAGES
            tail = [transfer(PoolName.MAMBA, keys[-1:], state, hit_policy=last)]
            done.update(one.batch_set_v2(tail, behind(*before, *keys[:-1])))
        assert all(all(oks) for oks in done.values())
        return one.batch_set_v1(list(keys), tokens(*pages), behind(*before))

    return hooks.backup_as_one(lambda _controller, _operation: run(), None, None)


def test_several_pools_are_used_together(hybrid):
    keys = chain(6)
    assert backup(hybrid, keys[:3], state=0) == [True] * 3
    assert backup(hybrid, keys[3:], before=keys[:3], state=1) == [True] * 3
    found = hybrid.batch_exists_v2(keys, needs(), ROOT)
    assert found.kv_hit_pages == 6
    assert found.restorable_prefix_pages == [3, 6]
    assert found.extra_pool_hit_pages[PoolName.KV] == 6
    assert found.extra_pool_hit_pages[PoolName.INDEXER] == 6
    assert found.extra_pool_hit_pages[PoolName.MAMBA] == 6
    shorter = hybrid.batch_exists_v2(keys[:5], needs(), ROOT)
    assert (shorter.kv_hit_pages, shorter.restorable_prefix_pages) == (3, [3])
    done = hybrid.batch_get_v2(
        [transfer(PoolName.INDEXER, keys[:2], 7, 8), transfer(PoolName.MAMBA, keys[5:], 9)], ROOT
    )
    assert done == {PoolName.INDEXER: [True, True], PoolName.MAMBA: [True]}
    indexer, state = hybrid.registered_pools[PoolName.INDEXER], hybrid._pools["mamba"]
    arrived, expected = contents(indexer, 7, 8), contents(indexer, 0, 1)
    assert all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))
    assert torch.equal(*contents(state, 9, 1))


def test_a_prefix_without_its_state_is_not_restorable(hybrid):
    keys = chain(4)
    assert backup(hybrid, keys) == [True] * 4
    found = hybrid.batch_exists_v2(keys, needs(), ROOT)
    assert (found.kv_hit_pages, found.restorable_prefix_pages) == (0, [])
    assert found.extra_pool_hit_pages == {PoolName.KV: 4, PoolName.INDEXER: 4}


def test_a_transfer_without_memory_is_refused_and_others_go_on(hybrid):
    keys = chain(2)
    hybrid.batch_set_v1(keys, tokens(0, 1), ROOT)
    wrong = PoolTransfer(PoolName.MAMBA, keys=keys[:1], host_indices=tokens(1)[:-1])
    right = transfer(PoolName.INDEXER, keys[:1], 0)
    done = hybrid.batch_set_v2([wrong, right], ROOT)
    assert done == {PoolName.MAMBA: [False], PoolName.INDEXER: [True]}


def test_a_part_of_its_own_is_not_read_from_the_rank_that_writes(make_storage):
    keys = chain(1)
    writer = make_storage(pool=mha_pool(seed=1), mla=True, tp_size=2)
    writer.register_mem_host_pool_v2(mha_pool(seed=2), PoolName.MAMBA)
    reader = make_storage(pool=mha_pool(), mla=True, tp_size=2, tp_rank=1)
    reader.register_mem_host_pool_v2(mha_pool(), PoolName.MAMBA)
    writer.batch_set_v1(keys, tokens(0), ROOT)
    assert writer.batch_set_v2([transfer(PoolName.MAMBA, keys, 0)], ROOT)[PoolName.MAMBA] == [True]
    moved = transfer(PoolName.MAMBA, keys, 3)
    assert reader.batch_get_v2([moved], ROOT)[PoolName.MAMBA] == [False]
    assert writer.batch_get_v2([moved], ROOT)[PoolName.MAMBA] == [True]
