"""Grammars of before a restart: compiled behind requests, within bounds, to no one's harm."""

import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from sglang_ext.tools import warming
from sglang_ext.tools.grammar_cache import GrammarCache
from sglang_ext.tools.grammars import compile_once
from sglang_ext.tools.texts import Texts, digest, owner, read, write
from sglang_ext.tools.warming import Keeper, Places, keep_in, keeper_of, warm_up

WHOSE = owner("tokenizer", "xgrammar")
BYTES = 1_000  # of each compiled grammar


def tag(name):
    return json.dumps({"format": {"type": "const_string", "value": name}})


@dataclass
class Stats:
    is_cache_hit: bool = False
    compilation_time: float = 0.1


class Grammar:
    def __init__(self, key, stats=None, size=BYTES):
        self.key, self.grammar_stats = key, stats or Stats()
        self.ctx = SimpleNamespace(memory_size_bytes=size - sum(map(len, key)))

    def copy(self):
        return Grammar(self.key, Stats(True, self.grammar_stats.compilation_time))


class Refusal:
    ctx = None
    grammar_stats = None

    def copy(self):
        return self


class Backend:
    """SGLang's backend as far as it is used."""

    def __init__(self, most_bytes=100_000):
        self.cache = GrammarCache(most_bytes)
        self.executor = ThreadPoolExecutor(2)
        self.go = threading.Event()
        self.go.set()
        self.compiled = []

    def compile(self, key):
        self.compiled.append(key[1])
        assert self.go.wait(30)
        if key[1] == tag("bad"):
            raise ValueError("no grammar")
        return Refusal() if key[1] == tag("refused") else Grammar(key)

    def get(self, key, _reasoning):
        held = self.cache.get(key)
        if held:
            return held.copy(), True
        return self.executor.submit(self.compile, key), False

    def ask(self, text):
        """As a request does, until its grammar is there; whether it was cached."""
        key = ("structural_tag", text)
        value, hit = compile_once(Backend.get, self, key, False)
        if not hit:
            assert isinstance(value, Future)
            value = value.result(30)
            self.cache[key] = value.copy()
        return hit, value


@pytest.fixture
def places(tmp_path):
    return Places.of(tmp_path, WHOSE, replica=0, rank=0)


def names_of(backend):
    return [json.loads(text)["format"]["value"] for text in backend.compiled]


def test_the_one_used_last_is_compiled_first_and_found_by_its_request(places):
    backend = Backend()
    assert warm_up(backend.cache, places, [tag("b"), tag("a")], backend.compile) == []
    assert names_of(backend) == ["b", "a"]
    figures = backend.cache.figures
    assert (figures.warmed, figures.found, dict(figures.skipped)) == (2, 0, {})
    hit, grammar = backend.ask(tag("a"))
    assert not hit, "another rank may not have it: SGLang has to ask whether all are ready"
    assert grammar.grammar_stats.is_cache_hit, "no compile of this request"
    assert backend.ask(tag("a"))[0], "now it is cached, on all ranks"
    assert (len(backend.compiled), figures.found) == (2, 1)
    assert not places.warming.exists()


def test_a_request_waits_for_the_compile_of_its_own_text_alone(places):
    backend = Backend()
    backend.go.clear()
    warming_up = ThreadPoolExecutor(1).submit(
        warm_up, backend.cache, places, [tag("a"), tag("b")], backend.compile
    )
    while not backend.compiled:
        time.sleep(0.001)
    asked = ThreadPoolExecutor(2)
    same, other = (asked.submit(backend.ask, tag(name)) for name in "ab")
    while len(backend.compiled) < 2:
        time.sleep(0.001)
    assert names_of(backend) == ["a", "b"], "the other one does not wait"
    backend.go.set()
    assert same.result(30)[1].key[1] == tag("a")
    assert other.result(30)[1].key[1] == tag("b")
    assert warming_up.result(30) == []
    assert sorted(names_of(backend)) == ["a", "b"], "each once"
    assert backend.cache.figures.found == 1
    assert backend.cache.running == {}


def test_requests_go_first(places):
    backend = Backend()
    waiting = backend.cache.begin(("structural_tag", tag("asked")))
    clock = iter(range(0, 1_000, 10))
    assert warm_up(backend.cache, places, [tag("a")], backend.compile, lambda: next(clock)) == []
    assert backend.compiled == []
    assert dict(backend.cache.figures.skipped) == {"no time": 1}
    waiting.set_result(None)


def test_what_a_request_compiles_or_has_is_not_begun_once_more():
    backend, key = Backend(), ("structural_tag", tag("a"))
    backend.go.clear()
    asked = ThreadPoolExecutor(1).submit(backend.ask, tag("a"))
    while not backend.compiled:
        time.sleep(0.001)
    assert backend.cache.begin(key) is None
    backend.go.set()
    asked.result(30)
    assert backend.cache.begin(key) is None


def test_it_ends_where_the_cache_is_full_and_what_is_warm_goes_first(places):
    backend = Backend(most_bytes=3 * BYTES)
    texts = [tag(name) for name in "abcde"]
    assert warm_up(backend.cache, places, texts, backend.compile) == []
    assert names_of(backend) == ["a", "b", "c"]
    assert dict(backend.cache.figures.skipped) == {"no room": 2}
    assert backend.cache.held_bytes == 3 * BYTES
    backend.ask(tag("new"))
    assert backend.cache.held_bytes == 3 * BYTES
    assert len(backend.cache) == 1
    assert ("structural_tag", tag("a")) not in backend.cache.warm
    for name in "xyz":
        backend.ask(tag(name))
    assert (len(backend.cache), len(backend.cache.warm)) == (3, 0)
    backend.cache.clear()
    assert backend.cache.held_bytes == 0


def test_one_that_alone_does_not_fit_is_not_put(places):
    backend = Backend(most_bytes=BYTES - 1)
    assert warm_up(backend.cache, places, [tag("a"), tag("b")], backend.compile) == []
    assert (backend.cache.held_bytes, backend.cache.figures.warmed) == (0, 0)
    assert dict(backend.cache.figures.skipped) == {"no room": 2}


def test_a_text_that_is_refused_is_not_kept_and_the_others_are_compiled(places):
    backend = Backend()
    bad = warm_up(backend.cache, places, [tag("bad"), tag("refused"), tag("a")], backend.compile)
    assert bad == [tag("bad"), tag("refused")]
    figures = backend.cache.figures
    assert (figures.warmed, dict(figures.skipped)) == (1, {"refused": 2})
    assert backend.cache.running == {}


def test_a_text_that_ended_a_server_is_left_out_from_then_on(places):
    backend = Backend()

    def compile_text(key):
        if key[1] == tag("fatal"):
            # As a process that ends leaves it.
            left = places.warming.read_bytes()
            places.warming.with_name("left").write_bytes(left)
        return backend.compile(key)

    warm_up(backend.cache, places, [tag("a"), tag("fatal"), tag("b")], compile_text)
    places.warming.with_name("left").rename(places.warming)
    assert places.warming.read_bytes() == digest(tag("fatal"), WHOSE)
    again = Backend()
    texts = [tag("a"), tag("fatal"), tag("b")]
    assert warm_up(again.cache, places, texts, again.compile) == [tag("fatal")]
    assert names_of(again) == ["a", "b"]
    assert dict(again.cache.figures.skipped) == {"ended a server": 1}
    assert not places.warming.exists()


def test_a_disk_that_takes_nothing_costs_only_that_guard(places, tmp_path):
    backend = Backend()
    nowhere = Places.of(tmp_path / "gone", WHOSE, replica=0, rank=0)
    assert warm_up(backend.cache, nowhere, [tag("a")], backend.compile) == []
    assert backend.cache.figures.warmed == 1


def keeper(backend, places):
    backend.cache.keeper = Keeper(
        backend.cache, backend.cache.texts, lambda: places, backend.compile
    )
    backend.cache.keeper.start()
    return backend


def eventually(found):
    end = time.monotonic() + 30
    while not found():
        assert time.monotonic() < end, "never"
        time.sleep(0.01)


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(warming, "_WRITE_S", 0.01)


@pytest.mark.usefixtures("at_once")
def test_a_restarted_scheduler_finds_what_the_first_one_compiled(places):
    first = keeper(Backend(), places)
    for name in ("a", "b", "refused", "a"):
        first.ask(tag(name))
    first.cache["json", "{}"] = Grammar(("json", "{}"))
    slow = Grammar(("structural_tag", tag("slow")), Stats(compilation_time=60.0))
    first.cache["structural_tag", tag("slow")] = slow
    eventually(lambda: read(places.texts, WHOSE).texts == [tag("a"), tag("b")])
    second = keeper(Backend(), places)
    eventually(lambda: second.cache.figures.warmed == 2)
    second.ask(tag("b"))
    assert names_of(second) == ["a", "b"]
    assert second.cache.figures.found == 1
    second.ask(tag("c"))
    eventually(lambda: read(places.texts, WHOSE).texts == [tag(name) for name in "cba"])


@pytest.mark.usefixtures("at_once")
def test_what_cannot_be_compiled_any_more_leaves_the_file(places):
    write(places.texts, WHOSE, [tag("bad"), tag("a")])
    backend = keeper(Backend(), places)
    eventually(lambda: read(places.texts, WHOSE).texts == [tag("a")])
    assert backend.ask(tag("a"))[1].key[1] == tag("a")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("hostile", [b"", b"SGXG", b"\xff" * 10_000, b"[" * 100_000])
def test_a_hostile_file_is_counted_and_replaced(places, hostile):
    places.texts.write_bytes(hostile)
    places.texts.chmod(0o600)
    backend = keeper(Backend(), places)
    backend.ask(tag("a"))
    eventually(lambda: read(places.texts, WHOSE).texts == [tag("a")])
    assert dict(backend.cache.figures.skipped) == {"damaged": 1}


@pytest.mark.usefixtures("at_once")
def test_other_ranks_read_and_do_not_write(places, tmp_path):
    write(places.texts, WHOSE, [tag("a")])
    other = keeper(Backend(), Places.of(tmp_path, WHOSE, replica=0, rank=1))
    eventually(lambda: other.cache.figures.warmed == 1)
    other.ask(tag("b"))
    other.cache.keeper.thread.join(30)
    assert not other.cache.keeper.thread.is_alive()
    assert read(places.texts, WHOSE).texts == [tag("a")]


@pytest.mark.usefixtures("at_once")
def test_a_disk_that_fails_is_told_once_and_ends_nothing(places, monkeypatch, caplog):
    tried = []

    def no_disk(*_args):
        tried.append(1)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(warming, "write", no_disk)
    backend = keeper(Backend(), places)
    for number in range(3):
        backend.ask(tag(str(number)))
        eventually(lambda number=number: len(tried) > number)
    assert len([line for line in caplog.messages if "cannot be kept" in line]) == 1


def test_nothing_is_kept_unless_asked_for(tmp_path):
    assert keeper_of(GrammarCache(), Texts(), None) is None
    keep_in(str(tmp_path))
    try:
        assert keeper_of(GrammarCache(), Texts(), None) is not None
    finally:
        keep_in(None)
