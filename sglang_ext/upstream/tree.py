"""What the steered radix tree stands on."""

from sglang_ext.upstream.symbols import Symbol

__all__ = ["RADIX_CACHE", "SYMBOLS", "TREE_CORE"]

TREE_CORE = (
    "sglang.srt.mem_cache.unified_cache.unified_tree_core_interface:UnifiedTreeCoreInterface"
)
RADIX_CACHE = "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache"

SYMBOLS: tuple[Symbol, ...] = (
    Symbol(
        "sglang.srt.mem_cache.registry:register_radix_cache_backend",
        "enters a factory context -> cache under the name of --radix-cache-backend",
        ("name", "factory"),
    ),
    Symbol(
        "sglang.srt.mem_cache.registry:get_radix_cache_factory",
        "reads that registry",
        ("name",),
    ),
    Symbol(
        "sglang.srt.mem_cache.registry:create_unified_radix_cache",
        "makes the cache by calling cache_class with the parameters alone, then attaches host "
        "memory",
        ("ctx", "cache_class"),
    ),
    Symbol(
        "sglang.srt.mem_cache.registry:default_radix_cache_factory",
        "SGLang's own choice of a cache",
        ("ctx",),
    ),
    Symbol(
        "sglang.srt.mem_cache.unified_cache.tree_core_registry:register_tree_core_backend",
        "enters a factory (params, components) -> tree core under a name",
        ("name", "factory"),
    ),
    Symbol(
        "sglang.srt.mem_cache.unified_cache.tree_core_registry:get_tree_core_factory",
        "reads that registry",
        ("name",),
    ),
    Symbol(
        "sglang.srt.mem_cache.unified_cache.tree_core_registry:resolve_tree_core_backend",
        "says python where the Rust core cannot serve",
        ("name", "params"),
    ),
    *(
        Symbol(f"{TREE_CORE}.{name}", relied_on, parameters)
        for name, relied_on, parameters in (
            ("reset", "empties the tree; the root may have another id then", ()),
            ("root_node_handle", "the one root that all namespaces hang on", ()),
            (
                "begin_insert",
                "result.last_device_node is where the insert ended; it splits at most one node, "
                "and brings what it passes to the device",
                ("params",),
            ),
            ("resume_insert", "as begin_insert", ()),
            (
                "match_prefix",
                "splits at most one node, on its path; last_visited_node_id is where it ended",
                ("params",),
            ),
            (
                "insert_host",
                "a path in host memory below a node; inserted_host_node is its end",
                ("node_id", "key", "host_value", "hash_value"),
            ),
            (
                "commit_load_back",
                "kv_xfer.nodes_to_load are on the device from then on",
                ("node_id", "device_indices", "kv_xfer", "comp_xfers"),
            ),
            ("collect_path_info", "spans and children of the nodes of a path", ("end_node_ids",)),
            ("inc_lock_ref", "holds the path to a node", ("node_id", "skip_lock_components")),
            ("dec_lock_ref", "lets go of it", ("node_id", "params", "skip_swa")),
            ("inc_full_pin", "the same without a receipt", ("node_id",)),
            ("dec_full_pin", "the same without a receipt", ("node_id",)),
            ("full_protected_size", "tokens that are held", ()),
            ("full_evictable_size", "tokens that are not", ()),
            ("is_full_device_evicted", "whether a node is in host memory alone", ("node_id",)),
            ("is_backuped", "whether a node has a copy in host memory", ("node_id",)),
            ("inc_host_lock_ref", "keeps one node from leaving host memory", ("node_id",)),
            ("dec_host_lock_ref", "lets go of it", ("node_id", "params")),
            ("evict_device_start", "begins the core's own walk", ("component_type", "request_cnt")),
            (
                "evict_device_next_node",
                "names the next leaf; the controller evicts the one that is named",
                ("component_type", "tracker"),
            ),
            (
                "evict_device_leaf",
                "evicts any unlocked leaf, whoever named it; it goes to host memory if it has a "
                "copy there",
                ("node_id", "is_write_back"),
            ),
            ("evict_device_end", "ends the walk", ("component_type",)),
            ("demote", "evicts a leaf that has a copy in host memory", ("node_id",)),
            ("drop_subtree_no_host", "evicts a leaf and what hangs below it", ("node_id",)),
            (
                "drive_host_eviction",
                "evicts leaves of host memory that nobody holds",
                ("component_type", "num_tokens"),
            ),
        )
    ),
    *(
        Symbol(f"{RADIX_CACHE}.{name}", relied_on, parameters)
        for name, relied_on, parameters in (
            ("init_hicache", "attaches cache_controller", ("server_args", "params")),
            (
                "checkpoint_into_tree",
                "inserts what a request has computed; the last time once it is finished",
                ("req", "up_to"),
            ),
            ("on_release", "a request has given its memory back", ("req", "checkpointed")),
            ("release_aborted_request", "a request will not be answered", ("request",)),
            ("_handle_prefetch_result", "inserts what storage gave", ("operation",)),
            ("_evict", "params.num_tokens is what is needed", ("params",)),
        )
    ),
    Symbol(
        "sglang.srt.managers.scheduler_components.internal_state:"
        "SchedulerInternalStateController.get_internal_state",
        "internal_state of the result is what /server_info shows of a scheduler",
        ("recv_req",),
    ),
)
