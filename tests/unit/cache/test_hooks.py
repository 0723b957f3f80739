"""Our hooks on SGLang's cache, with what they are called with."""

from types import SimpleNamespace

import pytest

from sglang_ext.cache import hooks


class Tier:
    """Notes what it is told."""

    def __init__(self):
        self.told = []

    def hit(self, last_page, pages):
        self.told.append((last_page, pages()))

    def operation(self, run):
        self.told.append("begin")
        try:
            return run()
        finally:
            self.told.append("end")

    def weights_change(self):
        self.told.append("change")

    def weights_changed(self, *, flushed):
        self.told.append(f"changed, flushed={flushed}")

    def describe(self):
        return {"pages": 7}


class Cache:
    """A tree of one node of two pages behind one page."""

    tree_core = SimpleNamespace(get_hash_values=lambda node: ["b", "c"])

    def get_last_hash_value(self, node):
        if node == 13:
            raise KeyError(node)
        return "c" if node == 7 else None

    def get_prefix_hash_values(self, node):
        return ["a"]


@pytest.fixture(autouse=True)
def no_tree(monkeypatch):
    """A tree says at its making that it is the server's; tests that made one are over."""
    monkeypatch.setattr(hooks, "_tree", None)


@pytest.fixture
def tier(monkeypatch):
    tier = Tier()
    monkeypatch.setattr(hooks, "_tier", tier)
    return tier


def matched(node, req="a request"):
    result = SimpleNamespace(last_host_node=node)
    assert hooks.refresh_on_hit(result, Cache(), SimpleNamespace(req=req)) is None


def test_a_hit_is_told_with_its_last_page(tier):
    matched(7)
    assert tier.told == [("c", ["a", "b", "c"])]


@pytest.mark.parametrize(
    ("node", "req"), [(0, "a request"), (7, None), (object(), "a request"), (13, "a request")]
)
def test_what_is_no_hit_of_a_request_is_not_told(tier, node, req):
    matched(node, req)  # the root; nobody's look-up; a session's stand-in; a node that is gone
    assert tier.told == []


def test_a_write_has_a_beginning_and_an_end(tier):
    def fails(controller, operation):
        raise RuntimeError(f"{controller} {operation}")

    assert hooks.backup_as_one(lambda c, o: (c, o), "controller", "operation") == (
        "controller",
        "operation",
    )
    with pytest.raises(RuntimeError, match="controller operation"):
        hooks.backup_as_one(fails, "controller", "operation")
    assert tier.told == ["begin", "end"] * 2


@pytest.mark.parametrize(
    ("success", "asked", "flushed"),
    [(True, True, True), (True, False, False), (False, True, False)],
)
def test_weights(tier, success, asked, flushed):
    hooks.weights_change("updater", "disk")
    request = SimpleNamespace(flush_cache=asked)
    hooks.weights_changed((success, "message"), "updater", request, True, "message")
    assert tier.told == ["change", f"changed, flushed={flushed}"]


def test_statistics_are_shown(tier):
    answer = SimpleNamespace(internal_state={"other": 1})
    assert hooks.show_state(answer, "controller", "request") is None
    assert answer.internal_state == {"other": 1, "sglang_ext": {"disk_tier": {"pages": 7}}}


def test_without_a_tier_nothing_happens(monkeypatch):
    monkeypatch.setattr(hooks, "_tier", None)
    matched(7)
    assert hooks.backup_as_one(lambda c, o: 5, None, None) == 5
    hooks.weights_change()
    hooks.weights_changed((True, ""), None, None)
    answer = SimpleNamespace(internal_state={})
    hooks.show_state(answer)
    assert answer.internal_state == {}


def test_opening_without_the_plugin_says_so(monkeypatch):
    monkeypatch.setattr(hooks, "_opening", None)
    assert hooks.opening() == ["the plugin of sglang-ext"]
    hooks.on_opening(lambda part: ["a.hook"])
    assert hooks.opening() == ["a.hook"]
