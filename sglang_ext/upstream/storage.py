"""What the third tier of the cache stands on."""

from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS", "WEIGHT_UPDATER"]

WEIGHT_UPDATER = (
    "sglang.srt.managers.scheduler_components.weight_updater:SchedulerWeightUpdaterManager"
)

SYMBOLS: tuple[Symbol, ...] = (
    Symbol(
        "sglang.srt.mem_cache.storage.backend_factory:StorageBackendFactory._create_dynamic_backend",
        "makes a backend of the class that its extra config names, from (storage_config, kwargs)",
        ("backend_config", "storage_config", "mem_pool_host"),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:HiCacheStorageConfig",
        "where a rank stands, and the extra config",
        (
            *("tp_rank", "tp_size", "pp_rank", "pp_size", "attn_cp_rank", "attn_cp_size"),
            *("is_mla_model", "dcp_rank", "dcp_size", "extra_config"),
        ),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:HiCacheStorageExtraInfo",
        "prefix_keys: hashes of all pages in front of a call's first",
        ("prefix_keys",),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:PoolTransfer",
        "pages of one pool; which of them a prefix needs",
        ("name", "host_indices", "keys", "hit_policy", "indices_from_pool"),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:PoolTransferResult",
        "how much can be used; keyed by names of pools",
        ("kv_hit_pages", "extra_pool_hit_pages", "restorable_prefix_pages"),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:HiCacheStorage.batch_exists",
        "leading pages that are there; called by a thread of its own",
        ("keys", "extra_info"),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:HiCacheStorage.batch_get_v1",
        "fills pages of host memory, which stay locked until it returns",
        ("keys", "host_indices", "extra_info"),
    ),
    Symbol(
        "sglang.srt.mem_cache.hicache_storage:HiCacheStorage.batch_set_v1",
        "takes pages of host memory, which stay locked until it returns",
        ("keys", "host_indices", "extra_info"),
    ),
    Symbol(
        "sglang.srt.observability.metrics_collector:StorageMetrics",
        "pages and GB/s of each read and write since it was asked last",
        ("prefetch_pgs", "backup_pgs", "prefetch_bandwidth", "backup_bandwidth"),
    ),
    Symbol(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.get_page_buffer_meta",
        "addresses and lengths of the pieces of pages, page by page",
        ("indices",),
    ),
    Symbol(
        "sglang.srt.mem_cache.pool_host.common:HostTensorAllocator.allocate",
        "memory of host pools, which begins at a page of the machine",
        ("dims", "dtype", "device"),
    ),
    Symbol(
        "sglang.srt.mem_cache.utils:storage_namespace_seed",
        "a tenant's salt is the first link of the chain of page hashes",
        ("extra_key", "cache_salt"),
    ),
    Symbol(
        "sglang.srt.runtime_context:get_parallel",
        "ranks and sizes of this process, replicas included",
    ),
    Symbol(
        "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.match_prefix",
        "finds a request's prefix; the result's last_host_node is a number",
        ("params",),
    ),
    Symbol(
        "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.get_last_hash_value",
        "hash of the last page of a node",
        ("node_id",),
    ),
    Symbol(
        "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.get_prefix_hash_values",
        "hashes of all pages in front of a node",
        ("node_id",),
    ),
    Symbol(
        "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller:HybridCacheController._page_backup",
        "writes a node, sidecar pools before keys and values; its pages are locked meanwhile",
        ("operation",),
    ),
    Symbol(
        f"{WEIGHT_UPDATER}._observe_weight_load",
        "entered by each update_weights_from_… before it changes anything",
        ("source",),
    ),
    Symbol(
        f"{WEIGHT_UPDATER}.flush_cache_after_weight_update",
        "called once weights have changed; true when the caches were flushed as asked",
        ("recv_req", "success", "message"),
    ),
)
