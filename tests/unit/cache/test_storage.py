"""SGLang's storage interface over a real page store, with SGLang's own records and pools."""

import logging

import pytest

pytest.importorskip("sglang")

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.observability.metrics_collector import StorageMetrics
from support.host_pools import CopyOnlyPool, contents, mha_pool, tokens
from support.page_storage import ROOT, SIZE_BYTES, behind, chain

from sglang_ext.cache.folder import overhead_bytes
from sglang_ext.errors import ConfigError, StoreInUseError


def test_pages_survive_the_process_that_wrote_them(make_storage):
    source, target, keys = mha_pool(seed=1), mha_pool(), chain(6)
    first = make_storage(pool=source)
    assert first.batch_exists(keys, ROOT) == 0
    assert first.batch_set_v1(keys[:4], tokens(0, 1, 2, 3), ROOT) == [True] * 4
    assert first.batch_set_v1(keys[4:], tokens(9, 8), behind(*keys[:4])) == [True] * 2
    first.close()
    second = make_storage(pool=target)
    assert second.batch_exists(keys, ROOT) == 6
    assert second.exists(keys[0])
    assert second.batch_get_v1(keys, tokens(5, 4, 3, 2, 1, 0), ROOT) == [True] * 6
    arrived, expected = contents(target, 5, 4, 3, 2, 1, 0), contents(source, 0, 1, 2, 3, 9, 8)
    assert all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))


def test_pools_without_addresses_are_copied(make_storage):
    source, target, keys = mha_pool(seed=1), mha_pool(), chain(3)
    first = make_storage(pool=CopyOnlyPool(source))
    assert first.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    first.close()
    assert (
        make_storage(pool=CopyOnlyPool(target)).batch_get_v1(keys, tokens(7, 8, 9), ROOT)
        == [True] * 3
    )
    arrived, expected = contents(target, 7, 8, 9), contents(source, 0, 1, 2)
    assert all(torch.equal(a, b) for a, b in zip(arrived, expected, strict=True))


@pytest.mark.parametrize(
    "change", ["weights", "argument", "layout", "dtype", "rank", "model elsewhere"]
)
def test_who_differs_finds_nothing(make_storage, model_folder, change):
    keys = chain(3)
    first = make_storage(pool=mha_pool(seed=1))
    first.batch_set_v1(keys, tokens(0, 1, 2), ROOT)
    first.close()
    options, pool = {}, mha_pool("page_first" if change == "layout" else "page_first_direct")
    if change == "weights":
        (model_folder / "model.safetensors").write_bytes(b"Weights")
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
    second = make_storage(pool=pool, **options)
    assert second.batch_exists(keys, ROOT) == 0
    assert second.batch_get_v1(keys, tokens(0, 1, 2), ROOT) == [False] * 3
    assert not pool.kv_buffer.any()


def test_a_write_that_does_not_say_what_it_follows_is_refused(make_storage, caplog):
    one = make_storage(pool=mha_pool(seed=1))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert one.batch_set_v1(chain(2), tokens(0, 1), None) == [False, False]
    lines = [r for r in caplog.records if "without the pages before" in r.getMessage()]
    assert len(lines) == 1
    assert one.describe()["faults"] == {"write without the pages before": 3}


def test_pages_turned_down_on_purpose_are_no_failure(make_storage):
    one = make_storage(pool=mha_pool(seed=1), admission="second")
    keys = chain(3)
    # SGLang logs a failure and stops offering the rest of a prompt.
    assert one.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    assert one.batch_exists(keys, ROOT) == 0
    assert one.batch_set_v1(keys, tokens(0, 1, 2), ROOT) == [True] * 3
    assert one.batch_exists(keys, ROOT) == 3
    assert one.describe()["refused"] == {"admission": 3}


def test_ranks_that_share_their_pages(make_storage):
    keys = chain(3)
    writer = make_storage(pool=mha_pool(seed=1), mla=True, tp_size=2)
    target = mha_pool()
    reader = make_storage(pool=target, mla=True, tp_size=2, tp_rank=1)
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
    one_store = SIZE_BYTES - overhead_bytes(SIZE_BYTES)
    assert writer.describe()["capacity_bytes"] == one_store
    reader.clear()
    assert reader.batch_exists(keys, ROOT) == 3
    writer.clear()
    assert reader.batch_exists(keys, ROOT) == 0


def test_the_server_shares_its_size_out(make_storage, tmp_path):
    stores = [make_storage(pool=mha_pool(), tp_rank=rank, tp_size=2) for rank in (0, 1)]
    assert sum(one.describe()["capacity_bytes"] for one in stores) <= SIZE_BYTES
    assert sorted(path.name for path in (tmp_path / "kv").iterdir()) == ["rank-0", "rank-1"]
    for one in stores:
        one.close()
    make_storage(pool=mha_pool())  # one rank again
    assert [path.name for path in (tmp_path / "kv").iterdir()] == ["rank-0"]


def test_a_store_that_somebody_has_is_refused(make_storage):
    make_storage(pool=mha_pool())
    with pytest.raises(StoreInUseError, match="rank-0"):
        make_storage(pool=mha_pool())


def test_attached_without_its_settings(make_storage):
    one = make_storage(pool=mha_pool())
    config = HiCacheStorageConfig(0, 1, 0, 1, 0, 1, False, False, False, "any", extra_config={})
    with pytest.raises(ConfigError, match="--ext-l3-dir"):
        type(one)(config, {})


def test_metrics_are_sglangs(make_storage):
    one, keys = make_storage(pool=mha_pool(seed=1)), chain(3)
    one.batch_set_v1(keys, tokens(0, 1, 2), ROOT)
    one.batch_get_v1(keys[:2], tokens(3, 4), ROOT)
    told = one.get_stats()
    assert isinstance(told, StorageMetrics)
    assert (told.backup_pgs, told.prefetch_pgs) == ([3], [2])
    assert told.prefetch_bandwidth[0] > 0
    assert one.get_stats().prefetch_pgs == []


def test_calls_of_the_older_interface_are_misses(make_storage):
    one = make_storage(pool=mha_pool())
    assert one.get("key") is None
    assert one.batch_get(["key"]) == [None]
    assert one.set("key") is False
    assert one.batch_set(["key"]) is False
