"""Names under which SGLang knows context parallelism of ours (pure)."""

__all__ = ["ARCHITECTURES", "MODEL_PACKAGE", "MODEL_PACKAGE_VARIABLE", "STRATEGY"]

# What --cp-strategy is set to.
STRATEGY = "sglang_ext"

# SGLang's registry of models reads the variable in every process that loads one.
MODEL_PACKAGE_VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"
MODEL_PACKAGE = "sglang_ext.context_parallel.models"

# Shapes whose layers are right when each rank has its own tokens; others are refused.
ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
)
