"""Storages on one folder, as SGLang makes them; SGLang is imported when one is asked for."""

from functools import partial

import pytest

from sglang_ext.cache.opening import open_store
from sglang_ext.cache.placement import Ranks


@pytest.fixture
def model_folder(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


@pytest.fixture
def make_storage(tmp_path, model_folder, monkeypatch):
    """Makes storages on one folder, as SGLang does; all are closed at the end."""
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig, PoolName
    from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
    from support.page_storage import SIZE_BYTES

    from sglang_ext.cache import hooks, storage

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
                "model": str(model_folder),
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
