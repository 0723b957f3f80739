"""Hooks and entries of context parallelism. Its models come through SGLang's own registry."""

from sglang_ext.plugin.reference import reference_device
from sglang_ext.plugin.seam import Entry, Group, Hook

__all__ = ["ENTRIES", "GROUP", "GROUPS", "HOOKS"]

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


def _not_needed() -> str:
    """Why an entry has no place in this process."""
    return "" if reference_device() else "no batch is split on this device"


def _register_latent() -> None:
    from sglang.srt.arg_groups.resolution_hooks import register_resolution_hook

    from sglang_ext.context_parallel.latent import keep_experts_together

    register_resolution_hook(_LATENT_STEP)(keep_experts_together)


def _latent_present() -> bool:
    from sglang.srt.arg_groups import resolution_hooks

    from sglang_ext.context_parallel.latent import keep_experts_together

    registered = resolution_hooks._HOOKS  # noqa: SLF001 - the registry has no reader
    return keep_experts_together in registered.get(_LATENT_STEP, ())


_LATENT_STEP = "handle_model_specific_adjustments"

ENTRIES: tuple[Entry, ...] = (
    Entry(f"resolution of {_LATENT_STEP}", _register_latent, _latent_present, _not_needed),
)
