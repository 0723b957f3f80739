"""Hooks and registry entries of the tiered cache: its disk tier, its tree, its requests."""

from sglang_ext.cache import install
from sglang_ext.plugin.seam import Entry, Group, Hook
from sglang_ext.upstream.storage import WEIGHT_UPDATER

__all__ = ["ENTRIES", "GROUPS", "HOOKS"]

GROUPS = {
    "disk_tier": Group("this process has no disk tier", "schedulers with a disk tier"),
    "tree": Group("this process steers no tree", "schedulers with a steered tree"),
    "front": Group(
        "this process takes no requests for a steered tree",
        "the process that takes requests, with a steered tree",
    ),
}

HOOKS: tuple[Hook, ...] = (
    Hook(
        "sglang.srt.mem_cache.unified_radix_cache:UnifiedRadixCache.match_prefix",
        "AFTER",
        "sglang_ext.cache.hooks:refresh_on_hit",
        groups=("disk_tier",),
    ),
    Hook(
        "sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller:"
        "HybridCacheController._page_backup",
        "AROUND",
        "sglang_ext.cache.hooks:backup_as_one",
        groups=("disk_tier",),
    ),
    Hook(
        f"{WEIGHT_UPDATER}._observe_weight_load",
        "BEFORE",
        "sglang_ext.cache.hooks:weights_change",
        groups=("disk_tier",),
    ),
    Hook(
        f"{WEIGHT_UPDATER}.flush_cache_after_weight_update",
        "AFTER",
        "sglang_ext.cache.hooks:weights_changed",
        groups=("disk_tier",),
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.internal_state:"
        "SchedulerInternalStateController.get_internal_state",
        "AFTER",
        "sglang_ext.cache.hooks:show_state",
        groups=("disk_tier", "tree"),
    ),
    Hook(
        "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
        "AROUND",
        "sglang_ext.cache.front:carry_request",
        groups=("front",),
    ),
)

ENTRIES: tuple[Entry, ...] = (
    Entry("radix cache sglang_ext", install.register, install.present, install.not_needed),
)
