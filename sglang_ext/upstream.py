"""Every SGLang symbol that sglang-ext touches, what it relies on, and the releases tested.

The table is data: nothing of SGLang is imported until `check_symbol` is asked to. A compat test
and ``sglang-ext doctor`` check each row.
"""

import importlib
import importlib.metadata
import inspect
import os
from dataclasses import dataclass
from typing import Any

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from sglang_ext.errors import CompatibilityError

__all__ = [
    "RELEASE_OVERRIDE",
    "SYMBOLS",
    "TESTED_RELEASES",
    "TESTED_TORCH",
    "Symbol",
    "check_release",
    "check_symbol",
    "check_torch",
    "installed",
    "resolve",
]

TESTED_RELEASES = ("0.5.23",)
# The torch that the tested SGLang names in its metadata, and torchvision's match.
TESTED_TORCH = "2.14.1"
RELEASE_OVERRIDE = "SGLANG_EXT_ALLOW_RELEASE"
_INSTALL = f"pip install --no-deps sglang=={TESTED_RELEASES[-1]}"
_TESTED = f"sglang-ext was tested with SGLang {', '.join(TESTED_RELEASES)}; run: {_INSTALL}"


@dataclass(frozen=True)
class Symbol:
    """One name of SGLang that we hook, call or read.

    ``parameters`` are those we pass or receive by name or position; others may come and go.
    """

    path: str  # module:qualified.name
    relied_on: str
    parameters: tuple[str, ...] = ()


WEIGHT_UPDATER = (
    "sglang.srt.managers.scheduler_components.weight_updater:SchedulerWeightUpdaterManager"
)

TREE_CORE = (
    "sglang.srt.mem_cache.unified_cache.unified_tree_core_interface:UnifiedTreeCoreInterface"
)
RADIX_CACHE = "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache"

SYMBOLS: tuple[Symbol, ...] = (
    # --- plugin loading
    Symbol(
        "sglang.srt.plugins.hook_registry:HookRegistry.register",
        "registers a hook by dotted path",
        ("target", "hook", "hook_type"),
    ),
    Symbol(
        "sglang.srt.plugins.hook_registry:HookRegistry.apply_hooks",
        "the last thing that load_plugins() calls, outside of its try blocks: wrapped so that "
        "hooks are verified once they are applied",
    ),
    Symbol("sglang.srt.plugins.hook_registry:HookType", "has BEFORE, AFTER, AROUND and REPLACE"),
    # --- arguments
    Symbol(
        "sglang.srt.server_args:ServerArgs.add_cli_args",
        "static; adds the stock flags to an argparse parser that parses argv next",
        ("parser",),
    ),
    Symbol(
        "sglang.srt.server_args:ServerArgs.from_cli_args",
        "class method; builds the record from the parsed namespace; an attribute set on the "
        "record whose name begins with an underscore survives pickling to child processes",
        ("args",),
    ),
    Symbol(
        "sglang.srt.utils.common:build_server_info",
        "returns the dict that /server_info shows",
        ("server_args", "scheduler_info"),
    ),
    Symbol(
        "sglang.cli.serve:_print_llm_help",
        "prints the flags for sglang serve --help; plugins are not loaded by then",
        ("_request",),
    ),
    Symbol(
        "sglang.srt.arg_groups.resolution_hooks:register_resolution_hook",
        "registers fn(server_args, previous) for a named step of argument resolution",
        ("name",),
    ),
    Symbol(
        "sglang.srt.arg_groups.overrides:declare_resolution",
        "declares a resolved value without touching the user's input",
        ("server_args", "source"),
    ),
    # --- reference device
    Symbol(
        "sglang.srt.platforms.interface:SRTPlatform",
        "base of out-of-tree platforms; class named by the entry point sglang.srt.platforms",
    ),
    Symbol("sglang.srt.platforms.cpu:CpuDeviceMixin", "device operations of a CPU"),
    Symbol(
        "sglang.srt.layers.quantization.unquant:UnquantizedLinearMethod.apply",
        "base of our packed linear method; a layer's quant_method may be replaced after loading",
        ("layer", "x", "bias"),
    ),
    Symbol(
        "sglang.srt.layers.attention.attention_registry:register_attention_backend",
        "registers a factory runner -> backend by name",
        ("name",),
    ),
    Symbol(
        "sglang.srt.arg_groups.choices:add_attention_backend_choices",
        "lets --attention-backend take more names, given as a list",
    ),
    Symbol(
        "sglang.srt.layers.attention.attention_registry:ATTENTION_BACKENDS",
        "the registry itself: name -> factory",
    ),
    Symbol(
        "sglang.srt.arg_groups.resolution_hooks:_HOOKS",
        "the registry of resolution steps: name -> list of functions; read to verify ours",
    ),
    Symbol(
        "sglang.srt.mem_cache.memory_pool:KVWriteLoc.for_batch",
        "where the new tokens of a batch are written",
        ("swa_loc",),
    ),
    Symbol(
        "sglang.srt.mem_cache.swa_memory_pool:SWAKVPool",
        "layers_mapping tells a layer's pool; slots are translated between the two",
    ),
    Symbol(
        "sglang.srt.distributed.bootstrap:_bind_threads_if_cpu",
        "returns the processors of this rank before groups are made",
        ("device",),
    ),
    Symbol(
        "sglang.srt.distributed.bootstrap:_init_cpu_threads_env",
        "binds threads; calls sgl_kernel on ARM and where AMX is there",
        ("local_omp_cpuid", "dist_init_method"),
    ),
    Symbol(
        "sglang.srt.distributed.parallel_state:GroupCoordinator.all_gather_into_tensor",
        "takes a custom op without a CPU kernel unless the module says it is on a CPU",
        ("output", "input"),
    ),
    Symbol(
        "sglang.srt.distributed.parallel_state:GroupCoordinator._all_gather_into_tensor",
        "the same collective without the custom op",
        ("output", "input"),
    ),
    # --- host pools of the hierarchical cache
    Symbol(
        "sglang.srt.mem_cache.pool_host.base:HostKVCache.__init__",
        "base of host pools; pins its memory with CUDA when pin_memory is true",
        ("pin_memory",),
    ),
    Symbol(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.load_to_device_per_layer",
        "L2 to L1, one layer; its direct I/O backend calls sgl_kernel",
        ("device_pool", "host_indices", "device_indices", "layer_id", "io_backend", "is_draft"),
    ),
    Symbol(
        "sglang.srt.mem_cache.pool_host.mha:MHATokenToKVPoolHost.backup_from_device_all_layer",
        "L1 to L2, all layers; its direct I/O backend calls sgl_kernel",
        ("device_pool", "host_indices", "device_indices", "io_backend"),
    ),
    Symbol(
        "sglang.srt.mem_cache.cpp_utils.native_hash:get_native_hash",
        "keys of pages; compiles C++ with OpenSSL on first use",
        ("token_ids", "prior_digest", "page_size"),
    ),
    # --- third tier
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
    # --- what is known of requests
    Symbol(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
        "every endpoint that generates calls it before anything is sent to a scheduler; "
        "obj.kv_hints goes there",
        ("obj", "request"),
    ),
    Symbol(
        "sglang.srt.managers.kv_hints:KvHintAction",
        "an action in a request's hints; those that SGLang does not know are carried and ignored",
        ("action_id", "action_type", "action_version", "payload"),
    ),
    Symbol("sglang.srt.entrypoints.http_server:app", "takes further routes before it starts"),
    # --- the radix tree
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


def resolve(path: str) -> Any:
    """The object at ``module:qualified.name``.

    Raises:
        CompatibilityError: the module or the name is not there.
    """
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        absent = getattr(error, "name", None) or ""
        if isinstance(error, ModuleNotFoundError) and absent.split(".")[0] != "sglang":
            raise CompatibilityError(
                f"{module_name} cannot be imported: {error}",
                fix="install that package (requirements/server.txt names what SGLang needs)",
            ) from error
        raise CompatibilityError(f"{path} is not in this SGLang ({error})", fix=_TESTED) from error
    # A broken shared library under it, or a platform that SGLANG_PLATFORM names and nobody has.
    except (OSError, RuntimeError, KeyError) as error:
        raise CompatibilityError(f"{module_name} cannot be imported: {error}") from error
    return found


def check_symbol(symbol: Symbol) -> None:
    """Check that ``symbol`` exists and has the parameters that are relied on.

    Raises:
        CompatibilityError: it moved, or its signature changed.
    """
    found = resolve(symbol.path)
    if not symbol.parameters:
        return
    present = inspect.signature(found).parameters
    missing = [name for name in symbol.parameters if name not in present]
    if missing:
        raise CompatibilityError(
            f"{symbol.path} no longer takes {', '.join(missing)} (it takes {', '.join(present)})",
            fix=_TESTED,
        )


def installed(package: str) -> str | None:
    """The installed version of ``package``, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_release() -> str:
    """The installed SGLang release, if it is one that was tested.

    ``SGLANG_EXT_ALLOW_RELEASE=<version>`` (or ``any``) lets another one pass; its seams are
    still checked one by one.

    Raises:
        CompatibilityError: SGLang is missing or of another release.
    """
    release = installed("sglang")
    tested = ", ".join(TESTED_RELEASES)
    if release is None:
        raise CompatibilityError("SGLang is not installed", fix=f"run: {_INSTALL}")
    if release in TESTED_RELEASES or os.environ.get(RELEASE_OVERRIDE) in (release, "any"):
        return release
    raise CompatibilityError(
        f"SGLang {release} is not a release that sglang-ext was tested with ({tested})",
        fix=f"run: {_INSTALL}, or set {RELEASE_OVERRIDE}={release} to try it",
    )


def check_torch() -> None:
    """Check that torchvision, which SGLang imports, is the match of the installed torch.

    Raises:
        CompatibilityError: it is not, and importing it would fail.
    """
    torch, torchvision = installed("torch"), installed("torchvision")
    if torch is None or torchvision is None:
        missing = "torch" if torch is None else "torchvision"
        raise CompatibilityError(
            f"{missing} is not installed",
            fix=f"run: pip install torch=={TESTED_TORCH} with its matching torchvision",
        )
    try:
        public = Version(torch).public
    except InvalidVersion:  # a vendor's own scheme: the vendor knows its match
        return
    for line in importlib.metadata.requires("torchvision") or ():
        requirement = Requirement(line)
        if requirement.name == "torch" and not requirement.specifier.contains(
            public, prereleases=True
        ):
            raise CompatibilityError(
                f"torch {torch} is not the match of torchvision {torchvision}, which needs "
                f"{requirement}",
                fix=f"run: pip install torch=={TESTED_TORCH} with its matching torchvision, or the "
                "pair that your device's vendor built",
            )
