"""What the radix tree costs the scheduler: ours beside SGLang's Rust core and its Python core.

A million tokens are resident: sessions of 100,000 tokens that grew turn by turn, and any number
of other leaves. Each round a session comes back with a turn more: its prefix is matched and locked,
the rest inserted, and as much evicted; then time passes. All cores take part in each round, in
changing order, so what else the machine does hits them alike. Our policy has learned before, and
goes on learning.
"""

import contextlib
import ctypes
import gc
import random
import statistics
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sglang_ext.errors import BenchError

__all__ = ["CORES", "CacheBench", "bench_cache"]

CORES = ("sglang_ext", "rust", "python")
# What ours may cost, as a multiple of SGLang's Rust core.
GOAL = 1.5
# Tokens of a leaf that is nobody's session.
_SMALL = 64
# Requests that the policy has seen before the first round: enough for it to have learned.
_WARM = 2000
# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# What the rounds allocate and keep, at most.
_HEAP_BYTES = 512 << 20


@dataclass(frozen=True)
class CacheBench:
    """What to measure.

    Args:
        cores: who takes part.
        context_tokens: length of a session.
        resident_tokens: of all sessions.
        turn_tokens: that each turn adds, and is evicted.
        page_tokens: of a page.
        leaves: leaves beside the sessions', for each measurement.
        rounds: requests measured; medians are shown.
        pause_s: seconds, by the policy's clock, between two requests.
    """

    cores: tuple[str, ...] = CORES
    context_tokens: int = 100_000
    resident_tokens: int = 1_000_000
    turn_tokens: int = 1_000
    page_tokens: int = 64
    leaves: tuple[int, ...] = (0, 2_000, 20_000)
    rounds: int = 20
    pause_s: float = 5.0


class _Slots:
    """A pool of memory without memory: the tree is measured, not the pool."""

    device = "cpu"
    page_size = 1

    def __init__(self, size: int) -> None:
        self.size = self.size_full = size

    def free(self, slots: Any) -> None:
        """Nothing is held."""

    def free_segment(self, slots: Any, start_pos: int = 0) -> None:
        """Nothing is held."""

    def free_full_segment(self, slots: Any, start_pos: int = 0) -> None:
        """Nothing is held."""

    def available_size(self) -> int:
        """Nothing is free: each round evicts."""
        return 0

    def mamba_full_cache_donor(self) -> None:
        """There is no other pool."""


def bench_cache(what: CacheBench, on_step: Callable[[str], None]) -> dict[str, Any]:
    """Measure; see `CacheBench`.

    Returns:
        ``{"tree": [{"core", "resident_tokens", "leaves", "match_us", "insert_us", "evict_us",
        "sum_us", "policy_us", "all_us"}], "goal", "findings"}``: CPU time of the thread. ``sum_us``
        is of match, insert and evict, which the goal is about. ``policy_us`` is telling the policy
        of a request and of its end, learning included, which every sixth request or so does: a
        mean; the rivals have nothing like it. ``all_us`` is both.

    Raises:
        BenchError: a core is not known.
    """
    unknown = [core for core in what.cores if core not in CORES]
    if unknown:
        raise BenchError(f"core {unknown[0]!r} is not known", fix=f"give some of {CORES}")
    rows: list[dict[str, Any]] = []
    findings = []
    for leaves in what.leaves:
        found = _measure(what, leaves, on_step)
        rows += found
        sums = {row["core"]: row["sum_us"] for row in found}
        if "sglang_ext" in sums and "rust" in sums and sums["sglang_ext"] > GOAL * sums["rust"]:
            ratio = sums["sglang_ext"] / sums["rust"]
            findings.append(f"{leaves} more leaves: {ratio:.2f} x SGLang's Rust core, goal {GOAL}")
    return {"tree": rows, "goal": GOAL, "findings": findings}


def _measure(what: CacheBench, leaves: int, on_step: Callable[[str], None]) -> list[dict[str, Any]]:
    rng = random.Random(0)  # noqa: S311 - made-up prompts, no secrets
    caches = {core: _Measured(core, what) for core in what.cores}
    count = max(1, what.resident_tokens // what.context_tokens)
    sessions = [_tokens(rng, what.context_tokens) for _ in range(count)]
    for core, cache in caches.items():
        on_step(f"{core}: {leaves} more leaves, filling")
        for _ in range(leaves):
            cache.insert(_tokens(rng, _SMALL), 0)
        for tokens in sessions:
            for end in range(what.turn_tokens, len(tokens) + 1, what.turn_tokens):
                cache.insert(tokens[:end], end - what.turn_tokens)
        cache.warm(sessions)
    with _undisturbed():
        for number in range(what.rounds):
            place = number % count
            sessions[place] = sessions[place] + _tokens(rng, what.turn_tokens)
            order = list(caches)[:: 1 if number % 2 else -1]
            on_step(f"{leaves} more leaves, round {number + 1} of {what.rounds}")
            for core in order:
                caches[core].request(number, sessions[place])
    return [cache.row(leaves) for cache in caches.values()]


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep out what hits now one core, now another, for what all of them have left behind.

    A full collection of this process takes half a second. A copy of 100,000 tokens takes 0.5 ms
    in page faults where glibc asks the kernel for its memory, and nothing where it has some.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        for parameter in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            libc.mallopt(parameter, 1 << 30)
    bytearray(b"x") * _HEAP_BYTES  # makes the heap larger and leaves it so
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _tokens(rng: random.Random, count: int) -> "array[int]":
    return array("q", rng.choices(range(50_000), k=count))


class _Measured:
    """One core's cache, and what its requests took, in microseconds."""

    def __init__(self, core: str, what: CacheBench) -> None:
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

        from sglang_ext.cache import install
        from sglang_ext.cache.settings import TreeSettings
        from sglang_ext.cache.tree import ExtRadixCache

        install.register()
        params: Any = CacheInitParams(
            disable=False,
            req_to_token_pool=None,
            token_to_kv_pool_allocator=_Slots(2 * what.resident_tokens),
            page_size=what.page_tokens,
            tree_components=(ComponentType.FULL,),
            tree_core_backend=core,
        )
        self.core = core
        self._now = time.time()
        self.cache: Any
        if core == "sglang_ext":
            self.cache = ExtRadixCache(params, settings=TreeSettings(secret=b"bench"))
            self.cache.requests.clock.read = lambda: self._now
        else:
            self.cache = UnifiedRadixCache(params)
        self._page = what.page_tokens
        self._need = what.turn_tokens
        self._slots = 0
        self._pause_s = what.pause_s
        self._times: dict[str, list[float]] = {
            name: [] for name in ("match", "insert", "evict", "policy", "sum")
        }

    def insert(self, tokens: Any, known: int) -> None:
        """Insert a path of which the first ``known`` tokens are there."""
        import torch
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams
        from sglang.srt.mem_cache.radix_cache import RadixKey

        self._slots += len(tokens)
        value = torch.arange(self._slots - len(tokens), self._slots)
        key = RadixKey(tokens).page_aligned(self._page)
        self.cache.insert(
            InsertParams(
                key=key,
                value=value[: len(key)],
                prev_prefix_len=known // self._page * self._page,
            )
        )

    def warm(self, sessions: list[Any]) -> None:
        """The policy has learned from sessions that came back."""
        for number in range(_WARM):
            tokens = sessions[number % len(sessions)]
            length = len(tokens) * (_WARM + number) // (2 * _WARM)
            self._tell(-1 - number, tokens[:length])
            self._end(-1 - number)
            self._now += self._pause_s

    def request(self, number: int, tokens: Any) -> None:
        """A session comes back."""
        import torch
        from sglang.srt.mem_cache.base_prefix_cache import (
            EvictParams,
            InsertParams,
            MatchPrefixParams,
        )
        from sglang.srt.mem_cache.radix_cache import RadixKey

        cache, clock = self.cache, time.thread_time
        begin = clock()
        self._tell(number, tokens)
        told = clock()
        query = RadixKey(tokens, limit=len(tokens) - 1)
        found = cache.match_prefix(MatchPrefixParams(key=query))
        matched = clock()
        lock = cache.inc_lock_ref(found.last_device_node)
        self._slots += len(tokens)
        key = RadixKey(tokens).page_aligned(self._page)
        value = torch.arange(self._slots - len(key), self._slots)
        before = clock()
        cache.insert(InsertParams(key=key, value=value, prev_prefix_len=found.device_prefix_len))
        inserted = clock()
        cache.dec_lock_ref(found.last_device_node, lock.to_dec_params())
        start = clock()
        cache.evict(EvictParams(num_tokens=self._need))
        evicted = clock()
        self._end(number)
        took = {
            "match": matched - told,
            "insert": inserted - before,
            "evict": evicted - start,
            "policy": told - begin + clock() - evicted,
        }
        took["sum"] = took["match"] + took["insert"] + took["evict"]
        self._now += self._pause_s
        for name, seconds in took.items():
            self._times[name].append(seconds * 1e6)

    def row(self, leaves: int) -> dict[str, Any]:
        """Medians; of the policy the mean."""
        found: dict[str, Any] = {
            "core": self.core,
            "resident_tokens": self.cache.tree_core.total_size()[0],
            "leaves": leaves,
        }
        found |= {f"{name}_us": round(statistics.median(t), 1) for name, t in self._times.items()}
        found["policy_us"] = round(statistics.mean(self._times["policy"]), 1)
        found["all_us"] = round(found["sum_us"] + found["policy_us"], 1)
        return found

    def _tell(self, number: int, tokens: Any) -> None:
        if self.core != "sglang_ext":
            return
        known, changed = self.cache.requests.arrive(str(number), tokens, (None, None), {})
        self.cache.tree_core.turn = known.turn
        self.cache.tree_core.index.reconsider(changed, known.arrived_s)

    def _end(self, number: int) -> None:
        if self.core != "sglang_ext":
            return
        from sglang_ext.cache.conversation import Stop

        core = self.cache.tree_core
        core.turn = None
        changed = self.cache.requests.end(str(number), Stop.TOOL, 100)
        core.index.reconsider(changed, self.cache.requests.clock())
