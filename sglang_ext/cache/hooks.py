"""What SGLang's cache does differently with sglang-ext, as hooks. `plugin/` installs them."""

import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from sglang_ext.cache.disk_order import DiskAdvice
from sglang_ext.cache.keys import page_keys

__all__ = [
    "AdvisedTier",
    "DiskTierHooks",
    "backup_as_one",
    "disk_tier",
    "hash_without_compiler",
    "on_opening",
    "opening",
    "refresh_on_hit",
    "set_disk_tier",
    "set_tree",
    "show_state",
    "weights_change",
    "weights_changed",
]

logger = logging.getLogger(__name__)


class DiskTierHooks(Protocol):
    """What the hooks tell the third tier of this process; none of it raises."""

    def operation(self, run: Callable[[], Any]) -> Any:
        """Run one of SGLang's writes."""

    def hit(self, last_page: str, pages: Callable[[], Sequence[str]]) -> None:
        """A prefix was found in device or host memory."""

    def weights_change(self) -> None:
        """Weights are about to change."""

    def weights_changed(self, *, flushed: bool) -> None:
        """Weights have changed."""

    def describe(self) -> dict[str, Any]:
        """State and counters as plain values."""


class AdvisedTier(DiskTierHooks, Protocol):
    """What the tree knows of the third tier; none of it waits."""

    advice: DiskAdvice
    moved: dict[str, int]  # pages ``written`` and ``evicted`` so far

    def capacity_tokens(self, page_tokens: int) -> int:
        """Tokens that it holds at most; 0 where that is not known."""


class TreeState(Protocol):
    """What is shown of the radix tree of this process."""

    def describe(self) -> dict[str, Any]:
        """State and counters as plain values."""


_tier: AdvisedTier | None = None
_tree: TreeState | None = None
_opening: Callable[[str], list[str]] | None = None


def on_opening(action: Callable[[str], list[str]]) -> None:
    """What to do before a part of ours is opened; `plugin/` puts its hooks in place."""
    global _opening
    _opening = action


def opening(part: str = "disk_tier") -> list[str]:
    """A part is about to be opened in this process.

    Args:
        part: of `sglang_ext.plugin.table.GROUPS`.

    Returns:
        Names of hooks that did not take effect.
    """
    return ["the plugin of sglang-ext"] if _opening is None else _opening(part)


def set_tree(tree: TreeState | None) -> None:
    """The radix tree of this process from now on."""
    global _tree
    _tree = tree


def disk_tier() -> AdvisedTier | None:
    """The third tier of this process, if it is open."""
    return _tier


def set_disk_tier(tier: AdvisedTier | None) -> None:
    """The third tier of this process from now on; None when it is closed."""
    global _tier
    _tier = tier


def refresh_on_hit(result: Any, cache: Any, params: Any) -> None:
    """AFTER ``UnifiedRadixCache.match_prefix``: what is hot in memory stays on disk, too.

    Runs on the scheduler's thread for each request that waits: one look-up in the tree and an
    entry in a dictionary.
    """
    tier, node = _tier, result.last_host_node
    # Only what a request uses is a hit; a streaming session has a stand-in for a node.
    if tier is None or params.req is None or not isinstance(node, int):
        return
    try:
        last_page = cache.get_last_hash_value(node)
        if last_page:
            tier.hit(last_page, lambda: _pages(cache, node))
    except Exception:  # the scheduler ends on an exception, and a refresh is not worth that
        logger.debug("A hit was not noted", exc_info=True)


def _pages(cache: Any, node: int) -> list[str]:
    """Hashes of all pages up to the end of a node."""
    before: list[str] = cache.get_prefix_hash_values(node)
    own: list[str] = cache.tree_core.get_hash_values(node)
    return before + own


def backup_as_one(original: Callable[..., Any], controller: Any, operation: Any) -> Any:
    """AROUND ``HybridCacheController._page_backup``: the third tier learns where a write ends.

    SGLang hands over the pages of sidecar pools before those of keys and values that they belong
    to. The tier holds them until those come; after the operation their memory is not theirs.
    """
    if _tier is None:
        return original(controller, operation)
    return _tier.operation(lambda: original(controller, operation))


def weights_change(*_args: Any, **_kwargs: Any) -> None:
    """BEFORE ``_observe_weight_load``: what the third tier has is of the old weights."""
    if _tier is not None:
        _tier.weights_change()


def weights_changed(result: tuple[bool, str], _updater: Any, request: Any, *_more: Any) -> None:
    """AFTER ``flush_cache_after_weight_update``: the tier serves again if all was flushed."""
    if _tier is not None:
        _tier.weights_changed(flushed=bool(result[0] and request.flush_cache))


def show_state(result: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER ``get_internal_state``: what ``/server_info`` shows of this process's parts."""
    shown = {}
    if _tier is not None:
        shown["disk_tier"] = _tier.describe()
    if _tree is not None:
        shown["tree"] = _tree.describe()
    if shown:
        result.internal_state["sglang_ext"] = shown


def hash_without_compiler(
    _original: Callable[..., str | list[str]],
    token_ids: Any,
    prior_digest: bytes | None,
    page_size: int | None = None,
) -> str | list[str]:
    """AROUND ``get_native_hash``: the same keys without a C++ build on the first request.

    Args:
        _original: SGLang's own, which compiles its helper.
        token_ids: SGLang's radix key, or a sequence of token ids.
        prior_digest: digest of the parent page.
        page_size: tokens a page; None for one key over all.

    Returns:
        A list of keys, or a single key when ``page_size`` is None.
    """
    units = _units(token_ids)
    keys = page_keys(units, prior_digest, page_size)
    return keys if page_size is not None else keys[0]


def _units(token_ids: Any) -> Any:
    """The units of SGLang's radix key: ids, or pairs of neighbours for a bigram key."""
    raw_token_ids = getattr(token_ids, "raw_token_ids", None)
    raw = raw_token_ids() if raw_token_ids else getattr(token_ids, "token_ids", token_ids)
    length = len(token_ids)
    if not getattr(token_ids, "is_bigram", False):
        return raw[:length]
    return [(raw[i], raw[i + 1]) for i in range(length)]
