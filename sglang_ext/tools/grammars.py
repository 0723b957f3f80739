"""Compiled grammars in a scheduler: bounded in bytes, and one compile for equal requests at once.

Source: SGLang 0.5.23, ``constrained/base_grammar_backend.py``, whose cache keeps everything, as
does that of xgrammar's compiler; requests that arrive while a grammar is compiled compile it again.
"""

import dataclasses
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from sglang_ext.tools.bounded import BoundedCache

__all__ = ["bound_caches", "compile_once", "held_bytes"]

logger = logging.getLogger(__name__)

# Default 512 MB: about 1,000 requests' worth of different tool sets with ten tools each.
_MOST_BYTES = 512 * 1024 * 1024
# What xgrammar keeps of rules it has compiled. Default 64 MB: some 200 tools with open objects.
_MOST_RULES_BYTES = 64 * 1024 * 1024
_UNKNOWN_BYTES = 4_096  # a grammar that was refused, or of a backend that does not tell


class _Grammars:
    """What SGLang calls its cache: a dictionary with ``get``, item assignment and ``clear``."""

    def __init__(self) -> None:
        self._held: BoundedCache[Any, Any] = BoundedCache(_MOST_BYTES, _size_of)
        self.get = self._held.get
        self.clear = self._held.clear
        self.running: dict[Any, Future[Any]] = {}
        self.lock = threading.Lock()

    @property
    def held_bytes(self) -> int:
        return self._held.held_bytes

    def __setitem__(self, key: Any, value: Any) -> None:
        self._held.put(key, value)

    def __len__(self) -> int:
        return len(self._held)


_caches: "weakref.WeakSet[_Grammars]" = weakref.WeakSet()


def held_bytes() -> int:
    """Bytes of compiled grammars that this process holds."""
    return sum(cache.held_bytes for cache in _caches)


def _size_of(key: Any, grammar: Any) -> int:
    compiled = getattr(grammar, "ctx", None)
    size = getattr(compiled, "memory_size_bytes", _UNKNOWN_BYTES)
    return int(size) + sum(len(str(part)) for part in key)


def bound_caches(_result: None, backend: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER ``XGrammarGrammarBackend.__init__``: both caches get a bound."""
    from xgrammar import GrammarCompiler

    backend.cache = _Grammars()
    _caches.add(backend.cache)
    # Whole grammars are looked up by their text in the cache above. xgrammar's own has the masks of
    # rules, too: with it a set of ten tools that gets one more compiles in an eighth of the time.
    backend.grammar_compiler = GrammarCompiler(
        tokenizer_info=backend._tokenizer_info,  # noqa: SLF001 - made by the constructor we follow
        cache_limit_bytes=_MOST_RULES_BYTES,
    )


def compile_once(
    original: Callable[..., tuple[Any, bool]], backend: Any, key: Any, require_reasoning: bool
) -> tuple[Any, bool]:
    """AROUND ``BaseGrammarBackend.get_cached_or_future_value``: one compile for equal requests.

    Each waiting request gets a matcher of its own.
    """
    cache = backend.cache
    if not isinstance(cache, _Grammars):
        return original(backend, key, require_reasoning)
    with cache.lock:
        running = cache.running.get((key, require_reasoning))
        if running is None or running.done():
            value, hit = original(backend, key, require_reasoning)
            if hit or not isinstance(value, Future):
                return value, hit
            running = cache.running[key, require_reasoning] = value
            running.add_done_callback(lambda _done: _forget(cache, (key, require_reasoning)))
            first = True
        else:
            first = False
    mine: Future[Any] = Future()
    running.add_done_callback(lambda done: _hand_over(done, mine, first))
    return mine, False


def _forget(cache: _Grammars, key: Any) -> None:
    cache.running.pop(key, None)


def _hand_over(done: Future[Any], mine: Future[Any], first: bool) -> None:
    if not mine.set_running_or_notify_cancel():
        return
    try:
        grammar = done.result().copy()
        stats = getattr(grammar, "grammar_stats", None)
        if stats is not None:  # a copy counts as a hit; the first of them is what was compiled
            grammar.grammar_stats = dataclasses.replace(stats, is_cache_hit=not first)
        mine.set_result(grammar)
    except BaseException as error:  # whatever the compile raised is for the request to hear
        mine.set_exception(error)
