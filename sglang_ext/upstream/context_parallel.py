"""What context parallelism stands on: SGLang's strategies, and parts of its models."""

from sglang_ext.upstream.symbols import Symbol

__all__ = ["SYMBOLS"]

_CP = "sglang.srt.layers.cp.base"
_STRATEGY = f"{_CP}:ContextParallelStrategy"
_MLA = "sglang.srt.models.deepseek_common.attention_backend_handler"
_DEEPSEEK = "sglang.srt.models.deepseek_v2"
_LLAMA = "sglang.srt.models.llama"

SYMBOLS: tuple[Symbol, ...] = (
    Symbol(
        f"{_CP}:init_cp_strategy",
        "makes the process's strategy from three values, and knows two names; in a worker "
        "get_cp_strategy calls it",
        ("enable_prefill_cp", "cp_size", "cp_strategy"),
    ),
    Symbol(f"{_CP}:_STRATEGY", "the process's strategy; None before it was made"),
    Symbol(f"{_CP}:get_cp_strategy", "the process's strategy, made on first use"),
    Symbol(f"{_CP}:is_cp_enabled", "whether there is one"),
    Symbol(f"{_CP}:BaseContextParallelMetadata", "base of what a strategy keeps for a forward"),
    Symbol(f"{_CP}:ContextParallelStrategyKind", "NONE is neither of SGLang's own"),
    Symbol(f"{_STRATEGY}.can_apply", "asked in every layer", ("num_tokens", "forward_batch")),
    Symbol(
        f"{_STRATEGY}.build_metadata",
        "once a forward, with the lengths of all requests of the batch",
        ("num_tokens", "seqs_len", "extend_seqs_len"),
    ),
    Symbol(f"{_STRATEGY}.shard_hidden_states", "embeddings and ids", ("x", "forward_batch")),
    Symbol(f"{_STRATEGY}.shard_position_ids", "positions", ("positions", "forward_batch")),
    Symbol(
        f"{_STRATEGY}.gather_hidden_states",
        "once a forward, before logits",
        ("x", "forward_batch", "stream"),
    ),
    Symbol(
        "sglang.srt.layers.cp.padding:pad_logical_token_to_physical",
        "rounds per_rank_actual_token up, and keeps it as per_rank_logical_token",
        ("metadata",),
    ),
    Symbol(
        "sglang.srt.model_executor.model_runner:adjust_config_with_unaligned_cpu_tp",
        "on a CPU, pads heads until they divide over all ranks",
        ("model_config", "load_config", "tp_size"),
    ),
    Symbol(
        "sglang.srt.models.registry:ModelRegistry",
        "takes models of the package that SGLANG_EXTERNAL_MODEL_PACKAGE names before its own",
    ),
    Symbol(
        f"{_LLAMA}:LlamaAttention.forward",
        "reads qkv_proj, q_size, kv_size, rotary_emb, attn and o_proj",
        ("positions", "hidden_states", "forward_batch"),
    ),
    Symbol(
        f"{_LLAMA}:LlamaAttention.forward_prepare_native",
        "queries, keys and values of a layer: Qwen3 normalises them here",
        ("positions", "hidden_states"),
    ),
    Symbol(
        "sglang.srt.models.utils:apply_qk_norm",
        "normalises each head's query and key",
        ("q", "k", "q_norm", "k_norm", "head_dim"),
    ),
    Symbol(
        f"{_LLAMA}:LlamaMLP.__init__",
        "cut over parallel_group; reduce_results leaves the sum to the boundary",
        ("hidden_size", "intermediate_size", "hidden_act", "reduce_results", "parallel_group"),
    ),
    Symbol(
        f"{_LLAMA}:LlamaDecoderLayer.forward",
        "reads self_attn, mlp, both norms and both boundaries",
        ("positions", "hidden_states", "forward_batch"),
    ),
    Symbol(f"{_LLAMA}:LlamaDecoderLayer.stage_facts", "a layer's stages", ("config", "layer_id")),
    Symbol(
        f"{_LLAMA}:LlamaModel.forward",
        "takes embeddings in place of ids; reads embed_tokens, layers and norm",
        ("input_ids", "positions", "forward_batch", "input_embeds"),
    ),
    Symbol(f"{_LLAMA}:LlamaForCausalLM._init_model", "makes the body", ("config", "quant_config")),
    Symbol(
        "sglang.srt.layers.linear:QKVParallelLinear.__init__",
        "heads are cut over parallel_group",
        ("hidden_size", "head_size", "total_num_heads", "total_num_kv_heads", "parallel_group"),
    ),
    Symbol(
        "sglang.srt.layers.linear:RowParallelLinear.__init__",
        "inputs are cut over parallel_group",
        ("input_size", "output_size", "reduce_results", "parallel_group"),
    ),
    Symbol(
        "sglang.srt.layers.linear:resolve_linear_parallel_group",
        "rank and size of such a group",
        ("parallel_group",),
    ),
    Symbol(
        "sglang.srt.layers.layer_boundary:append_stages",
        "plans the sums between the stages of a layer",
    ),
    Symbol(
        "sglang.srt.layers.layer_boundary:declare_ffn",
        "an MLP as wide as dense_tp_size ranks",
        ("dense_tp_size",),
    ),
    Symbol(
        "sglang.srt.layers.rotary_embedding:get_rope",
        "rotary embedding",
        ("head_size", "rotary_dim", "max_position", "base", "is_neox_style", "rope_scaling"),
    ),
    Symbol(
        "sglang.srt.utils:make_pp_layers",
        "the layers of this stage, and the facts of all",
        ("num_hidden_layers", "layer_fn", "prefix", "stage_facts"),
    ),
    Symbol(
        "sglang.srt.arg_groups.overrides:declare_resolution",
        "the last declaration of a field wins",
        ("server_args", "source"),
    ),
    Symbol(
        "sglang.srt.arg_groups.overrides:use_mla_backend",
        "whether the model's attention is latent",
        ("server_args",),
    ),
    Symbol(
        f"{_MLA}:AttentionBackendRegistry",
        "attention backend by name -> which form of latent attention a batch takes; triton's for "
        "names that it does not know",
    ),
    Symbol(
        f"{_DEEPSEEK}:DeepseekV2Model.__init__",
        "makes layers of the class that its module names DeepseekV2DecoderLayer",
        ("config", "quant_config"),
    ),
    Symbol(
        f"{_DEEPSEEK}:DeepseekV2DecoderLayer.__init__",
        "build_stages leaves the boundaries to a subclass",
        ("config", "layer_id", "quant_config", "build_stages"),
    ),
    Symbol(
        f"{_DEEPSEEK}:DeepseekV2DecoderLayer._build_stages",
        "both boundaries, from stage_facts",
        ("input_layernorm", "post_attention_layernorm", "qkv_latent_func"),
    ),
    Symbol(
        f"{_DEEPSEEK}:DeepseekV2DecoderLayer.stage_facts",
        "a layer's stages",
        ("config", "layer_id", "is_nextn", "output"),
    ),
    Symbol(
        f"{_DEEPSEEK}:DeepseekV2MLP.__init__",
        "cut over parallel_group; reduce_results leaves the sum to the boundary",
        ("hidden_size", "intermediate_size", "hidden_act", "reduce_results", "parallel_group"),
    ),
    Symbol(
        "sglang.srt.runtime_context:get_parallel",
        "attn_cp_group, attn_cp_rank, attn_tp_size and pp_group of this process",
    ),
)
