"""What stops a storage, or some of it: faults, changed weights, missing hooks, its end."""

import logging
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("sglang")


from sglang.srt.mem_cache.hicache_storage import PoolName
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.mem_cache.unified_cache.storage_attachment import StorageAttachment
from support.host_pools import mha_pool, tokens
from support.page_storage import ROOT, chain, needs, transfer

from sglang_ext.cache import hooks
from sglang_ext.errors import StoreError


def test_nothing_goes_wrong_after_the_end(make_storage):
    one, keys = make_storage(pool=mha_pool(seed=1)), chain(2)
    one.batch_set_v1(keys, tokens(0, 1), ROOT)
    one.close()
    one.close()
    assert one.batch_exists(keys, ROOT) == 0
    assert one.batch_get_v1(keys, tokens(0, 1), ROOT) == [False, False]
    assert one.batch_set_v1(keys, tokens(0, 1), ROOT) == [False, False]
    assert one.batch_exists_v2(keys, needs(), ROOT).kv_hit_pages == 0
    assert one.batch_get_v2([transfer(PoolName.KV, keys, 0, 1)]) == {PoolName.KV: [False, False]}
    one.clear()


def test_a_tier_that_is_off_is_cleared(make_storage):
    one, keys = make_storage(pool=mha_pool(seed=1)), chain(2)
    one.batch_set_v1(keys, tokens(0, 1), ROOT)
    one.weights_change()
    one.clear()
    one.weights_changed(flushed=True)
    assert one.describe()["pages"] == 0


def test_sglang_is_told_that_clearing_failed(make_storage, monkeypatch):
    one = make_storage(pool=mha_pool(seed=1))
    controller = SimpleNamespace(enable_storage=True, storage_backend=one)
    controller.clear_storage_backend = partial(
        HybridCacheController.clear_storage_backend, controller
    )
    attachment = StorageAttachment.__new__(StorageAttachment)
    attachment._cache = SimpleNamespace(cache_controller=controller)
    assert attachment.clear()

    def hangs():
        raise StoreError("the disk hangs")

    monkeypatch.setattr(one._store, "clear", hangs)
    assert not attachment.clear()
    assert one.describe()["faults"] == {"clear: StoreError": 1}


def test_faults_are_misses_and_one_line(make_storage, caplog, monkeypatch):
    one, keys = make_storage(pool=mha_pool(seed=1)), chain(2)
    one.batch_set_v1(keys, tokens(0, 1), ROOT)

    def broken(*_args, **_kwargs):
        raise RuntimeError("the pool moved")

    monkeypatch.setattr(one.mem_pool_host, "get_page_buffer_meta", broken, raising=False)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            assert one.batch_get_v1(keys, tokens(0, 1), ROOT) == [False, False]
            assert one.batch_set_v1(keys, tokens(0, 1), ROOT) == [False, False]
    lines = [r.getMessage() for r in caplog.records if "counts as a miss" in r.getMessage()]
    assert len(lines) == 2
    assert all("the pool moved" in line for line in lines)
    assert one.describe()["faults"] == {"read: RuntimeError": 5, "write: RuntimeError": 5}


def test_changed_weights_see_no_page_of_the_old_ones(make_storage):
    one, keys = make_storage(pool=mha_pool(seed=1)), chain(2)
    one.batch_set_v1(keys, tokens(0, 1), ROOT)
    hooks.weights_change()
    assert "weights" in one.describe()["off"]
    assert one.batch_exists(keys, ROOT) == 0
    assert one.batch_set_v1(keys, tokens(0, 1), ROOT) == [False, False]
    request = type("Request", (), {"flush_cache": False})
    hooks.weights_changed((True, ""), None, request, True, "")
    assert one.batch_exists(keys, ROOT) == 0
    request.flush_cache = True
    hooks.weights_changed((False, "requests are running"), None, request, True, "")
    assert one.describe()["off"]
    hooks.weights_changed((True, ""), None, request, True, "")
    assert one.describe()["off"] == ""
    assert one.batch_exists(keys, ROOT) == 0
    assert one.batch_set_v1(keys, tokens(0, 1), ROOT) == [True, True]
    assert one.batch_exists(keys, ROOT) == 2
    one.close()
    again = make_storage(pool=mha_pool())
    assert again.batch_exists(keys, ROOT) == 2  # those of the model's files


def test_ranks_that_share_their_pages_go_on_sharing_after_an_update(make_storage):
    keys = chain(2)
    writer = make_storage(pool=mha_pool(seed=1), mla=True, tp_size=2)
    reader = make_storage(pool=mha_pool(), mla=True, tp_size=2, tp_rank=1)
    for one in (writer, reader):
        one.weights_change()
        one.weights_changed(flushed=True)
    writer.batch_set_v1(keys, tokens(0, 1), ROOT)
    assert reader.batch_exists(keys, ROOT) == 2


def test_without_its_hooks_it_stays_off(make_storage, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "_opening", lambda part: ["some.hook"])
    with caplog.at_level(logging.ERROR):
        one = make_storage(pool=mha_pool(seed=1))
    assert one.batch_set_v1(chain(1), tokens(0), ROOT) == [False]
    assert "some.hook" in caplog.text
