"""Evicted and asked for again."""

from sglang_ext.cache.mirror import Mirror, PathEntry
from sglang_ext.cache.regret import Regret

TEXT = "abcdefghij"


def lost_chain(regret, now=0.0):
    """Nodes 1 ``abc`` and 2 ``def``, lost from the end on."""
    mirror = Mirror(0)
    path = [PathEntry(1, 0, 0, 3, 3, 0), PathEntry(2, 1, 3, 6, 3, 0)]
    mirror.learn(path[:1], TEXT.__getitem__)
    node, _ = mirror.learn(path, TEXT.__getitem__)
    regret.lost(node, now)
    mirror.remove(node)
    regret.lost(mirror.get(1), now)


def asked(regret, now, tokens=10):
    return regret.asked(0, 0, TEXT.__getitem__, tokens, now)


def test_all_that_was_lost_behind_one_another_counts_once():
    regret = Regret(window_s=60.0)
    lost_chain(regret)
    assert asked(regret, 59.0) == 6
    assert regret.tokens == 6
    assert asked(regret, 59.0) == 0


def test_shorter_prompt_regrets_less():
    regret = Regret(window_s=60.0)
    lost_chain(regret)
    assert asked(regret, 1.0, tokens=4) == 4


def test_what_was_lost_long_ago_is_no_regret():
    regret = Regret(window_s=60.0)
    lost_chain(regret)
    assert asked(regret, 61.0) == 0


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("sglang_ext.cache.regret._MOST", 1)
    regret = Regret()
    lost_chain(regret)
    assert asked(regret, 1.0) == 3  # the one lost last
