"""Hooks of context parallelism: its strategy. Its models come through SGLang's own registry."""

from sglang_ext.plugin.seam import Group, Hook

__all__ = ["GROUP", "GROUPS", "HOOKS"]

GROUP = "context_parallel"

GROUPS = {
    GROUP: Group("this server splits no batches", "servers with --ext-cp-size"),
}

HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.layers.cp.base:init_cp_strategy",
        "AROUND",
        "sglang_ext.context_parallel.hooks:choose_strategy",
        groups=(GROUP,),
    ),
    Hook(
        "sglang.srt.model_executor.model_runner:adjust_config_with_unaligned_cpu_tp",
        "AROUND",
        "sglang_ext.context_parallel.hooks:pad_heads_for_attention",
        reference_device=True,
        groups=(GROUP,),
    ),
)
