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

CHAT = "sglang.srt.entrypoints.openai.serving_chat:OpenAIServingChat"
TOOLS_OF_RESPONSES = (
    "sglang.srt.entrypoints.openai.serving_responses:"
    "OpenAIServingResponses._response_tools_to_chat_tools"
)
REQUEST_OF_MESSAGES = (
    "sglang.srt.entrypoints.anthropic.serving:AnthropicServing._convert_to_chat_completion_request"
)
CALL_PARSER = "sglang.srt.function_call.function_call_parser:FunctionCallParser"

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
    Symbol(
        "sglang.srt.managers.scheduler_components.internal_state:"
        "SchedulerInternalStateController.get_internal_state",
        "internal_state of the result is what /server_info shows of a scheduler",
        ("recv_req",),
    ),
    # --- tool calls
    Symbol(
        "sglang.srt.runtime_context:publish",
        "called once in each process when its arguments are known, before it serves",
        ("server_args", "role"),
    ),
    Symbol(
        f"{CHAT}._validate_request",
        "returns why a request is refused, or None",
        ("request",),
    ),
    Symbol(f"{CHAT}._effective_tools", "the tools of a request", ("request",)),
    Symbol(
        f"{CHAT}._process_tool_calls",
        "an answer that was not streamed, through the tool-call parser; finish_reason is the "
        "dict of the result's meta_info",
        ("text", "tools", "finish_reason"),
    ),
    Symbol(
        f"{CHAT}._process_tool_call_stream",
        "a piece of a streamed answer; parser_dict holds the parser of each choice",
        ("index", "delta", "parser_dict", "content", "request", "created", "flush"),
    ),
    Symbol(
        f"{CHAT}._build_chat_response",
        "the response, whose metadata is a dict of anything",
        ("request", "ret", "created"),
    ),
    Symbol(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
        "an async generator of answers, whose meta_info holds the scheduler's finish_reason",
        ("obj", "request"),
    ),
    Symbol(
        TOOLS_OF_RESPONSES,
        "tools of /v1/responses as those of chat, with strict false where nothing was said",
        ("request",),
    ),
    Symbol(
        REQUEST_OF_MESSAGES,
        "a request of /v1/messages as one of chat, with strict false where nothing was said",
        ("anthropic_request",),
    ),
    Symbol(
        f"{CALL_PARSER}.__init__",
        "made for each request and each answer",
        ("tools", "tool_call_parser", "tool_choice"),
    ),
    Symbol(
        f"{CALL_PARSER}.get_structure_constraint",
        "the constraint of a request; a ValueError is answered with 400",
        ("tool_choice", "parallel_tool_calls", "thinking_mode"),
    ),
    Symbol(f"{CALL_PARSER}.has_tool_call", "whether a text is parsed at all", ("text",)),
    Symbol(f"{CALL_PARSER}.owns_tool_format", "whether this parser reads required calls"),
    Symbol(f"{CALL_PARSER}.parse_non_stream", "content and calls of a text", ("full_text",)),
    Symbol(f"{CALL_PARSER}.parse_stream_chunk", "the same, of a piece", ("chunk_text",)),
    Symbol(f"{CALL_PARSER}.parse_stream_end", "the same, when nothing follows"),
    Symbol(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammarBackend.__init__",
        "makes cache, grammar_compiler and _tokenizer_info",
        ("tokenizer", "vocab_size"),
    ),
    Symbol(
        "sglang.srt.constrained.base_grammar_backend:BaseGrammarBackend.get_cached_or_future_value",
        "a grammar, or the future of one, and whether it was there",
        ("key", "require_reasoning"),
    ),
    Symbol(
        "sglang.srt.constrained.grammar_manager:GrammarManager.process_req_with_grammar",
        "req.grammar is the request's own when it was cached",
        ("req",),
    ),
    Symbol(
        "sglang.srt.constrained.grammar_manager:GrammarManager.get_ready_grammar_requests",
        "returns the requests whose grammar is compiled",
    ),
    Symbol(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammar.fill_vocab_mask",
        "fills one row of 32-bit words before a token is sampled",
        ("vocab_mask", "idx"),
    ),
    Symbol(
        "sglang.srt.constrained.xgrammar_backend:XGrammarGrammar.accept_token",
        "takes the token that was sampled",
        ("token",),
    ),
    Symbol(
        "sglang.srt.managers.schedule_batch:Req.update_finish_state",
        "sets finished_reason, whose to_json() is the finish_reason of meta_info",
        ("new_accepted_len",),
    ),
    Symbol(
        "sglang.srt.managers.schedule_batch:FINISH_LENGTH",
        "the reason of an answer that was cut off",
        ("length",),
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
