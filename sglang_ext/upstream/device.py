"""What the reference device stands on, host pools of the hierarchical cache included."""

from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS"]

SYMBOLS: tuple[Symbol, ...] = (
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
    Symbol(
        "sglang.srt.distributed.parallel_state:GroupCoordinator.reduce_scatter_tensor",
        "takes a custom op without a CPU kernel unless the module says it is on a CPU",
        ("output", "input"),
    ),
    Symbol(
        "sglang.srt.distributed.parallel_state:GroupCoordinator._reduce_scatter_tensor",
        "the same collective without the custom op",
        ("output", "input"),
    ),
    Symbol(
        "sglang.srt.mem_cache.memory_pool:MLATokenToKVPool",
        "one buffer a layer, [slots, 1, kv_cache_dim]: latent, then rotary part",
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
)
