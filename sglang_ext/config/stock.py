"""SGLang's own flags: which of them ours set, and which contradict ours; one line a capability."""

from collections.abc import Mapping
from typing import Any

from sglang_ext.config import ExtConfig, cache_stock, context_parallel_stock, tools
from sglang_ext.config.stock_setting import StockSetting
from sglang_ext.errors import FlagConflictError

__all__ = ["check_conflicts", "stock_settings"]


def stock_settings(
    config: ExtConfig, *, ranks: int, identity: Mapping[str, Any] | None = None
) -> tuple[StockSetting, ...]:
    """The stock flags that ``config`` sets on a server of ``ranks`` processes.

    Args:
        config: what was asked for.
        ranks: processes that hold KV. SGLang's own sizes are per rank.
        identity: model and arguments that decide what a cached page means, as plain values.

    Raises:
        ConfigError: a size does not suffice for so many ranks.
    """
    return (
        *cache_stock.settings(config.cache, ranks=ranks, identity=identity or {}),
        *context_parallel_stock.settings(config.context_parallel),
    )


def check_conflicts(
    config: ExtConfig, settings: tuple[StockSetting, ...], given: Mapping[str, Any]
) -> None:
    """Refuse stock flags that contradict ``config``.

    Args:
        config: what was asked for.
        settings: from `stock_settings`.
        given: stock arguments that the user gave himself, by attribute.

    Raises:
        FlagConflictError: names both flags.
    """
    cache_stock.check_reserved(config.cache, given)
    context_parallel_stock.check_reserved(config.context_parallel, given)
    for setting in settings:
        if setting.overridable or setting.field not in given:
            continue
        if given[setting.field] != setting.value:
            raise FlagConflictError(
                f"{setting.stock_flag} {given[setting.field]} contradicts {setting.because}, which "
                f"sets it to {setting.value}; drop one of them"
            )
    if config.active and (given.get("tokenizer_worker_num") or 1) > 1:
        ours = {
            "--ext-cache": config.cache.enabled,
            "--ext-cp-size": config.context_parallel.enabled,
            "--ext-tools": config.tools.enforce,
        }
        raise FlagConflictError(
            f"--tokenizer-worker-num {given['tokenizer_worker_num']} contradicts "
            f"{' and '.join(flag for flag, on in ours.items() if on)}: SGLang loads no plugins in "
            "the extra workers; leave it out"
        )
    cache_stock.check_values(config.cache, given)
    tools.check_values(config.tools, given)
