"""Compiled grammars in a scheduler: bounded in bytes, and one compile for equal requests at once.

Source: SGLang 0.5.23, ``constrained/base_grammar_backend.py``, whose cache keeps everything, as
does that of xgrammar's compiler; requests that arrive while a grammar is compiled compile it again.
"""

import weakref
from collections.abc import Callable
from typing import Any

from sglang_ext.tools.grammar_cache import GrammarCache, Lanes
from sglang_ext.tools.warming import keeper_of

__all__ = ["bound_caches", "compile_once", "figures", "held_bytes"]

# What xgrammar keeps of rules it has compiled. Default 64 MB: some 200 tools with open objects.
_MOST_RULES_BYTES = 64 * 1024 * 1024

_caches: "weakref.WeakSet[GrammarCache]" = weakref.WeakSet()


def held_bytes() -> int:
    """Bytes of compiled grammars that this process holds."""
    return sum(cache.held_bytes for cache in _caches)


def figures() -> dict[str, Any]:
    """What is told of this process's grammars with each request that ends."""
    told: dict[str, Any] = {"cache_bytes": held_bytes()}
    kept = [cache.figures for cache in _caches if cache.keeper is not None]
    if kept:
        told["warmed"] = sum(one.warmed for one in kept)
        told["warm_found"] = sum(one.found for one in kept)
        told["warm_skipped"] = sum(sum(one.skipped.values()) for one in kept)
        told["warm_s"] = round(sum(one.seconds for one in kept), 3)
    return told


def bound_caches(_result: None, backend: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER ``XGrammarGrammarBackend.__init__``: both caches get a bound, large compiles a lane."""
    from xgrammar import GrammarCompiler

    backend.cache = GrammarCache()
    _caches.add(backend.cache)
    backend.executor = Lanes(backend.executor)
    # Whole grammars are looked up by their text in the cache above. xgrammar's own has the masks of
    # rules, too: with it a set of ten tools that gets one more compiles in an eighth of the time.
    backend.grammar_compiler = GrammarCompiler(
        tokenizer_info=backend._tokenizer_info,  # noqa: SLF001 - made by the constructor we follow
        cache_limit_bytes=_MOST_RULES_BYTES,
    )
    backend.cache.keeper = keeper = keeper_of(backend.cache, backend.cache.texts, backend)
    if keeper is not None:
        keeper.start()


def compile_once(
    original: Callable[..., tuple[Any, bool]], backend: Any, key: Any, require_reasoning: bool
) -> tuple[Any, bool]:
    """AROUND ``BaseGrammarBackend.get_cached_or_future_value``: one compile for equal requests.

    Each waiting request gets a matcher of its own.
    """
    cache = backend.cache
    if not isinstance(cache, GrammarCache):
        return original(backend, key, require_reasoning)
    return cache.ask((key, require_reasoning), lambda: original(backend, key, require_reasoning))
