"""Names under which SGLang knows context parallelism of ours (pure)."""

__all__ = [
    "ARCHITECTURES",
    "LATENT_ARCHITECTURES",
    "MODEL_PACKAGE",
    "MODEL_PACKAGE_VARIABLE",
    "STRATEGY",
    "heads_stay_whole",
]

# What --cp-strategy is set to.
STRATEGY = "sglang_ext"

# SGLang's registry of models reads the variable in every process that loads one.
MODEL_PACKAGE_VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"
MODEL_PACKAGE = "sglang_ext.context_parallel.models"

# Shapes whose layers are right when each rank has its own tokens; others are refused.
LATENT_ARCHITECTURES = ("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
ARCHITECTURES = (
    "LlamaForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    *LATENT_ARCHITECTURES,
)


def heads_stay_whole(tp_size: int, ranks: int | None) -> str:
    """Why a latent model is refused on more ranks than its batches are split over."""
    return (
        f"--tp-size {tp_size} contradicts --ext-cp-size {ranks}: the heads of a latent model were "
        "never cut over ranks; leave out --tp-size"
    )
