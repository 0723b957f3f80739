"""The mirror of a tree: what it learns from paths, and what it refuses."""

from array import array

import pytest

from sglang_ext.cache.mirror import Mirror, PathEntry
from sglang_ext.errors import MirrorError


def keys(text):
    return lambda begin: text[begin]


def learn(mirror, path, text):
    return mirror.learn([PathEntry(*entry) for entry in path], keys(text))


@pytest.fixture
def mirror():
    """Node 1 is ``abcdef``, on the device."""
    made = Mirror(0)
    node, fresh = learn(made, [(1, 0, 0, 6, 6, 0)], "abcdef")
    assert fresh == [node]
    node.tokens = array("q", range(6))
    node.touch, node.tenant = 7, "t"
    return made


def test_leaf(mirror):
    node = mirror.get(1)
    assert node.is_device_leaf
    assert not node.is_host_leaf
    assert len(node) == 6
    assert not mirror.root.is_device_leaf
    mirror.check_integrity()


def test_split_keeps_the_lower_part_under_its_id(mirror):
    leaf, fresh = learn(mirror, [(2, 0, 0, 3, 3, 2), (3, 2, 3, 5, 2, 0)], "abcxy")
    leaf.tokens = array("q", range(5))
    upper, lower = mirror.get(2), mirror.get(1)
    assert fresh == [upper, leaf]
    assert (lower.begin, lower.end, lower.parent) == (3, 6, upper)
    assert (upper.touch, upper.tenant, upper.device_children) == (7, "t", 2)
    assert lower.key is None  # where it hangs is known when a path passes it
    mirror.check_integrity()
    learn(mirror, [(2, 0, 0, 3, 3, 2), (4, 2, 3, 4, 1, 1), (1, 4, 4, 6, 2, 0)], "abcdef")
    assert mirror.get(4).key == "d"
    assert mirror.get(1).parent is mirror.get(4)
    mirror.check_integrity()


def test_text_is_found_below(mirror):
    learn(mirror, [(2, 0, 0, 3, 3, 1)], "abc")
    assert list(mirror.text(mirror.get(2)))[:3] == [0, 1, 2]


def test_device_children_are_counted(mirror):
    leaf, _ = learn(mirror, [(1, 0, 0, 6, 6, 1), (2, 1, 6, 8, None, 0)], "abcdefgh")
    leaf.tokens = array("q", range(8))
    assert mirror.get(1).is_device_leaf
    assert leaf.is_host_leaf
    mirror.set_device(leaf, True)
    assert not mirror.get(1).is_device_leaf
    mirror.set_device(leaf, True)
    assert mirror.get(1).device_children == 1
    mirror.check_integrity()


def test_removal(mirror):
    node = mirror.get(1)
    mirror.remove(node)
    assert len(mirror) == 0
    assert mirror.root.device_children == 0
    assert node.parent is None


def test_contradictions_are_refused(mirror):
    learn(mirror, [(1, 0, 0, 6, 6, 1), (2, 1, 6, 8, 2, 0)], "abcdefgh")
    with pytest.raises(MirrorError, match="1 children"):
        mirror.remove(mirror.get(1))
    with pytest.raises(MirrorError, match="unknown"):
        learn(mirror, [(9, 8, 3, 4, 1, 0)], "abcd")
    with pytest.raises(MirrorError, match="place of another"):
        learn(mirror, [(9, 0, 0, 4, 4, 0)], "abcd")
    with pytest.raises(MirrorError, match="split off"):
        learn(mirror, [(9, 0, 0, 4, 4, 1)], "wxyz")
    with pytest.raises(MirrorError, match="elsewhere"):
        learn(mirror, [(9, 0, 0, 7, 7, 1)], "abcdefg")


def test_a_node_of_a_tree_that_is_gone_holds_little(mirror):
    leaf, _ = learn(mirror, [(1, 0, 0, 6, 6, 1), (2, 1, 6, 8, None, 0)], "abcdefgh")
    above = leaf.parent
    leaf.tokens = array("q", range(8))
    mirror.abandon()
    assert (leaf.tokens, leaf.parent, above.tokens, above.children) == (None, None, None, {})
