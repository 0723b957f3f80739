"""Compiled grammars of a scheduler, and the compiles that requests wait for.

All ranks of a server have to take a grammar as cached, or none of them: SGLang lets a request pass
at once where it is, and has the ranks agree where it is not. So what not every rank is sure to have
is never told as cached, but as a compile that is done: what was warmed up, and what a request no
longer waited for.
"""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from sglang_ext.tools.bounded import BoundedCache
from sglang_ext.tools.texts import Texts
from sglang_ext.tools.warming import Figures, Keeper

__all__ = ["GrammarCache", "Lanes"]

# Default 512 MB: about 1,000 requests' worth of different tool sets with ten tools each.
_MOST_BYTES = 512 * 1024 * 1024
# A grammar that took longer is not compiled again at the next start.
_MOST_KEPT_S = 10.0
_UNKNOWN_BYTES = 4_096  # a grammar that was refused, or of a backend that does not tell
# What SGLang puts for a compile it no longer waits for; the same tools would be refused ever after.
_TIMED_OUT = "Grammar preprocessing timed out"


def _size_of(key: Any, grammar: Any) -> int:
    compiled = getattr(grammar, "ctx", None)
    size = getattr(compiled, "memory_size_bytes", _UNKNOWN_BYTES)
    return int(size) + sum(len(str(part)) for part in key)


@dataclass
class _Compile:
    """One compile.

    Attributes:
        done: the grammar.
        warming: whether no request began it.
        waiting: requests that still want it.
    """

    done: Future[Any]
    warming: bool = False
    waiting: int = 0


class GrammarCache:
    """What SGLang calls its cache: a dictionary with ``get``, item assignment and ``clear``.

    Beside it, within the same bound, are grammars that no request has yet; they go first.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._held: BoundedCache[Any, Any] = BoundedCache(most_bytes, _size_of)
        self.warm: BoundedCache[Any, Any] = BoundedCache(most_bytes, _size_of)
        self.running: dict[Any, _Compile] = {}
        # A compile that is cancelled tells so within the call.
        self._lock = threading.RLock()
        self.figures = Figures()
        self.texts = Texts()
        self.keeper: Keeper | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of all grammars."""
        return self._held.held_bytes + self.warm.held_bytes

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, key: Any) -> bool:
        return key in self._held

    def get(self, key: Any) -> Any:
        """The grammar of ``key``, which all ranks have; None where it is not there."""
        found = self._held.get(key)
        if found is not None and self.keeper is not None:
            self.texts.use(key[1])
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        if getattr(value, "error_message", None) == _TIMED_OUT:
            return
        self.warm.drop(key)
        self._held.put(key, value)
        self.warm.shrink(self._most_bytes - self._held.held_bytes)
        if self.keeper is not None and _worth_keeping(key, value):
            self.texts.add(key[1])
            self.keeper.wake()

    def clear(self) -> None:
        """Hold nothing; what is being compiled comes all the same."""
        self._held.clear()
        self.warm.clear()

    def ask(self, whole: Any, compile_now: Callable[[], tuple[Any, bool]]) -> tuple[Any, bool]:
        """What a request gets: SGLang's own answer, or a future with a matcher of its own.

        Args:
            whole: the key, and whether the model reasons first.
            compile_now: SGLang's own look into the cache; returns what `tools.grammars` hooks.

        Returns:
            A grammar, or the future of one; whether all ranks have it.
        """
        with self._lock:
            running = self.running.get(whole)
            first = False
            if running is not None and not running.done.done():
                self.figures.found += running.warming
            elif whole[0] not in self and (warm := self.warm.get(whole[0])) is not None:
                self.figures.found += 1
                running = _Compile(Future())
                running.done.set_result(warm)
            else:
                value, hit = compile_now()
                if hit or not isinstance(value, Future):
                    return value, hit
                running, first = _Compile(value), True
                self.running[whole] = running
            running.waiting += 1
        if first:
            running.done.add_done_callback(lambda _done: self._ended(whole, running))
        mine: Future[Any] = Future()
        mine.add_done_callback(lambda mine: self._leave(running) if mine.cancelled() else None)
        running.done.add_done_callback(lambda done: _hand_over(done, mine, first))
        return mine, False

    def _leave(self, running: _Compile) -> None:
        """A request no longer waits; a compile that nobody waits for is not begun."""
        with self._lock:
            running.waiting -= 1
            if running.waiting <= 0 and not running.warming:
                running.done.cancel()  # one that runs cannot be stopped

    def _ended(self, whole: Any, running: _Compile) -> None:
        with self._lock:
            if self.running.get(whole) is running:
                del self.running[whole]
            done = running.done
            unwanted = running.waiting <= 0 and not running.warming
            failed = done.cancelled() or done.exception() is not None
            if unwanted and not failed and getattr(done.result(), "ctx", None) is not None:
                self.put_warm(whole[0], done.result())  # who gave up is likely to ask again

    def begin(self, key: Any) -> Future[Any] | None:
        """See `WarmCache`."""
        whole = (key, False)
        with self._lock:
            if key in self or key in self.warm or whole in self.running:
                return None
            running = self.running[whole] = _Compile(Future(), warming=True)
            running.done.set_running_or_notify_cancel()
        running.done.add_done_callback(lambda _done: self._ended(whole, running))
        return running.done

    def busy(self) -> bool:
        """See `WarmCache`."""
        return bool(self.running)

    def room(self) -> int:
        """See `WarmCache`."""
        return self._most_bytes - self.held_bytes

    def put_warm(self, key: Any, grammar: Any) -> bool:
        """See `WarmCache`."""
        if _size_of(key, grammar) > self.room():
            return False
        self.warm.put(key, grammar)
        return True


def _worth_keeping(key: Any, grammar: Any) -> bool:
    """Whether to compile it again at the next start: a tag that did not take too long."""
    seconds = getattr(getattr(grammar, "grammar_stats", None), "compilation_time", None) or 0.0
    compiled = getattr(grammar, "ctx", None) is not None
    return compiled and key[0] == "structural_tag" and seconds <= _MOST_KEPT_S


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


class Lanes(Executor):
    """Threads for compiles, in which large grammars do not keep small ones waiting.

    Args:
        small: SGLang's threads.
        large_chars: a grammar with a longer text is a large one. Cost: 10 to 60 ms a kB.
        large_at_once: how many of them are compiled at once; xgrammar takes eight threads for each.
    """

    def __init__(self, small: Executor, large_chars: int = 32_000, large_at_once: int = 2) -> None:
        self._small, self._large_chars = small, large_chars
        self._large = ThreadPoolExecutor(large_at_once, thread_name_prefix="sglang-ext-large")

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin ``call(key, …)`` in the lane of its key."""
        large = len(args[0][1]) > self._large_chars
        return (self._large if large else self._small).submit(call, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End both."""
        for lane in (self._small, self._large):
            lane.shutdown(wait, cancel_futures=cancel_futures)
