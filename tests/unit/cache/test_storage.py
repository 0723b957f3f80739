"""SGLang's storage interface over a real page store, with SGLang's own records and pools."""

import hashlib
import logging
from functools import partial
from types import SimpleNamespace

import pytest

pytest.importorskip("sglang")

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import HybridCacheController
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
from sglang.srt.mem_cache.unified_cache.storage_attachment import StorageAttachment
from sglang.srt.observability.metrics_collector import StorageMetrics
from support.host_pools import CopyOnlyPool, contents, mha_pool, tokens

from sglang_ext.cache import hooks, storage
from sglang_ext.cache.opening import open_store
from sglang_ext.cache.placement import Ranks
from sglang_ext.errors import ConfigError, StoreError, StoreInUseError

SIZE_BYTES = 20_000_000
ROOT = HiCacheStorageExtraInfo(prefix_keys=[])


def behind(*keys):
    return HiCacheStorageExtraInfo(prefix_keys=list(keys))


def chain(count, name="a"):
    return [hashlib.sha256(f"{name} {place}".encode()).hexdigest() for place in range(count)]


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def make(tmp_path, model, monkeypatch):
    """Makes storages on one folder, as SGLang does; all are closed at the end."""
    monkeypatch.setattr(hooks, "_opening", lambda part: [])
    monkeypatch.setattr(storage, "open_store", partial(open_store, wait_s=0.3))
    made = []

    def make_one(*, tp_rank=0, tp_size=1, mla=False, pool=None, asked=None, **ours):
        settings = {
            "folder": str(tmp_path / "kv"),
            "capacity_bytes": SIZE_BYTES,
            "write_limit_bytes_per_day": None,
            "admission": "all",
            "identity": {
                "session": "one",
                "model": str(model),
                "arguments": {"dtype": "float32", **(asked or {})},
            },
            **ours,
        }
        sharers = tp_size if mla else 1
        ranks = Ranks(0, 1, 0, 1, tp_rank, tp_size, sharers)
        monkeypatch.setattr(storage, "ranks_of", lambda _config: ranks)
        config = HiCacheStorageConfig(
            tp_rank=tp_rank,
            tp_size=tp_size,
            pp_rank=0,
            pp_size=1,
            attn_cp_rank=0,
            attn_cp_size=1,
            is_mla_model=mla,
            enable_storage_metrics=False,
            is_page_first_layout=False,
            model_name="any",
            extra_config={
                "backend_name": "sglang_ext",
                "module_path": "sglang_ext.cache.storage",
                "class_name": "PageStorage",
                "interface_v1": 1,
                "sglang_ext": settings,
            },
        )
        one = StorageBackendFactory.create_backend("dynamic", config, pool)
        made.append(one)
        if pool is not None:
            one.register_mem_pool_host(pool)
            one.register_mem_host_pool_v2(pool, PoolName.KV)
            one.on_host_pools_registered()
        return one

    (tmp_path / "kv").mkdir(mode=0o700)
    yield make_one
    for one in made:
        one.close()


def test_pages_survive_the_process_that_wrote_them(make):
    source, target, keys = mha_pool(seed=1), mha_pool(), chain(6)
    first = make(pool=source)
    assert first.batch_exists(keys, ROOT) == 0
    assert first.batch_set_v1(keys[:4], tokens(0, 1, 2, 3), ROOT) == [True] * 4
    assert first.batch_set_v1(keys[4:], tokens(9, 8), behind(*keys[:4])) == [True] * 2
    first.close()
    second = make(pool=target)
    assert second.batch_exists(keys, ROOT) == 6
    assert second.exists(keys[0])
    assert second.batch_get_v1(keys, tokens(5, 4, 3, 2, 1, 0), ROOT) == [True] * 6
    arrived, expected = contents(target, 5, 4, 3, 2, 1, 0), contents(source, 0, 1, 2, 3, 9, 8)
    assert all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))


def test_pools_without_addresses_are_copied(make):
    source, target, keys = mha_pool(seed=1), mha_pool(), chain(3)
    first = make(pool=CopyOnlyPool(source))
    assert first.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    first.close()
    assert make(pool=CopyOnlyPool(target)).batch_get_v1(keys, tokens(7, 8, 9), ROOT) == [True] * 3
    arrived, expected = contents(target, 7, 8, 9), contents(source, 0, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))


@pytest.mark.parametrize(
    "change", ["weights", "argument", "layout", "dtype", "rank", "model elsewhere"]
)
def test_who_differs_finds_nothing(make, model, change):
    keys = chain(3)
    first = make(pool=mha_pool(seed=1))
    first.batch_set_v1(keys, tokens(0, 1, 2), ROOT)
    first.close()
    options, pool = {}, mha_pool("page_first" if change == "layout" else "page_first_direct")
    if change == "weights":
        (model / "model.safetensors").write_bytes(b"Weights")
    elif change == "argument":
        options["asked"] = {"dtype": "bfloat16"}
    elif change == "dtype":
        pool.kv_buffer, pool.dtype = pool.kv_buffer.half(), torch.float16
    elif change == "rank":
        options.update(tp_size=2)
    elif change == "model elsewhere":
        options["identity"] = {
            "session": "two",
            "model": "s3://bucket/model",
            "arguments": {"dtype": "float32"},
        }
    second = make(pool=pool, **options)
    assert second.batch_exists(keys, ROOT) == 0
    assert second.batch_get_v1(keys, tokens(0, 1, 2), ROOT) == [False] * 3
    assert not pool.kv_buffer.any()


def test_a_write_that_does_not_say_what_it_follows_is_refused(make, caplog):
    one = make(pool=mha_pool(seed=1))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert one.batch_set_v1(chain(2), tokens(0, 1), None) == [False, False]
    lines = [r for r in caplog.records if "without the pages before" in r.getMessage()]
    assert len(lines) == 1
    assert one.describe()["faults"] == {"write without the pages before": 3}


def test_pages_turned_down_on_purpose_are_no_failure(make):
    one = make(pool=mha_pool(seed=1), admission="second")
    keys = chain(3)
    # SGLang logs a failure and stops offering the rest of a prompt.
    assert one.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    assert one.batch_exists(keys, ROOT) == 0
    assert one.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    assert one.batch_exists(keys, ROOT) == 3
    assert one.describe()["refused"] == {"admission": 3}


def transfer(name, keys, *pages, **more):
    return PoolTransfer(name=name, keys=list(keys), host_indices=tokens(*pages), **more)


@pytest.fixture
def hybrid(make):
    """Keys and values, an indexer of which every page is needed, and the state at the end."""
    one = make(pool=mha_pool(seed=1))
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


def needs():
    return [
        PoolTransfer(PoolName.INDEXER, indices_from_pool=PoolName.KV),
        PoolTransfer(PoolName.MAMBA, hit_policy=PoolHitPolicy.TRAILING_PAGES, keys=["any"]),
    ]


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


def test_ranks_that_share_their_pages(make):
    keys = chain(3)
    writer = make(pool=mha_pool(seed=1), mla=True, tp_size=2)
    target = mha_pool()
    reader = make(pool=target, mla=True, tp_size=2, tp_rank=1)
    assert writer.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    assert reader.batch_exists(keys, ROOT) == 3
    assert reader.batch_get_v1(keys, tokens(4, 5, 6), ROOT) == [True] * 3
    assert torch.equal(
        *(
            torch.cat(contents(p, *n))
            for p, n in [
                (target, (4, 5, 6)),
                (writer.mem_pool_host, (0, 1, 2)),
            ]
        )
    )
    assert writer.describe()["capacity_bytes"] > SIZE_BYTES * 0.99
    reader.clear()
    assert reader.batch_exists(keys, ROOT) == 3
    writer.clear()
    assert reader.batch_exists(keys, ROOT) == 0


def test_a_part_of_its_own_is_not_read_from_the_rank_that_writes(make):
    keys = chain(1)
    writer = make(pool=mha_pool(seed=1), mla=True, tp_size=2)
    writer.register_mem_host_pool_v2(mha_pool(seed=2), PoolName.MAMBA)
    reader = make(pool=mha_pool(), mla=True, tp_size=2, tp_rank=1)
    reader.register_mem_host_pool_v2(mha_pool(), PoolName.MAMBA)
    writer.batch_set_v1(keys, tokens(0), ROOT)
    assert writer.batch_set_v2([transfer(PoolName.MAMBA, keys, 0)], ROOT)[PoolName.MAMBA] == [True]
    moved = transfer(PoolName.MAMBA, keys, 3)
    assert reader.batch_get_v2([moved], ROOT)[PoolName.MAMBA] == [False]
    assert writer.batch_get_v2([moved], ROOT)[PoolName.MAMBA] == [True]


def test_the_server_shares_its_size_out(make, tmp_path):
    stores = [make(pool=mha_pool(), tp_rank=rank, tp_size=2) for rank in (0, 1)]
    assert sum(one.describe()["capacity_bytes"] for one in stores) <= SIZE_BYTES
    assert sorted(path.name for path in (tmp_path / "kv").iterdir()) == ["rank-0", "rank-1"]
    for one in stores:
        one.close()
    make(pool=mha_pool())  # one rank again
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["rank-0"]


def test_a_store_that_somebody_has_is_refused(make):
    make(pool=mha_pool())
    with pytest.raises(StoreInUseError, match="rank-0"):
        make(pool=mha_pool())


def test_nothing_goes_wrong_after_the_end(make):
    one, keys = make(pool=mha_pool(seed=1)), chain(2)
    one.batch_set_v1(keys, tokens(0, 1), ROOT)
    one.close()
    one.close()
    assert one.batch_exists(keys, ROOT) == 0
    assert one.batch_get_v1(keys, tokens(0, 1), ROOT) == [False, False]
    assert one.batch_set_v1(keys, tokens(0, 1), ROOT) == [False, False]
    assert one.batch_exists_v2(keys, needs(), ROOT).kv_hit_pages == 0
    assert one.batch_get_v2([transfer(PoolName.KV, keys, 0, 1)]) == {PoolName.KV: [False, False]}
    one.clear()


def test_a_tier_that_is_off_is_cleared(make):
    one, keys = make(pool=mha_pool(seed=1)), chain(2)
    one.batch_set_v1(keys, tokens(0, 1), ROOT)
    one.weights_change()
    one.clear()
    one.weights_changed(flushed=True)
    assert one.describe()["pages"] == 0


def test_sglang_is_told_that_clearing_failed(make, monkeypatch):
    one = make(pool=mha_pool(seed=1))
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


def test_faults_are_misses_and_one_line(make, caplog, monkeypatch):
    one, keys = make(pool=mha_pool(seed=1)), chain(2)
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


def test_changed_weights_see_no_page_of_the_old_ones(make):
    one, keys = make(pool=mha_pool(seed=1)), chain(2)
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
    assert make(pool=mha_pool()).batch_exists(keys, ROOT) == 2  # those of the model's files


def test_ranks_that_share_their_pages_go_on_sharing_after_an_update(make):
    keys = chain(2)
    writer = make(pool=mha_pool(seed=1), mla=True, tp_size=2)
    reader = make(pool=mha_pool(), mla=True, tp_size=2, tp_rank=1)
    for one in (writer, reader):
        one.weights_change()
        one.weights_changed(flushed=True)
    writer.batch_set_v1(keys, tokens(0, 1), ROOT)
    assert reader.batch_exists(keys, ROOT) == 2


def test_attached_without_its_settings(make):
    one = make(pool=mha_pool())
    config = HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, False, "any", extra_config={})
    with pytest.raises(ConfigError, match="--ext-l3-dir"):
        type(one)(config, {})


def test_without_its_hooks_it_stays_off(make, monkeypatch, caplog):
    monkeypatch.setattr(hooks, "_opening", lambda part: ["some.hook"])
    with caplog.at_level(logging.ERROR):
        one = make(pool=mha_pool(seed=1))
    assert one.batch_set_v1(chain(1), tokens(0), ROOT) == [False]
    assert "some.hook" in caplog.text


def test_metrics_are_sglangs(make):
    one, keys = make(pool=mha_pool(seed=1)), chain(3)
    one.batch_set_v1(keys, tokens(0, 1, 2), ROOT)
    one.batch_get_v1(keys[:2], tokens(3, 4), ROOT)
    told = one.get_stats()
    assert isinstance(told, StorageMetrics)
    assert (told.backup_pgs, told.prefetch_pgs) == ([3], [2])
    assert told.prefetch_bandwidth[0] > 0
    assert one.get_stats().prefetch_pgs == []


def test_calls_of_the_older_interface_are_misses(make):
    one = make(pool=mha_pool())
    assert one.get("key") is None
    assert one.batch_get(["key"]) == [None]
    assert one.set("key") is False
    assert one.batch_set(["key"]) is False
