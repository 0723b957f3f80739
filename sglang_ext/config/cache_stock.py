"""What ``--ext-cache`` sets among SGLang's own flags, and which of them contradict it."""

import json
from collections.abc import Mapping
from typing import Any

from sglang_ext.config.cache import DEFAULT_PAGE_TOKENS, CacheConfig
from sglang_ext.config.sizes import format_size
from sglang_ext.config.stock_setting import StockSetting
from sglang_ext.errors import ConfigError, FlagConflictError

__all__ = ["CACHE_RESERVED", "STEERED_RESERVED", "check_reserved", "check_values", "settings"]

# The third tier of one rank is not smaller: its index and journal want some of it too.
_LEAST_L3_BYTES = 8_000_000

# Stock flags that no value makes compatible with --ext-cache, and why.
CACHE_RESERVED: dict[str, str] = {
    "disable_radix_cache": "switches off the prefix cache that --ext-cache tiers",
    "enable_lmcache": "replaces the cache that --ext-cache installs",
    "enable_unified_cache_external_linker": "excludes SGLang's hierarchical cache",
    "radix_cache_backend": "replaces the cache that --ext-cache installs",
    "enable_hisparse": "cannot share a server with the radix cache",
}

# The same where the tree is steered (--ext-cache-policy ext or lru).
STEERED_RESERVED: dict[str, str] = {
    "enable_session_radix_cache": "it orders the cache by sessions of its own",
    "enable_kv_cache_sharding": "SGLang allows it with its own radix cache alone",
    "radix_eviction_policy_config": "it configures the policy that is replaced",
}


def settings(
    cache: CacheConfig, *, ranks: int, identity: Mapping[str, Any]
) -> tuple[StockSetting, ...]:
    """The stock flags that ``cache`` sets; see `stock.stock_settings`.

    Raises:
        ConfigError: a size does not suffice for so many ranks.
    """
    if not cache.enabled:
        return ()
    chosen = [
        StockSetting("enable_hierarchical_cache", True, "--ext-cache"),
        StockSetting("hicache_write_policy", "write_through", "--ext-cache"),
        StockSetting("page_size", DEFAULT_PAGE_TOKENS, "--ext-cache", overridable=True),
        StockSetting("enable_cache_report", True, "--ext-cache", overridable=True),
    ]
    if cache.steered:
        chosen += [
            StockSetting("radix_cache_backend", "sglang_ext", "--ext-cache"),
            StockSetting("radix_eviction_policy", "lru", "--ext-cache"),
        ]
    if cache.l1_tokens:
        chosen.append(StockSetting("max_total_tokens", cache.l1_tokens, "--ext-l1-tokens"))
    if cache.l2_bytes:
        # The stock flag counts whole gigabytes (10^9) a rank; the code behind it takes
        # fractions, and so do we (relied on: see `upstream`).
        gigabytes = cache.l2_bytes / ranks / 1e9
        chosen.append(StockSetting("hicache_size", gigabytes, "--ext-l2-size"))
    if cache.l3_dir:
        chosen += [
            StockSetting("hicache_storage_backend", "dynamic", "--ext-l3-dir"),
            StockSetting(
                "hicache_storage_prefetch_policy", "wait_complete", "--ext-l3-dir", overridable=True
            ),
            StockSetting(
                "hicache_storage_backend_extra_config",
                _l3_extra(cache, ranks, identity),
                "--ext-l3-dir",
            ),
        ]
    return tuple(chosen)


def _l3_extra(cache: CacheConfig, ranks: int, identity: Mapping[str, Any]) -> str:
    """Which class SGLang loads and how it is called; the rest is for that class."""
    least_bytes = ranks * _LEAST_L3_BYTES
    if (cache.l3_bytes or 0) < least_bytes:
        raise ConfigError(
            f"--ext-l3-size: {format_size(cache.l3_bytes or 0)} for {ranks} ranks holds next to "
            f"nothing; give at least {format_size(least_bytes)}"
        )
    return json.dumps(
        {
            "backend_name": "sglang_ext",
            "module_path": "sglang_ext.cache.storage",
            "class_name": "PageStorage",
            "interface_v1": 1,
            "hicache_storage_pass_prefix_keys": True,
            # Below this many tokens a look-up on disk costs more than it brings.
            "prefetch_threshold": DEFAULT_PAGE_TOKENS,
            "sglang_ext": {
                "folder": cache.l3_dir,
                "capacity_bytes": cache.l3_bytes,
                "write_limit_bytes_per_day": cache.l3_write_limit_bytes,
                "admission": cache.l3_admit or "all",
                "identity": identity,
            },
        }
    )


def check_reserved(cache: CacheConfig, given: Mapping[str, Any]) -> None:
    """Refuse stock flags that no value makes compatible.

    Raises:
        FlagConflictError: names both flags.
    """
    if not cache.enabled:
        return
    for name, why in CACHE_RESERVED.items():
        if given.get(name):
            raise FlagConflictError(
                f"--{name.replace('_', '-')} contradicts --ext-cache: it {why}; drop one of them"
            )
    if not cache.steered:
        return
    for name, why in STEERED_RESERVED.items():
        if given.get(name):
            raise FlagConflictError(
                f"--{name.replace('_', '-')} contradicts --ext-cache: {why}; drop one of them, or "
                "give --ext-cache-policy stock"
            )


def check_values(cache: CacheConfig, given: Mapping[str, Any]) -> None:
    """Refuse values of stock flags that contradict ``cache``.

    Raises:
        FlagConflictError: names both flags.
    """
    if not cache.enabled:
        return
    if cache.l3_dir:
        _check_l3_conflicts(given)
    if (given.get("tokenizer_worker_num") or 1) > 1:
        raise FlagConflictError(
            f"--tokenizer-worker-num {given['tokenizer_worker_num']} contradicts --ext-cache: "
            "SGLang loads no plugins in the extra workers; drop one of them"
        )
    if cache.l2_bytes and "hicache_ratio" in given:
        raise FlagConflictError(
            "--hicache-ratio contradicts --ext-l2-size, which sizes the host tier; drop one of them"
        )


def _check_l3_conflicts(given: Mapping[str, Any]) -> None:
    if (given.get("dcp_size") or 1) > 1:
        raise FlagConflictError(
            f"--dcp-size {given['dcp_size']} contradicts --ext-l3-dir: with decode context "
            "parallelism SGLang takes no storage but its own file and mooncake; drop one of them"
        )
    if given.get("disaggregation_decode_enable_offload_kvcache"):
        raise FlagConflictError(
            "--disaggregation-decode-enable-offload-kvcache contradicts --ext-l3-dir: it writes "
            "pages without saying which pages they follow; drop one of them"
        )
