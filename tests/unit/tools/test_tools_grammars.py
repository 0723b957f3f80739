"""Compiled grammars: bounded exactly, and compiled once for equal requests."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ext.tools.bounded import BoundedCache
from sglang_ext.tools.grammar_cache import GrammarCache, Lanes
from sglang_ext.tools.grammars import compile_once


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 60)), max_size=40))
def test_the_bound_is_exact_and_the_least_used_goes_first(steps):
    cache = BoundedCache(100, lambda _key, size: size)
    oracle: dict[int, int] = {}
    for key, size in steps:
        if size % 3 == 0:
            assert cache.get(key) == oracle.get(key)
            if key in oracle:
                oracle[key] = oracle.pop(key)
            continue
        cache.put(key, size)
        oracle.pop(key, None)
        while oracle and sum(oracle.values()) + size > 100:
            oracle.pop(next(iter(oracle)))
        oracle[key] = size
        assert cache.held_bytes == sum(oracle.values()) <= 100
        assert len(cache) == len(oracle)


def test_what_is_larger_than_the_cache_is_not_held():
    cache = BoundedCache(10, lambda _key, size: size)
    cache.put("a", 5)
    cache.put("b", 11)
    assert (cache.get("a"), cache.get("b"), cache.held_bytes) == (5, None, 5)
    cache.clear()
    assert (len(cache), cache.held_bytes) == (0, 0)


@dataclass
class Stats:
    is_cache_hit: bool = False


class Grammar:
    def __init__(self, key, stats=None):
        self.key = key
        self.grammar_stats = stats or Stats()
        self.ctx = object()

    def copy(self):
        return Grammar(self.key, Stats(is_cache_hit=True))


class Backend:
    """SGLang's backend as far as it is used: a cache, and compiles in threads."""

    def __init__(self):
        self.cache = GrammarCache()
        self.executor = ThreadPoolExecutor(4)
        self.go = threading.Event()
        self.started, self.compiled = [], []

    def get(self, key, reasoning):
        held = self.cache.get(key)
        if held:
            return held.copy(), True
        return self.executor.submit(self.compile, key), False

    def compile(self, key):
        self.started.append(key)
        self.go.wait(30)
        self.compiled.append(key)
        if key == "bad":
            raise ValueError("no grammar")
        return Grammar(key)

    def ask(self, key, reasoning=False):
        return compile_once(Backend.get, self, key, reasoning)


def test_equal_requests_wait_for_one_compile():
    backend = Backend()
    asked = [backend.ask("a") for _ in range(5)] + [backend.ask("b")]
    assert all(isinstance(value, Future) and not hit for value, hit in asked)
    backend.go.set()
    grammars = [value.result(30) for value, _ in asked]
    assert sorted(backend.compiled) == ["a", "b"]
    assert len({id(grammar) for grammar in grammars}) == 6  # a matcher each
    compiled = [grammar.key for grammar in grammars if not grammar.grammar_stats.is_cache_hit]
    assert sorted(compiled) == ["a", "b"]
    assert backend.cache.running == {}
    backend.cache["a"] = grammars[0]
    value, hit = backend.ask("a")
    assert hit
    assert value.key == "a"


def test_a_compile_that_fails_fails_those_who_wait_and_nobody_later():
    backend = Backend()
    asked = [backend.ask("bad") for _ in range(3)]
    backend.go.set()
    for value, _ in asked:
        with pytest.raises(ValueError, match="no grammar"):
            value.result(30)
    assert backend.cache.running == {}
    value, _ = backend.ask("bad")
    assert value not in [one for one, _ in asked]


def test_a_request_that_is_cancelled_leaves_the_others():
    backend = Backend()
    first, _ = backend.ask("a")
    second, _ = backend.ask("a")
    assert first.cancel()
    backend.go.set()
    assert second.result(30).key == "a"


def test_a_compile_that_nobody_waits_for_any_more_is_not_begun():
    backend = Backend()
    backend.executor = ThreadPoolExecutor(1)
    running, _ = backend.ask("a")
    queued = [backend.ask("b")[0] for _ in range(2)]
    wanted = [backend.ask("c")[0] for _ in range(2)]
    assert all(value.cancel() for value in queued)
    assert wanted[0].cancel()
    again, _ = backend.ask("b")
    assert again.cancel()
    backend.go.set()
    assert running.result(30).key == "a"
    assert wanted[1].result(30).key == "c"
    assert backend.compiled == ["a", "c"]
    assert backend.cache.running == {}
    last, _ = backend.ask("b")
    assert last.result(30).key == "b"


def test_a_compile_that_was_given_up_while_it_ran_is_found_by_the_next_request():
    backend = Backend()
    given_up, _ = backend.ask("a")
    while not backend.started:
        time.sleep(0.001)
    assert given_up.cancel()
    joined, _ = backend.ask("a")
    assert joined.cancel()
    backend.go.set()
    backend.executor.shutdown()
    assert backend.cache.held_bytes > 0
    again, hit = backend.ask("a")
    assert not hit, "SGLang asks all ranks"
    assert again.result(30).key == "a"
    assert backend.compiled == ["a"]


@dataclass
class Refusal:
    error_message: str


def test_a_compile_that_sglang_gave_up_is_no_refusal_for_ever():
    cache = GrammarCache()
    cache["a"] = Refusal("Grammar preprocessing timed out")
    assert cache.get("a") is None
    cache["a"] = Refusal("Invalid regex")
    assert cache.get("a").error_message == "Invalid regex"


def test_large_grammars_do_not_keep_small_ones_waiting():
    lanes, go = Lanes(ThreadPoolExecutor(1), large_chars=10), threading.Event()
    begun = []

    def compile_key(key, *, reasoning):
        begun.append(key[1])
        assert len(key[1]) <= 10 or go.wait(30)
        return key, reasoning

    large = [lanes.submit(compile_key, ("ebnf", "x" * 11), reasoning=False) for _ in range(9)]
    small = lanes.submit(compile_key, ("ebnf", "x" * 10), reasoning=True)
    assert small.result(30) == (("ebnf", "x" * 10), True)
    assert len(begun) <= 3, "two large ones at once"
    go.set()
    assert all(future.result(30)[0][1] == "x" * 11 for future in large)
    lanes.shutdown()


MANY_SCHEMAS = """
import json
from pathlib import Path

from sglang_ext.tools import requests, tag
from sglang_ext.tools.bounded import BoundedCache
from sglang_ext.tools.tag import ToolSpec

for cache in (requests._plans, tag._read):
    cache._most_bytes = 4_000_000


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def plan(number):
    fields = {f"field_{number}_{n}": {"type": "string"} for n in range(4)}
    schema = {"type": "object", "properties": fields, "additionalProperties": False}
    requests.plan_of([ToolSpec("tool", json.dumps(schema))], "required", "hermes")


found = []
for number in range(5_000):
    plan(number)
    if number in (1_499, 4_999):
        found.append(resident())
print(json.dumps([*found, requests._plans.held_bytes, tag._read.held_bytes]))
"""


@pytest.mark.slow
def test_five_thousand_schemas_take_no_more_than_their_bounds():
    done = subprocess.run(
        [sys.executable, "-c", MANY_SCHEMAS], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    early, late, *held = json.loads(done.stdout)
    assert max(held) <= 4_000_000
    assert min(held) > 3_000_000, "the bounds were not reached"
    assert late - early < 8_000_000
